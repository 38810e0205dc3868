mod together;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;

use engine::{CudaError, GpuFacts, GpuSurvey};

use super::*;

/// For each key: an accepted value, how it is shown, a refused value, and the reason.
const TABLE: &[(&str, &str, &str, &str, &str)] = &[
    ("model", "/m/a.gguf", "/m/a.gguf", "", "must be a path"),
    ("tokenizer", "/m/b.gguf", "/m/b.gguf", "", "must be a path"),
    ("served_model_name", "smol", "smol", "", "must be text"),
    ("http.host", "0.0.0.0", "0.0.0.0", "a:80", "must be a host name or an address without a port"),
    ("http.port", "0", "0", "65536", "must be a port from 0 to 65535, not"),
    (
        "http.advertise",
        "10.0.0.1:80",
        "\"10.0.0.1:80\"",
        "0.0.0.0:80",
        "must be an address such as 10.0.0.1:8200",
    ),
    ("frontend.enabled", "false", "false", "maybe", "must be true or false, not \"maybe\""),
    ("frontend.host", "::1", "\"::1\"", "http://a", "must be a host name"),
    ("frontend.port", "9001", "9001", "-1", "must be a port"),
    ("frontend.local", "never", "never", "often", "must be auto, never or always, not \"often\""),
    ("frontend.local_if_sooner_by", "0", "0s", "soon", "must be a duration"),
    ("frontend.trust_header", "true", "true", "maybe", "must be true or false"),
    ("frontend.page", "false", "false", "maybe", "must be true or false"),
    (
        "frontend.tool_call_parser",
        "mistral",
        "mistral",
        "xml",
        "must be hermes, llama3_json, mistral or none",
    ),
    ("frontend.reasoning_parser", "qwen3", "qwen3", "r1", "must be deepseek_r1, qwen3 or none"),
    ("tls.cert_file", "/c", "/c", "", "must be a path"),
    ("tls.key_file", "/k", "/k", "", "must be a path"),
    ("routing.index_bytes", "0", "0", "much", "must be 0 or a size such as 16MiB"),
    ("routing.ttft_target", "500ms", "500ms", "soon", "must be a duration"),
    ("routing.inter_token_bound", "25ms", "25ms", "25", "must be a duration with a unit"),
    ("link.host", "node-1", "node-1", "two words", "must be a host name"),
    ("link.port", "5", "5", "abc", "must be a port from 0 to 65535, not \"abc\""),
    ("link.advertise", "10.0.0.1:5", "\"10.0.0.1:5\"", "node-1:5", "must be an address such as"),
    ("link.secret", "hush", "\"***\"", "***", "only masks a secret"),
    ("link.tls_cert_file", "/c", "/c", "", "must be a path"),
    ("link.tls_key_file", "/k", "/k", "", "must be a path"),
    ("link.tls_ca_file", "/a", "/a", "", "must be a path"),
    ("link.tls_allowed_names", "a.b, 10.0.0.1", "[a.b, 10.0.0.1]", "a:1", "but \"a:1\" is neither"),
    ("link.peers", "a:1, b:2", "[\"a:1\", \"b:2\"]", "a", "must be a list of host:port, but \"a\" is not"),
    ("link.sessions", "9", "9", "0", "must be a whole number from 1 to 4096"),
    ("link.idle", "90s", "90s", "10", "must be a duration with a unit"),
    ("ring.bytes", "1.5 MiB", "1536KiB", "1 parsec", "must be a size above zero such as 1GiB"),
    ("node.prefill_pages", "7", "7", "0", "must be a whole number from 1"),
    ("fleet.nodes", "a:1, b:2", "[\"a:1\", \"b:2\"]", "a", "must be a list of host:port, but \"a\" is not"),
    ("fleet.nodes_ca_file", "/c", "/c", "", "must be a path"),
    ("fleet.nodes_tls_name", "nodes", "nodes", "a:1", "must be a host name"),
    ("fleet.cluster", "blue-1", "blue-1", "a/b", "must have only letters, digits"),
    ("fleet.dns", "nodes:8200", "\"nodes:8200\"", "nodes", "must be host:port, not \"nodes\""),
    (
        "fleet.etcd_endpoints",
        "localhost:1, http://127.0.0.1:2/",
        "[\"http://localhost:1\", \"http://127.0.0.1:2\"]",
        "ftp://a:1",
        "must be a list of URLs such as",
    ),
    ("fleet.etcd_user", "baton", "baton", "", "must be text"),
    ("fleet.etcd_password_file", "/p", "/p", "", "must be a path"),
    ("fleet.etcd_ca_file", "/c", "/c", "", "must be a path"),
    ("fleet.etcd_cert_file", "/c", "/c", "", "must be a path"),
    ("fleet.etcd_key_file", "/k", "/k", "", "must be a path"),
    ("kv_events.enabled", "true", "true", "maybe", "must be true or false"),
    ("kv_events.host", "10.0.0.1", "10.0.0.1", "tcp://*", "must be a host name"),
    ("kv_events.port", "0", "0", "65536", "must be a port"),
    ("kv_events.replay_port", "5", "5", "-1", "must be a port"),
    ("kv_events.pod", "10.0.0.1:8000", "\"10.0.0.1:8000\"", "kv@pod", "must be a name without spaces"),
    ("engine.threads", "3", "3", "many", "must be a whole number from 0 to 256"),
    ("engine.device", "cpu", "cpu", "tpu", "must be cpu or cuda"),
    ("engine.gpu_memory_utilization", "0.5", "0.5", "1.1", "must be above 0 and up to 1"),
    ("engine.load_format", "dummy", "dummy", "fast", "must be auto or dummy"),
    ("engine.quantization", "fp8", "fp8", "fp4", "must be none, fp8_weights or fp8"),
    ("engine.kv_dtype", "fp8", "fp8", "fp4", "must be auto, bf16 or fp8"),
    ("engine.kv_bytes", "512MiB", "512MiB", "0", "must be a size above zero"),
    ("engine.page_tokens", "32", "32", "0", "must be a whole number from 1 to 1024"),
    ("engine.prefill_chunk_tokens", "64", "64", "1.5", "must be a whole number"),
    ("engine.prefix_cache", "false", "false", "some", "must be true or false"),
    ("request.deadline", "90s", "90s", "10", "must be a duration with a unit"),
    ("request.concurrency", "8", "8", "0", "must be a whole number from 1"),
    ("request.queue", "0", "0", "-1", "must be a whole number from 0 to 65536"),
    ("request.input_bytes", "64MiB", "64MiB", "0", "must be a size above zero"),
    ("request.context_tokens", "4096", "4096", "-1", "must be a whole number from 0"),
    ("request.recent", "0", "0", "-1", "must be a whole number from 0 to 65536"),
    ("request.api_key", "hush", "\"***\"", "***", "only masks a secret"),
    ("transport.ucx_library", "/u/libucp.so.0", "/u/libucp.so.0", "", "must be a path"),
    ("transport.min_gigabytes_per_second", "1.5", "1.5", "fast", "must be a number of at least 0"),
    ("transport.page_hash", "false", "false", "perhaps", "must be true or false"),
    ("traces.otlp_endpoint", "http://c:4318", "\"http://c:4318\"", "c:4318", "must be a URL"),
    ("traces.sample", "0", "0", "2", "must be from 0 to 1"),
    ("log.format", "json", "json", "xml", "must be text or json"),
    ("shutdown.drain", "1500ms", "1500ms", "soon", "must be a duration"),
    ("shutdown.delay", "0s", "0s", "5", "must be a duration with a unit"),
];

fn surroundings(variables: &[(&str, &str)]) -> Surroundings {
    let home = [("HOME", "/home/u")];
    let all = home.iter().chain(variables).map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Surroundings::from_variables(all, 6)
}

/// Runs `test` on a file with this text.
fn with_file<T>(name: &str, text: &str, test: impl FnOnce(&Path) -> T) -> T {
    let folder = std::env::temp_dir().join(format!("baton-config-{}-{name}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("baton.yaml");
    fs::write(&file, text).unwrap();
    let result = test(&file);
    fs::remove_dir_all(&folder).unwrap();
    result
}

fn set(key: &str, value: &str) -> Flag {
    Flag { name: format!("--set {key}"), key: key.to_owned(), value: value.to_owned() }
}

fn variable(key: &str) -> String {
    format!("BATON_{}", key.to_uppercase().replace('.', "__"))
}

/// A YAML file with one key. The value is quoted unless it is alphanumeric.
fn yaml(key: &str, value: &str) -> String {
    let bare = !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric());
    let value = if bare { value.to_owned() } else { format!("{value:?}") };
    match key.split_once('.') {
        Some((section, name)) => format!("{section}:\n  {name}: {value}\n"),
        None => format!("{key}: {value}\n"),
    }
}

fn shown(config: &Config, key: &str) -> String {
    config.show().into_iter().find(|(name, _)| *name == key).unwrap().1
}

#[test]
fn the_table_has_every_key() {
    let known: Vec<&str> = keys().map(|key| key.name).collect();
    let tried: Vec<&str> = TABLE.iter().map(|row| row.0).collect();
    assert_eq!(known, tried);
    let printed = Config::load(Role::Local, None, &[], surroundings(&[])).unwrap().show();
    assert_eq!(known, printed.iter().map(|(key, _)| *key).collect::<Vec<_>>());
    assert!(keys().all(|key| key.doc.len() > 10));
}

/// Settings of the other files for TLS that must be set together with this key.
fn with_others(key: &str) -> Vec<Flag> {
    let files =
        ["tls.cert_file", "tls.key_file", "link.tls_cert_file", "link.tls_key_file", "link.tls_ca_file"];
    let is_tls = files.contains(&key) || key == "link.tls_allowed_names";
    files.iter().filter(|file| is_tls && **file != key).map(|file| set(file, "/other")).collect()
}

#[test]
fn a_good_value_comes_through_each_layer() {
    for (key, good, expect, ..) in TABLE {
        let others = with_others(key);
        let flags = [&others[..], &[set(key, good)]].concat();
        let by_flag = Config::load(Role::Sender, None, &flags, surroundings(&[])).unwrap();
        assert_eq!(shown(&by_flag, key), *expect, "{key} by flag");
        let around = surroundings(&[(&variable(key), good)]);
        let by_variable = Config::load(Role::Sender, None, &others, around).unwrap();
        assert_eq!(shown(&by_variable, key), *expect, "{key} by variable");
        let by_file = with_file(&format!("good-{key}"), &yaml(key, good), |file| {
            Config::load(Role::Sender, Some(file), &others, surroundings(&[])).unwrap()
        });
        assert_eq!(shown(&by_file, key), *expect, "{key} by file");
    }
}

#[test]
fn a_bad_value_is_refused_in_each_layer() {
    let refused = |result: Result<Config, ConfigErrors>, origin: &str, key: &str, reason: &str| {
        let errors = result.unwrap_err();
        assert_eq!(errors.0.len(), 1, "{errors}");
        let text = errors.to_string();
        assert!(text.starts_with(&format!("{origin}: {key} ")), "{text}");
        assert!(text.contains(reason), "{text}");
        assert!(!text.contains('\n'), "{text}");
    };
    for (key, _, _, bad, reason) in TABLE {
        let by_flag = Config::load(Role::Local, None, &[set(key, bad)], surroundings(&[]));
        refused(by_flag, &format!("--set {key}"), key, reason);
        let by_variable = Config::load(Role::Local, None, &[], surroundings(&[(&variable(key), bad)]));
        refused(by_variable, &variable(key), key, reason);
        with_file(&format!("bad-{key}"), &yaml(key, bad), |file| {
            // A valid value in a later layer does not hide the problem.
            let good = TABLE.iter().find(|row| row.0 == *key).unwrap().1;
            let by_file = Config::load(Role::Local, Some(file), &[set(key, good)], surroundings(&[]));
            refused(by_file, &file.display().to_string(), key, reason);
        });
    }
}

#[test]
fn later_layers_win_and_are_named() {
    let text = "http: {port: 1}\nlink: {port: 1}\nring: {bytes: 1KiB}\n";
    with_file("order", text, |file| {
        let around = surroundings(&[("BATON_HTTP__PORT", "2"), ("BATON_LINK__PORT", "2")]);
        let config = Config::load(Role::Receiver, Some(file), &[set("http.port", "3")], around).unwrap();
        assert_eq!((config.http.port, config.link.port, config.ring.bytes), (3, 2, ByteSize(1024)));
        let origins: BTreeMap<_, _> = config.origins.iter().cloned().collect();
        assert_eq!(origins["http.port"], "--set http.port");
        assert_eq!(origins["link.port"], "BATON_LINK__PORT");
        assert_eq!(origins["ring.bytes"], file.display().to_string());
        assert_eq!(origins.len(), 3);
    });
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_one() {
    let check = |key: &str, expect: &str| {
        let errors = Config::load(Role::Local, None, &[set(key, "1")], surroundings(&[])).unwrap_err();
        assert_eq!(errors.to_string(), format!("--set {key}: {key} is not a key; {expect}"));
    };
    check("http.prot", "did you mean http.port?");
    check("http_port", "did you mean http.port?");
    check("ring.byte", "did you mean ring.bytes?");
    check("server.concurrency", "did you mean request.concurrency?");
    check("rings", "did you mean ring?");
    check("colour", "--print-config lists them all");
    let around = surroundings(&[("BATON_HTTP_PORT", "1"), ("OTHER", "1")]);
    let errors = Config::load(Role::Local, None, &[], around).unwrap_err();
    assert_eq!(errors.to_string(), "BATON_HTTP_PORT: http_port is not a key; did you mean http.port?");
}

#[test]
fn a_renamed_key_is_refused_with_its_current_name() {
    for (former, current) in
        [("transport.min_gbps", "transport.min_gigabytes_per_second"), ("ring.device", "engine.device")]
    {
        let expect = format!("{former} was replaced by {current}; set {current} instead");
        let refused = |file: Option<&Path>, flags: &[Flag], around, origin: &str| {
            let errors = Config::load(Role::Sender, file, flags, around).unwrap_err();
            assert_eq!(errors.to_string(), format!("{origin}: {expect}"));
        };
        refused(None, &[set(former, "1")], surroundings(&[]), &format!("--set {former}"));
        let variable = variable(former);
        refused(None, &[], surroundings(&[(&variable, "1")]), &variable);
        with_file(&format!("former-{former}"), &yaml(former, "1"), |file| {
            refused(Some(file), &[], surroundings(&[]), &file.display().to_string());
        });
    }
}

#[test]
fn every_problem_is_listed() {
    let around = surroundings(&[("BATON_LINK__PORT", "x")]);
    let text = "http: {prot: 1, port: x}\nring: 5\nmodel:\n";
    let errors = with_file("many", text, |file| {
        Config::load(Role::Local, Some(file), &[set("model", "m")], around).unwrap_err()
    });
    let keys: Vec<&str> = errors.0.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["http.port", "http.prot", "model", "ring", "link.port"]);
    assert_eq!(errors.0[3].reason, "is a section; set its keys, such as ring.bytes");
}

#[test]
fn files_that_are_not_a_configuration_are_refused() {
    let check = |text: &str, expect: &str| {
        with_file("shape", text, |file| {
            let errors =
                Config::load(Role::Local, Some(file), &[], surroundings(&[])).unwrap_err().to_string();
            assert!(errors.contains(expect), "{errors}");
            assert!(!errors.contains('\n'), "{errors}");
        });
    };
    check("- a\n", "must consist of sections and keys");
    check("http: {port: 1\n", "is not YAML: ");
    check("http: {port: 1}\nhttp: {port: 2}\n", "duplicate entry with key \"http\"");
    check("http: {port: {a: 1}}\n", "http.port must be a port from 0 to 65535, not a section");
    check("served_model_name: 5\n", "served_model_name must be text, not 5; put a number in quotes");
    let missing = Config::load(Role::Local, Some(Path::new("/nowhere/x.yaml")), &[], surroundings(&[]));
    assert!(missing.unwrap_err().to_string().starts_with("/nowhere/x.yaml: cannot be read: "));
    for text in ["", "# nothing\n", "http:\n  # port: 1\n"] {
        with_file("empty", text, |file| {
            let config = Config::load(Role::Local, Some(file), &[], surroundings(&[])).unwrap();
            assert_eq!(config.http.port, 8200);
        });
    }
}

#[test]
fn defaults_follow_the_role_and_the_surroundings() {
    let load = |role| Config::load(role, None, &[], surroundings(&[])).unwrap();
    assert_eq!((load(Role::Receiver).http.port, load(Role::Sender).http.port), (8200, 8100));
    let config = load(Role::Sender);
    assert_eq!(config.link.peers, ["127.0.0.1:55555"]);
    let node = load(Role::Node);
    assert_eq!((node.link.peers.len(), node.http.port, node.node.prefill_pages), (0, 8200, None));
    assert_eq!(config.engine.threads, 6);
    assert_eq!(config.engine.device, DeviceSetting::Cpu);
    let with_gpu = Surroundings { gpu: FirstGpu::Usable, ..surroundings(&[]) };
    assert_eq!([Role::Sender, Role::Proxy].map(|role| with_gpu.device(role)), ["cuda", "cpu"]);
    let on_cpu = Config::load(Role::Sender, None, &[set("engine.device", "cpu")], with_gpu).unwrap();
    assert_eq!(on_cpu.engine.device, DeviceSetting::Cpu);
    assert_eq!(config.model, Path::new("/home/u/.cache/baton/models/SmolLM2-135M-Instruct.Q4_1.gguf"));
    let fetched = Path::new("/home/u/.cache/baton/ucx-1.22.0/libucx/lib/libucp.so.0");
    assert_eq!(config.ucx_search(), [fetched]);
    let archive_of = |program: &str| surroundings::archive_of(Path::new(program));
    assert_eq!(archive_of("/opt/baton/bin/runtime").as_deref(), Some(Path::new("/opt/baton")));
    assert_eq!((archive_of("/opt/baton/runtime"), archive_of("/bin")), (None, None));
    let beside =
        Surroundings { archive: Some("/v".into()), packages: vec!["/v/lib/p".into()], ..surroundings(&[]) };
    let beside = Config::load(Role::Sender, None, &[], beside).unwrap();
    let ucx = ["/v/lib/ucx/libucp.so.0", "/v/lib/p/libucx/lib/libucp.so.0"].map(Path::new);
    assert_eq!(beside.ucx_search(), [ucx[0], ucx[1], fetched]);
    assert_eq!(beside.cuda_search(), ["/v/lib/cuda", "/v/lib/p/nvidia/cu13/lib"].map(Path::new));
    assert_eq!(config.request.deadline, Duration::from_secs(600));
    let around = surroundings(&[("XDG_CACHE_HOME", "/c"), ("UCX_TLS", "tcp")]);
    assert_eq!(around.cache, Path::new("/c/baton"));
    assert_eq!(around.ucx_default("UCX_TLS", "tcp"), None);
    assert_eq!(around.ucx_default("UCX_NET_DEVICES", "lo"), Some("lo".into()));
}

#[test]
fn the_default_device_is_a_gpu_that_the_kernels_run_on_or_that_has_a_fault() {
    let gpu = |capability| GpuFacts {
        name: "G".to_owned(),
        capability,
        total_bytes: 1,
        free_bytes: None,
        is_exclusive: false,
    };
    let survey = |gpus: &[(i32, i32)]| GpuSurvey {
        driver: (12, 0),
        gpus: gpus.iter().copied().map(gpu).collect(),
        pairs: Vec::new(),
        open_error: None,
    };
    let usable = |gpus| surroundings::is_usable(Ok(Some(survey(gpus))));
    let lists: [&[(i32, i32)]; 4] = [&[(9, 0)], &[(9, 0), (8, 0)], &[(8, 0), (9, 0)], &[]];
    assert_eq!(lists.map(usable), [true, true, false, false]);
    assert!(!surroundings::is_usable(Ok(None)), "the build has no CUDA");
    let failed = |status| surroundings::is_usable(Err(CudaError::of_status("cuInit", status)));
    assert_eq!([100, 802, 999].map(failed), [false, true, true]);
}

#[test]
fn the_printed_configuration_is_read_back() {
    for role in [Role::Receiver, Role::Sender, Role::Node, Role::Local, Role::Proxy] {
        let nodes = set("fleet.nodes", "a:1,b:2");
        let odd = [set("served_model_name", "007"), set("link.peers", "a:1"), set("request.deadline", "1ms")];
        for flags in [&[][..], &odd] {
            let flags = &[flags, std::slice::from_ref(&nodes)].concat();
            let config = Config::load(role, None, flags, surroundings(&[])).unwrap();
            let again = with_file(&format!("again-{role}"), &config.to_yaml(role), |file| {
                Config::load(role, Some(file), &[], surroundings(&[])).unwrap()
            });
            assert_eq!(Config { origins: vec![], ..again }, Config { origins: vec![], ..config });
        }
    }
}

#[test]
fn keys_that_a_role_does_not_use_are_printed_as_such() {
    let check = |role: Role, key: &str, expect: bool| {
        let config = Config::load(role, None, &[set("fleet.nodes", "a:1")], surroundings(&[])).unwrap();
        let name = key.rsplit('.').next().unwrap();
        let section = key.split('.').next().unwrap();
        let yaml = config.to_yaml(role);
        let section = yaml.split(&format!("\n{section}:\n")).nth(1).unwrap();
        let line = section.lines().find(|line| line.trim_start().starts_with(&format!("{name}:"))).unwrap();
        assert_eq!(!line.ends_with(&format!("# not used by role {role}")), expect, "{key}: {line}");
    };
    // A process to which no peer connects computes all of its prompts itself.
    for (key, users) in [
        ("routing.index_bytes", &[Role::Receiver, Role::Node, Role::Proxy][..]),
        ("routing.ttft_target", &[Role::Receiver, Role::Node, Role::Proxy]),
        ("routing.inter_token_bound", &[Role::Receiver, Role::Sender, Role::Node, Role::Local]),
        ("frontend.local", &[Role::Receiver, Role::Node]),
        ("frontend.local_if_sooner_by", &[Role::Receiver, Role::Node]),
        ("frontend.trust_header", &[Role::Receiver, Role::Node]),
        ("frontend.port", &[Role::Receiver, Role::Node, Role::Local, Role::Proxy]),
        ("link.peers", &[Role::Sender, Role::Node]),
    ] {
        for role in [Role::Receiver, Role::Sender, Role::Node, Role::Local, Role::Proxy] {
            check(role, key, users.contains(&role));
        }
    }
}

#[test]
fn secrets_are_never_shown() {
    let around = surroundings(&[("BATON_LINK__SECRET", "hush")]);
    let config = Config::load(Role::Sender, None, &[], around).unwrap();
    assert_eq!(config.link.secret.as_ref().unwrap().reveal(), "hush");
    let yaml = config.to_yaml(Role::Sender);
    assert!(!yaml.contains("hush") && yaml.contains("***"), "{yaml}");
    assert!(!format!("{config:?}").contains("hush"));
    with_file("secret", &yaml, |file| {
        let again = Config::load(Role::Sender, Some(file), &[], surroundings(&[])).unwrap();
        assert_eq!(again.link.secret, None);
    });
    let refused = with_file("number", "link: {secret: 12345}\n", |file| {
        Config::load(Role::Sender, Some(file), &[], surroundings(&[])).unwrap_err().to_string()
    });
    assert!(!refused.contains("12345"), "{refused}");
}

#[test]
fn sizes_and_durations() {
    let size = |text: &str| bytes(&Value::from(text)).map(|size| size.0);
    for (text, expect) in [
        ("4096", 4096),
        ("1GiB", 1 << 30),
        ("1 gib", 1 << 30),
        ("0.5 KiB", 512),
        ("2KB", 2000),
        ("3 MB", 3_000_000),
        ("1.5GB", 1_500_000_000),
        ("18446744073709551615", u64::MAX),
    ] {
        assert_eq!(size(text), Ok(expect), "{text}");
    }
    for text in ["", "GiB", "-1", "1 TiB", "1e3", "1..5GiB", "18446744073709551616", "99999999999GiB", "0.1"]
    {
        assert!(size(text).is_err(), "{text}");
    }
    assert_eq!(bytes(&Value::from(1024)).unwrap().to_string(), "1KiB");
    let time = |text: &str| duration(&Value::from(text));
    assert_eq!(time("1.5h"), Ok(Duration::from_secs(5400)));
    assert_eq!(time("10 m"), Ok(Duration::from_secs(600)));
    for text in ["10", "0s", "s", "-1s", "1d"] {
        assert!(time(text).is_err(), "{text}");
    }
}

#[test]
fn the_files_in_configs_have_the_defaults() {
    for role in [Role::Receiver, Role::Sender, Role::Node, Role::Local] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../configs/{role}.yaml"));
        let config = Config::load(role, Some(&file), &[], surroundings(&[])).unwrap();
        let defaults = Config::load(role, None, &[], surroundings(&[])).unwrap();
        assert_eq!(Config { origins: vec![], ..config }, defaults, "{role}");
    }
}

fn lmcache(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../configs/lmcache-{name}-config.yaml"))
}

#[test]
fn lmcache_files_are_translated() {
    for (name, role) in [("prefiller", Role::Sender), ("decoder", Role::Receiver)] {
        let file = lmcache(name);
        assert_eq!(Config::role_in(&file), Some(role));
        let config = Config::load(role, Some(&file), &[], surroundings(&[])).unwrap();
        assert_eq!(config.ring.bytes.0, 1 << 30);
        let expect =
            "ignored local_cpu, max_local_cpu_size, max_local_disk_size, remote_serde, nixl_enable_gc";
        assert_eq!(config.notes, [format!("{}: {expect}", file.display())]);
        match role {
            Role::Sender => assert_eq!(config.link.peers, ["localhost:55555"]),
            _ => assert_eq!((&*config.link.host, config.link.port), ("localhost", 55555)),
        }
    }
}

#[test]
fn lmcache_keys_are_checked() {
    let check = |text: &str, role: Role, expect: &str| {
        let errors =
            with_file("lmcache", text, |file| Config::load(role, Some(file), &[], surroundings(&[])));
        let text = errors.expect_err("it is refused").to_string();
        assert!(text.contains(expect), "{text:?} does not contain {expect:?}");
    };
    check(
        "nixl_role: sender",
        Role::Receiver,
        "nixl_role is sender, but the role of this process is receiver",
    );
    check("nixl_role: both", Role::Sender, "nixl_role must be sender or receiver, not \"both\"");
    check(
        "enable_nixl: False",
        Role::Sender,
        "enable_nixl is false, but a sender or receiver always uses UCX",
    );
    check("nixl_buffer_device: disk", Role::Sender, "nixl_buffer_device must be cuda or cpu");
    check("nixl_buffer_size: 0", Role::Sender, "(nixl_buffer_size): ring.bytes must be a size above zero");
    check("nixl_peer_port: 70000", Role::Receiver, "(nixl_peer_port): link.port must be a port");
    check("nixl_role: sender\nnixl_prot: 1", Role::Sender, "nixl_prot is not a key");
}

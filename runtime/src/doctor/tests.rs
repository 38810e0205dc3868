//! Tables of facts and of the findings that they lead to.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use actors::membership::{Member, Statement};
use connector::frame::{Incompatible, Versions};
use engine::{CudaError, CudaStatus, GpuFacts, GpuPair, GpuSurvey};

use super::fleet::{judge_dns, judge_etcd, judge_node};
use super::gpu::{self, GpuWish};
use super::machine::{
    ClockFacts, DiskFacts, LockedMemoryFacts, NamespaceFacts, OpenFileFacts, judge_clock, judge_disk,
    judge_locked_memory, judge_namespaces, judge_open_files,
};
use super::memory::{self, MemoryFacts};
use super::model::{TextFacts, judge_text, judge_token};
use super::network::{judge_loopback, judge_port};
use super::peers::{self, PeerAnswer};
use super::report::{CheckState, Finding};
use super::transport::{DeviceFacts, PutFacts, judge_devices, judge_put, judge_variables};
use super::*;
use crate::bench::PutMeasurement;
use crate::config::Surroundings;
use crate::frontend::{NodeReport, NodeState};
use crate::roles::plan::PlannedPort;

use CheckState::{Fault, Ok as Fine, Warning};

/// Checks the state of a finding, and that its sentence and its remedy have these words.
fn expect(finding: &Finding, state: CheckState, what: &str, remedy: &str) {
    assert_eq!(finding.state, state, "{finding:?}");
    assert!(finding.what.contains(what), "{finding:?} does not say {what:?}");
    let found = finding.remedy.as_deref().unwrap_or_default();
    assert!(found.contains(remedy), "{finding:?} does not advise {remedy:?}");
    assert_eq!(finding.remedy.is_none(), state == Fine, "{finding:?}");
}

fn h200(name: &str) -> GpuFacts {
    let (total_bytes, free_bytes) = (150_000_000_000, Some(149_000_000_000));
    GpuFacts { name: name.into(), capability: (9, 0), total_bytes, free_bytes, is_exclusive: false }
}

fn two_gpus() -> GpuSurvey {
    let pair = |from, to| GpuPair { from, to, has_access: true, has_atomics: true };
    let gpus = vec![h200("NVIDIA H200"), h200("NVIDIA H200")];
    GpuSurvey { driver: (13, 0), gpus, pairs: vec![pair(0, 1), pair(1, 0)], open_error: None }
}

const WISH: GpuWish =
    GpuWish { is_wanted: true, has_lanes: true, weights: Some(16_000_000_000), kv_bytes: 0, share: 0.9 };

/// The findings for two GPUs after a change.
fn gpus(change: impl FnOnce(&mut GpuSurvey)) -> Vec<Finding> {
    let mut survey = two_gpus();
    change(&mut survey);
    gpu::judge(Ok(Some(&survey)), WISH)
}

#[test]
fn two_gpus_with_nvlink_are_fine() {
    let findings = gpus(|_| ());
    let states: Vec<_> = findings.iter().map(|finding| (finding.check, finding.state)).collect();
    assert_eq!(states, [("gpu", Fine), ("gpu memory", Fine), ("gpu links", Fine)]);
    assert!(findings[0].what.contains("2 × NVIDIA H200 (150.0 GB), compute capability 9.0"), "{findings:?}");
    assert!(findings[2].what.contains("NVLink"), "{findings:?}");
}

#[test]
fn each_fault_of_a_gpu_is_named() {
    let error = CudaError { call: "cuInit", status: CudaStatus::Cuda(100), text: "no device".into() };
    let check = |findings: Vec<Finding>, name: &str, state, what: &str, remedy: &str| {
        let found = findings.iter().find(|finding| finding.check == name);
        expect(found.unwrap_or_else(|| panic!("{findings:?}")), state, what, remedy);
    };
    check(gpu::judge(Ok(None), WISH), "gpu", Fault, "this build has no CUDA", "cargo xtask cuda");
    check(gpu::judge(Err(&error), WISH), "gpu", Fault, "cuInit failed", "--gpus all");
    check(gpus(|all| all.driver = (12, 4)), "gpu", Fault, "CUDA 12.4", "driver 580");
    check(gpus(|all| all.gpus.clear()), "gpu", Fault, "no GPU", "CUDA_VISIBLE_DEVICES");
    check(gpus(|all| all.gpus[0].capability = (8, 0)), "gpu", Fault, "compiled for 9.0", "H100");
    check(
        gpus(|all| all.gpus[0].is_exclusive = true),
        "gpu",
        Warning,
        "second process",
        "compute-mode=DEFAULT",
    );
    check(gpus(|all| all.gpus[0].name += " MIG 1g.18gb"), "gpu", Warning, "MIG", "whole GPUs");
    check(
        gpus(|all| all.open_error = Some(error.clone())),
        "gpu library",
        Fault,
        "cuInit failed",
        "LD_LIBRARY_PATH",
    );
    check(
        gpus(|all| all.gpus[0].free_bytes = Some(20_000_000_000)),
        "gpu memory",
        Fault,
        "a start takes at least 18.1 GB, and 5.0 GB are left",
        "nvidia-smi",
    );
    check(
        gpus(|all| all.pairs[0].has_access = false),
        "gpu links",
        Fault,
        "GPUs 0 → 1:",
        "nvidia-smi topo -m",
    );
    check(gpus(|all| all.pairs[1].has_atomics = false), "gpu links", Warning, "PCIe", "NVLink");
    check(gpus(|all| all.pairs.clear()), "gpu links", Fine, "only one GPU", "");
    // GPUs of other processes may lack access to each other.
    let four = |(from, to)| {
        gpus(|all| {
            all.gpus.extend([h200("NVIDIA H200"), h200("NVIDIA H200")]);
            all.pairs.push(GpuPair { from, to, has_access: false, has_atomics: false });
        })
    };
    check(four((2, 3)), "gpu links", Warning, "GPUs 2 → 3:", "nvidia-smi topo -m");
    check(four((3, 0)), "gpu links", Fault, "GPUs 3 → 0:", "nvidia-smi topo -m");
    // Pages of a set size count against the free memory, and not against the share.
    let with = |kv_bytes| gpu::judge(Ok(Some(&two_gpus())), GpuWish { kv_bytes, share: 0.1, ..WISH });
    check(with(100_000_000_000), "gpu memory", Fine, "149.0 GB of 150.0 GB are free", "");
    check(with(140_000_000_000), "gpu memory", Fault, "a start takes at least 158.1 GB", "engine.kv_bytes");
    check(with(0), "gpu memory", Fault, "and 14.0 GB are left", "nvidia-smi");
    let unwanted = GpuWish { is_wanted: false, ..WISH };
    check(gpu::judge(Err(&error), unwanted), "gpu", Fine, "engine.device is cpu", "");
}

#[test]
fn the_machine_is_judged() {
    let own = NamespaceFacts { pid: Some(4_026_532_200), ipc: Some(4_026_532_201), uses_cuda_ipc: true };
    expect(&judge_namespaces(own), Warning, "namespace of its own", "--pid=host --ipc=host");
    expect(&judge_namespaces(NamespaceFacts { uses_cuda_ipc: false, ..own }), Fine, "no problem", "");
    let host = NamespaceFacts { pid: Some(4_026_531_836), ipc: Some(4_026_531_839), ..own };
    expect(&judge_namespaces(host), Fine, "of the host", "");

    let disk = |free, wants_model| {
        judge_disk(&DiskFacts { folder: PathBuf::from("/cache"), free, total: 10_000_000_000, wants_model })
    };
    expect(&disk(1_000_000, true), Fault, "1 MB free of 10.0 GB in /cache", "XDG_CACHE_HOME");
    expect(&disk(1_000_000, false), Warning, "too little", "delete files");
    expect(&disk(9_000_000_000, true), Fine, "9.0 GB free", "");

    let clock = |seconds, is_synchronised| judge_clock(ClockFacts { seconds, is_synchronised });
    expect(&clock(86_400, None), Fault, "1970-01-02", "timedatectl");
    expect(&clock(5_000_000_000, Some(true)), Fault, "2128", "chronyd");
    expect(&clock(1_800_000_000, Some(false)), Warning, "not synchronised", "timedatectl");
    expect(&clock(1_800_000_000, Some(true)), Fine, "synchronised", "");

    let files = |limit, connections| {
        judge_open_files(OpenFileFacts { limit, wanted: 4288, connections, needed: 4800 })
    };
    expect(&files(256, 1), Fault, "256 open files allows 1 of 4288", "to 4800 (ulimit -Hn");
    expect(&files(2312, 1800), Warning, "1800 of 4288", "LimitNOFILE");
    expect(&files(4800, 4288), Fine, "allows 4288 connections", "");

    let locked = |rdma_devices: &[&str], uses_rdma, limit| {
        let rdma_devices = rdma_devices.iter().map(|&name| name.to_owned()).collect();
        judge_locked_memory(&LockedMemoryFacts { rdma_devices, uses_rdma, limit, pool_bytes: 1 << 30 })
    };
    expect(
        &locked(&["mlx5_0"], true, Some(65_536)),
        Fault,
        "limit of locked memory is 65536 bytes",
        "memlock=-1",
    );
    expect(&locked(&[], true, None), Fault, "no RDMA device", "UCX_TLS");
    expect(&locked(&["mlx5_0"], true, None), Fine, "mlx5_0", "");
    expect(&locked(&["mlx5_0"], false, Some(0)), Fine, "no memory is locked", "");
}

#[test]
fn memory_is_judged_by_the_tightest_limit() {
    const GB: u64 = 1_000_000_000;
    let facts =
        MemoryFacts { weights: Some(GB), pages: GB, requests: 0, available: Some(8 * GB), group: None };
    expect(&memory::judge(facts), Fine, "the machine has 8.0 GB", "");
    let small = MemoryFacts { group: Some(2 * GB), ..facts };
    expect(&memory::judge(small), Fault, "the control group (container) leaves 2.0 GB", "engine.kv_bytes");
    let tight = MemoryFacts { available: Some(2_400_000_000), ..facts };
    expect(&memory::judge(tight), Warning, "tight", "engine.kv_bytes");
    let unknown = MemoryFacts { available: None, ..facts };
    expect(&memory::judge(unknown), Warning, "/proc/meminfo", "mount /proc");
}

#[test]
fn the_text_of_a_model_is_judged() {
    let judge = |vocabulary, rendered| judge_text(Ok(TextFacts { vocabulary, rendered }));
    let fine = judge(Some(49_152), Some(Ok("Hello".to_owned())));
    assert!(fine.iter().all(|finding| finding.state == Fine), "{fine:?}");
    expect(&judge(None, None)[0], Warning, "token ids only", "tokenizer.json");
    expect(&judge(Some(1), None)[1], Warning, "/v1/chat/completions is refused", "instruction-tuned");
    expect(&judge(Some(1), Some(Err("no role".into())))[1], Warning, "no role", "chat template");
    expect(&judge_text(Err("it is broken".into()))[0], Fault, "it is broken", "tokenizer.json");

    expect(&judge_token(None), Fine, "not set", "");
    expect(&judge_token(Some("abc")), Warning, "does not start with hf_", "huggingface.co/settings/tokens");
    expect(
        &judge_token(Some("hf_a b")),
        Warning,
        "too short or has other characters",
        "copy the token again",
    );
    let right = judge_token(Some("hf_abcdefghijABCDEFGHIJ0123456789abcd"));
    expect(&right, Fine, "right form", "");
    assert!(!right.what.contains("abcdefghij"), "the token is a secret");
}

#[test]
fn the_network_is_judged() {
    let down = io::Error::from(io::ErrorKind::AddrNotAvailable);
    expect(&judge_loopback(Err(down)), Fault, "127.0.0.1 does not answer", "ip link set lo up");
    expect(&judge_loopback(Ok(())), Fine, "answers", "");

    let port = PlannedPort { key: "http.port", host: "127.0.0.1", port: 8200 };
    let used =
        Err("http port 8200 on 127.0.0.1 is in use; stop the other process or set http.port".to_owned());
    let holder = Some("process 7 (runtime)".to_owned());
    let found = judge_port(port, &used, holder, None);
    expect(&found, Fault, "8200 on 127.0.0.1 is in use, by process 7 (runtime)", "set http.port");
    let exposed = Some("any client can send requests; set request.api_key");
    expect(&judge_port(port, &Ok(()), None, exposed), Warning, "any client", "set request.api_key");
    expect(&judge_port(port, &Ok(()), None, None), Fine, "127.0.0.1:8200 is free", "");

    let present = vec![("lo".to_owned(), true), ("eth0".to_owned(), true), ("eth1".to_owned(), false)];
    let devices = |chosen: Option<&str>, elsewhere: Option<&str>| {
        let (chosen, elsewhere) = (chosen.map(str::to_owned), elsewhere.map(str::to_owned));
        judge_devices(&DeviceFacts { chosen, present: present.clone(), elsewhere })
    };
    let remote = Some("10.0.0.2:55555");
    expect(
        &devices(None, remote),
        Fault,
        "lo only, which does not reach other hosts (10.0.0.2",
        "lo, eth0, eth1",
    );
    expect(&devices(None, None), Fine, "lo", "");
    expect(&devices(Some("eth7"), None), Fault, "eth7, which this machine does not have", "lo, eth0, eth1");
    expect(&devices(Some("eth0,eth1"), remote), Fault, "eth1, which is down", "ip link set eth1 up");
    expect(&devices(Some("eth0"), remote), Fine, "eth0", "");
}

#[test]
fn a_put_is_judged_by_lane_and_speed() {
    let put = |lane: &str, speed, least, gpus: Option<(&str, &str)>| {
        let measured = PutMeasurement { lane: lane.into(), bytes: 1 << 28, gigabytes_per_second: speed };
        let gpus = gpus.map(|(one, two)| (one.to_owned(), two.to_owned()));
        judge_put(&PutFacts { measured: Ok(measured), least, gpus })
    };
    expect(&put("tcp/lo", 2.0, 0.0, None), Fine, "2.00 GB/s between two processes over tcp/lo", "");
    expect(
        &put("tcp/lo", 0.5, 1.0, None),
        Fault,
        "below transport.min_gigabytes_per_second = 1",
        "lower transport.min_gigabytes_per_second",
    );
    let direct = "cuda_ipc/cuda,tcp/lo";
    expect(&put(direct, 350.0, 5.0, Some(("0", "1"))), Fine, "from GPU 1 to GPU 0", "");
    expect(
        &put("tcp/lo", 6.0, 5.0, Some(("0", "1"))),
        Fault,
        "not directly between the GPUs",
        "PID and IPC namespace",
    );
    let failed = PutFacts { measured: Err("UCX is gone".into()), least: 0.0, gpus: None };
    expect(&judge_put(&failed), Fault, "UCX is gone", "bench transfer");

    expect(
        &judge_variables(Some("tcp"), (false, false), true)[0],
        Fault,
        "no transport for GPU memory",
        "cuda_ipc",
    );
    expect(
        &judge_variables(None, (true, false), false)[0],
        Warning,
        "only one of UCX_RNDV_THRESH",
        "both or neither",
    );
    assert_eq!(judge_variables(Some("cuda_ipc,tcp"), (true, true), true), []);
}

#[test]
fn peers_are_judged_by_their_answers() {
    let judge = |answer| peers::judge("a:1", &answer);
    expect(&judge(PeerAnswer::Fits(12)), Fine, "a:1 accepts sessions, protocol version 12", "");
    expect(&judge(PeerAnswer::FitsSoFar(12, "it is large")), Fine, "because it is large", "");
    expect(&judge(PeerAnswer::HasNoSecret), Fault, "has no link.secret", "same link.secret on both sides");
    let (sender, receiver) = (Versions::OURS, Versions::new(90, 91));
    let reason = Incompatible::Protocol { sender, receiver }.to_string();
    let protocol = PeerAnswer::Refuses { by_peer: false, reason };
    expect(&judge(protocol), Fault, "the receiver versions 90 to 91", "upgrade the sender");
    let secret = PeerAnswer::Refuses { by_peer: true, reason: Incompatible::Secret.to_string() };
    expect(&judge(secret), Fault, "It says: peer does not know our link.secret", "same link.secret");
    expect(&judge(PeerAnswer::Absent("refused".into())), Warning, "nothing listens at a:1", "start the peer");
    expect(&judge(PeerAnswer::Unreachable("no route".into())), Fault, "no route", "firewall");
    expect(&judge(PeerAnswer::Busy("full".into())), Warning, "full", "log of the peer");
}

fn member(fingerprint: &str, protocol: Versions) -> Member {
    let says = Statement {
        role: "node".into(),
        prefills: true,
        decodes: true,
        model: "m".into(),
        fingerprint: fingerprint.into(),
        protocol,
    };
    Member {
        name: "a".into(),
        http: None,
        link: Some(SocketAddr::from(([10, 0, 0, 1], 5))),
        says: Some(says),
    }
}

#[test]
fn a_fleet_is_judged() {
    let etcd = |answers: Vec<Result<Vec<Member>, &str>>| {
        let urls = answers.into_iter().map(|answer| ("http://e".to_owned(), answer.map_err(str::to_owned)));
        judge_etcd(Ok(urls.collect()), Some("ab"))
    };
    let ours = member("ab", Versions::OURS);
    expect(&etcd(vec![Ok(vec![ours.clone()])])[0], Fine, "1 member registered", "");
    let other = vec![ours, member("cd", Versions::OURS)];
    expect(&etcd(vec![Ok(other)])[0], Warning, "1 with another model", "fleet.cluster");
    let old = vec![member("ab", Versions::new(1, 2))];
    expect(&etcd(vec![Ok(old)])[0], Warning, "no common version", "upgrade");
    expect(&etcd(vec![Err("http://e: no answer in 3 s")])[0], Fault, "no answer", "start etcd");
    expect(
        &etcd(vec![Err("etcdserver: user name is empty")])[0],
        Fault,
        "user name",
        "fleet.etcd_password_file",
    );
    expect(&etcd(vec![Err("invalid peer certificate")])[0], Fault, "certificate", "fleet.etcd_ca_file");
    expect(&etcd(vec![Err("no answer"), Ok(vec![])])[0], Warning, "no answer", "the others answer");
    let no_file = judge_etcd(Err("fleet.etcd_ca_file: cannot read /ca".into()), None);
    expect(&no_file[0], Fault, "/ca", "fleet.etcd_ca_file");

    expect(&judge_dns("n:1", Ok(2)), Fine, "2 addresses", "");
    expect(&judge_dns("n:1", Err("failed".into())), Fault, "does not resolve", "fleet.dns");
    expect(&judge_node("n:1", &Err("refused".into())), Warning, "no report: refused", "start the node");
    let text = r#"{"incarnation":"a","role":"node","prefills":true,"decodes":true,"state":"degraded","reason":"pages are lost; end the process",
        "model":"m","fingerprint":"ab","context_tokens":1,"page_tokens":1,"pool_pages":1,"used_pages":0,"cache_pages":0,"waiting_tokens":0,
        "begun_tokens":0,"nanos_per_token":null,"running":0,"waiting":0,"http":null,"prefillers":[]}"#;
    let report: NodeReport = serde_json::from_str(text).unwrap();
    expect(&judge_node("n:1", &Ok(report.clone())), Warning, "degraded: pages are lost", "log of the node");
    let report = NodeReport { state: NodeState::Ok, reason: None, ..report };
    expect(&judge_node("n:1", &Ok(report)), Fine, "n:1 serves m as node", "");
}

/// A check that hangs is a fault with a remedy of its own.
#[test]
fn each_check_has_a_name_and_a_remedy() {
    let mut names: Vec<_> = CHECKS.iter().map(|checkup| checkup.name).collect();
    names.dedup();
    assert_eq!(names.len(), CHECKS.len());
    assert!(CHECKS.iter().all(|checkup| !checkup.if_stuck.is_empty()));
}

/// The folder of models may be on a file system that hangs.
#[test]
fn a_look_for_the_model_that_hangs_is_given_up() {
    let config = || Config::load(Role::Local, None, &[], Surroundings::from_variables([], 2)).unwrap();
    let (never, told) = std::sync::mpsc::channel::<()>();
    let hangs = move |config: &Config| {
        let _ = told.recv();
        Ok::<_, String>(config.clone())
    };
    let (_, reason) = localized(config(), Duration::ZERO, hangs);
    assert!(reason.is_some_and(|reason| reason.contains("did not answer")));
    drop(never);
    let (_, reason) = localized(config(), LIMIT, |_| Err("it is not there"));
    assert_eq!(reason.as_deref(), Some("it is not there"));
    assert_eq!(localized(config(), LIMIT, |config| Ok::<_, String>(config.clone())).1, None);
}

/// A role without peers has no checks of lanes, and a proxy has none of the engine.
#[test]
fn a_role_has_the_checks_that_it_needs() {
    let names = |role| {
        let flags = [
            crate::config::Flag::parse("frontend.port=0").unwrap(),
            crate::config::Flag::parse("fleet.nodes=127.0.0.1:1").unwrap(),
        ];
        let config = Config::load(
            role,
            None,
            &flags[..if role == Role::Proxy { 2 } else { 1 }],
            Surroundings::from_variables([], 2),
        );
        examine(config.unwrap()).into_iter().map(|finding| finding.check).collect::<Vec<_>>()
    };
    let local = names(Role::Local);
    assert!(local.contains(&"model") && local.contains(&"frontend.port"), "{local:?}");
    assert!(!local.contains(&"put") && !local.contains(&"peers"), "{local:?}");
    let proxy = names(Role::Proxy);
    assert!(proxy.contains(&"nodes") && !proxy.contains(&"model") && !proxy.contains(&"gpu"), "{proxy:?}");
}

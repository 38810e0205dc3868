//! Networks and hubs that fail: the right files, or the right sentence.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use integration_tests::deadline::STATE_WITHIN;
use integration_tests::hub::{ELSEWHERE, FakeHub, Fault, HubHome, RepoFiles, etag};
use integration_tests::process::Process;

use super::{last_line, printed, sharded};

const REPO: &str = "some-org/Tiny-1B";
const GGUF: &str = "some-org/Tiny-GGUF:tiny.gguf";

/// The bytes of a large file, which no part of it repeats.
fn large() -> Vec<u8> {
    (0u32..75_000).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn gguf() -> RepoFiles {
    let files = [("tiny.gguf", large()), ("other.gguf", vec![1; 50]), ("README.md", b"# Tiny\n".to_vec())];
    files.map(|(name, bytes)| (name.to_owned(), bytes)).into()
}

/// A hub with the two models.
fn hub() -> Result<FakeHub> {
    let hub = FakeHub::start()?;
    hub.put(REPO, sharded()?.1);
    hub.put("some-org/Tiny-GGUF", gguf());
    Ok(hub)
}

/// With these faults, the large file arrives.
fn arrives(name: &str, faults: &[(&str, Fault)]) -> Result<FakeHub> {
    let hub = hub()?;
    faults.iter().for_each(|(place, fault)| hub.fault(place, fault.clone()));
    let home = HubHome::new(&hub)?;
    let output = home.run(&["pull", GGUF])?;
    assert!(output.status.success(), "{name}: {output:?}");
    assert_eq!(fs::read(printed(&output))?, large(), "{name}");
    assert_eq!(home.check("some-org/Tiny-GGUF", &gguf()), 1, "{name}");
    Ok(hub)
}

/// With these faults, the last line of the process has `words`, and no file is taken for whole.
fn fails(what: &str, faults: &[(&str, Fault)], words: &[&str]) -> Result<()> {
    let hub = hub()?;
    faults.iter().for_each(|(place, fault)| hub.fault(place, fault.clone()));
    fails_at(&hub, &HubHome::new(&hub)?, what, words)
}

fn fails_at(hub: &FakeHub, home: &HubHome, what: &str, words: &[&str]) -> Result<()> {
    let output = home.run(&["pull", what])?;
    let line = last_line(&output);
    println!("{line}");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(line.starts_with("error: "), "{output:?}");
    for word in words {
        assert!(line.contains(word), "{line:?} does not contain {word:?}");
    }
    assert!(printed(&output).is_empty(), "{output:?}");
    assert_eq!(home.check("some-org/Tiny-GGUF", &gguf()), 0, "{what} {:?}", hub.requests());
    Ok(())
}

const FILE: &str = "/resolve/";
const MODEL: &str = "/api/models/";

#[test]
fn connections_that_break_are_continued() -> Result<()> {
    let cuts: Vec<(&str, Fault)> =
        (0..10).map(|_| ("tiny.gguf", Fault::Cut { after: 29_000, times: 1 })).collect();
    let hub = arrives("ten cuts", &cuts)?;
    let parts: Vec<u64> =
        hub.requests().iter().filter(|one| one.method == "GET").map(|one| one.start).collect();
    let expect: Vec<u64> = [0].into_iter().chain((0..=10).map(|n| n * 29_000)).collect();
    assert_eq!(parts, expect, "the first request is for the list of files");
    arrives("a cut before the first byte", &[("tiny.gguf", Fault::Cut { after: 0, times: 2 })])?;
    arrives("a silent hub", &[("tiny.gguf", Fault::Stall { after: 100_000, times: 1 })])?;
    arrives("two servers that are away", &[(MODEL, status(503, "", 2)), (FILE, status(502, "", 3))])?;
    arrives("a limit of requests", &[(MODEL, status(429, "Retry-After: 1", 1)), (FILE, status(429, "", 1))])?;
    Ok(())
}

#[test]
fn wrong_parts_are_discarded() -> Result<()> {
    let cut = ("tiny.gguf", Fault::Cut { after: 90_000, times: 1 });
    arrives("no ranges", &[cut.clone(), ("tiny.gguf", Fault::RangeIgnored)])?;
    arrives("416", &[cut, ("tiny.gguf", Fault::RangeRefused { times: 1 })])?;
    arrives("other bytes once", &[("tiny.gguf", Fault::OtherBytes { times: 1 })])?;
    Ok(())
}

fn status(status: u16, headers: &'static str, times: usize) -> Fault {
    Fault::Status { status, headers, times }
}

/// More than any number of attempts.
const ALWAYS: usize = 10_000;

#[test]
fn each_failure_has_its_sentence() -> Result<()> {
    let gated = status(403, "X-Error-Code: GatedRepo", ALWAYS);
    fails(
        GGUF,
        &[(FILE, gated)],
        &["some-org/Tiny-GGUF is gated", "accept its terms at http://", "HF_TOKEN"],
    )?;
    let gated = status(401, "X-Error-Code: GatedRepo", ALWAYS);
    fails(GGUF, &[(FILE, gated)], &["is gated"])?;
    let disabled = status(403, "X-Error-Message: Access to this resource is disabled.", ALWAYS);
    fails(GGUF, &[(MODEL, disabled)], &["refuses access to some-org/Tiny-GGUF", "is disabled"])?;
    fails("some-org/Absent", &[], &["shows no model some-org/Absent without a token", "check the name"])?;
    fails("some-org/Tiny-GGUF@v9", &[], &["some-org/Tiny-GGUF has no revision v9"])?;
    fails("some-org/Tiny-GGUF:no.gguf", &[], &["has no file no.gguf", "other.gguf, tiny.gguf"])?;
    fails("some-org/Tiny-GGUF", &[], &["several GGUF files", "other.gguf, tiny.gguf"])?;
    fails("no-name", &[], &["\"no-name\" is no name of a model", "organisation/name"])?;
    fails(GGUF, &[(MODEL, status(429, "Retry-After: 3600", ALWAYS))], &["no more requests for 3600 s"])?;
    fails(
        GGUF,
        &[(MODEL, status(429, "RateLimit: \"api\";r=0;t=299", ALWAYS))],
        &["no more requests for 299 s"],
    )?;
    fails(GGUF, &[(MODEL, Fault::NoHub)], &["no JSON", "HF_ENDPOINT"])?;
    fails(GGUF, &[(FILE, Fault::NoEtag)], &["without the checksum", "HF_ENDPOINT"])?;
    fails(GGUF, &[(FILE, Fault::SaidEtag("../../x"))], &["the tag \"../../x\"", "no checksum"])?;
    fails(GGUF, &[("tiny.gguf", Fault::OtherBytes { times: ALWAYS })], &["tiny.gguf", "checksum", "twice"])?;
    fails(GGUF, &[("tiny.gguf", Fault::TooLong)], &["300010 bytes instead of 300000", "twice"])?;
    fails(
        GGUF,
        &[("tiny.gguf", Fault::SaidSize(1 << 60))],
        &["the disk of", "needs another 1152921504.6 GB", "HF_HUB_CACHE"],
    )?;
    Ok(())
}

/// Each of these waits for several attempts.
#[test]
fn failures_that_last_have_their_sentence() -> Result<()> {
    let cut = |after| ("tiny.gguf", Fault::Cut { after, times: ALWAYS });
    std::thread::scope(|scope| {
        let checks = [
            scope.spawn(|| {
                fails(
                    GGUF,
                    &[(MODEL, Fault::Closed)],
                    &["cannot reach http://", "HF_ENDPOINT and HTTPS_PROXY"],
                )
            }),
            scope.spawn(|| {
                fails(GGUF, &[(MODEL, status(500, "", ALWAYS))], &["cannot reach", "it answers 500"])
            }),
            scope.spawn(|| {
                let cuts = [("tiny.gguf", Fault::Cut { after: 100_000, times: 1 }), cut(0)];
                fails(
                    GGUF,
                    &cuts,
                    &["the download of tiny.gguf", "interrupted at 100000 bytes", "start again"],
                )
            }),
            scope.spawn(|| {
                fails(
                    GGUF,
                    &[("tiny.gguf", Fault::TooShort)],
                    &["tiny.gguf", "150000 bytes instead of 300000"],
                )
            }),
            scope.spawn(|| {
                let faults = [("tiny.gguf", Fault::Stall { after: 0, times: ALWAYS })];
                fails(GGUF, &faults, &["cannot reach", "nothing came for 1 s"])
            }),
        ];
        checks.into_iter().try_for_each(|check| check.join().expect("the check does not panic"))
    })
}

/// The token goes to the hub, and never to the host that has the large files.
#[test]
fn the_token_stays_at_the_hub() -> Result<()> {
    let hub = hub()?;
    hub.redirect();
    hub.require("hf_right");
    let home = HubHome::new(&hub)?;
    fails_at(&hub, &home, GGUF, &["shows no model", "set HF_TOKEN if the model is private"])?;
    let home = home.with("HF_TOKEN", "hf_wrong");
    fails_at(&hub, &home, GGUF, &["shows no model", "that the token may read it"])?;
    hub.requests();
    let home = home.with("HF_TOKEN", "hf_right");
    let output = home.run(&["pull", GGUF])?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read(printed(&output))?, large());
    let requests = hub.requests();
    assert!(requests.iter().any(|request| request.is_elsewhere), "{requests:?}");
    for request in requests {
        assert_eq!(request.has_token, !request.is_elsewhere, "{request:?}");
    }
    Ok(())
}

/// The other host refuses an address that has expired. The hub gives a new one.
#[test]
fn an_expired_address_is_renewed() -> Result<()> {
    let hub = hub()?;
    hub.redirect();
    hub.fault(ELSEWHERE, status(403, "", 1));
    let home = HubHome::new(&hub)?;
    assert!(home.run(&["pull", GGUF])?.status.success());
    let places: Vec<bool> = hub.requests().iter().map(|request| request.is_elsewhere).collect();
    assert!(places.ends_with(&[false, true, false, true]), "{places:?}");
    Ok(())
}

/// What exists as a path is a path. What does not exist and may be both has both answers.
#[test]
fn a_path_comes_before_a_name() -> Result<()> {
    let (_, files) = sharded()?;
    let hub = hub()?;
    let home = HubHome::new(&hub)?;
    let refused = |model: &str, words: &[&str]| -> Result<()> {
        let output = home.run(&["--model", model, "--set", "frontend.port=0"])?;
        let line = last_line(&output);
        println!("{line}");
        words.iter().for_each(|word| assert!(line.contains(word), "{output:?}"));
        assert_eq!(output.status.code(), Some(1));
        Ok(())
    };
    refused("no/model", &["no/model is neither a file or folder here", "shows no model no/model"])?;
    assert_eq!(hub.requests().len(), 1);
    for path in ["/no/model", "no/such/model", "./model", "model", "models/x.gguf"] {
        refused(path, &[path])?;
    }
    assert_eq!(hub.requests().len(), 0, "a path asks no hub");
    // A folder with the name of the model.
    let place = home.cache().with_file_name("work").join(REPO);
    fs::create_dir_all(&place)?;
    files
        .iter()
        .filter(|(name, _)| !name.contains('/'))
        .try_for_each(|(name, bytes)| fs::write(place.join(name), bytes))?;
    let mut command =
        home.command(&["--model", REPO, "--set", "frontend.port=0", "--set", "engine.kv_bytes=4MiB"])?;
    command.current_dir(home.cache().with_file_name("work"));
    let process = Process::start_command(command)?;
    process.wait_healthy("frontend.port")?;
    assert_eq!(hub.requests().len(), 0);
    Ok(())
}

/// SIGTERM ends the process, and the next start continues.
#[test]
fn a_stopped_download_is_continued() -> Result<()> {
    let hub = hub()?;
    let home = HubHome::new(&hub)?;
    let heard = hub.alarm(100_000, true);
    let mut process = home.start(&["pull", GGUF])?;
    heard.recv_timeout(STATE_WITHIN).context("the download does not begin")?;
    let partial =
        home.repo("some-org/Tiny-GGUF").join(format!("blobs/{}.incomplete", etag("tiny.gguf", &large())));
    let has_begun = || Ok(fs::metadata(&partial).is_ok_and(|found| found.len() > 0));
    integration_tests::process::until("bytes have arrived", STATE_WITHIN, has_begun)?;
    process.signal("-TERM")?;
    let status = process.wait()?;
    assert_eq!(status.code(), Some(143), "{}", process.log());
    assert!(process.log().contains("SIGTERM ended the process before it was ready"), "{}", process.log());
    hub.resume();
    hub.requests();
    let output = home.run(&["pull", GGUF])?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read(printed(&output))?, large());
    let starts: Vec<u64> = hub.requests().iter().map(|request| request.start).collect();
    assert!(starts.iter().any(|start| *start > 0), "{starts:?}");
    Ok(())
}

/// Ends a process at 50 moments. Nothing that is there is ever broken, and the last start finishes.
#[test]
fn killed_downloads_leave_nothing_broken() -> Result<()> {
    let (_, files) = sharded()?;
    let hub = FakeHub::start()?;
    hub.put(REPO, files.clone());
    let needed: usize = files.len() - 3;
    let total: usize = files.values().map(Vec::len).sum();
    let mut random = 7u64;
    for round in 0..10 {
        let home = HubHome::new(&hub)?;
        for kill in 0..5 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (random >> 33) % (total as u64 / 4);
            // Without a pause the kill comes while bytes arrive, are written, or get their name.
            let heard = hub.alarm(at, kill % 2 == 0);
            let mut child = home.command(&["pull", REPO])?.spawn()?;
            // The download may be complete before so many bytes were sent.
            while heard.recv_timeout(Duration::from_millis(5)).is_err() && child.try_wait()?.is_none() {}
            child.kill()?;
            child.wait()?;
            hub.resume();
            home.check(REPO, &files);
        }
        let output = home.run(&["pull", REPO])?;
        assert!(output.status.success(), "round {round}: {output:?}");
        assert_eq!(home.check(REPO, &files), needed, "round {round}");
    }
    Ok(())
}

/// A part of a file that is wrong, as after a loss of power, and a blob of another size.
#[test]
fn a_damaged_cache_is_repaired() -> Result<()> {
    let hub = hub()?;
    let home = HubHome::new(&hub)?;
    let blobs = home.repo("some-org/Tiny-GGUF").join("blobs");
    let tag = etag("tiny.gguf", &large());
    fs::create_dir_all(&blobs)?;
    for (name, bytes) in [
        (format!("{tag}.incomplete"), vec![0; 1000]),
        (format!("{tag}.incomplete"), vec![0; 400_000]),
        (format!("{tag}.incomplete"), vec![0; 300_000]),
        (tag.clone(), large()[..1000].to_vec()),
    ] {
        fs::write(blobs.join(&name), bytes)?;
        let output = home.run(&["pull", GGUF])?;
        assert!(output.status.success(), "{output:?}");
        assert_eq!(fs::read(printed(&output))?, large(), "{name}");
        fs::remove_file(blobs.join(&tag))?;
    }
    Ok(())
}

//! One `runtime` process, and a sender with its receiver.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Longest wait for anything that a healthy process does at once, or within a minute where it has the machine to itself: it may have
/// to share that with five more tests.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The binary that `cargo xtask test` builds before the tests run.
///
/// # Errors
/// It is not there.
pub fn binary() -> Result<PathBuf> {
    near("runtime", "cargo build -p runtime")
}

/// The example `failing_device`, which is `runtime` with an engine that fails when it is told to.
///
/// # Errors
/// It is not there.
pub fn failing_device() -> Result<PathBuf> {
    near("examples/failing_device", "cargo build -p integration-tests --examples")
}

/// A program of the package `examples`.
///
/// # Errors
/// It is not there.
pub fn example(name: &str) -> Result<PathBuf> {
    near(&format!("examples/{name}"), "cargo build -p examples --examples")
}

/// A program in the folder of this one, or above it.
fn near(name: &str, build: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let folders = here.ancestors().skip(1).take(3).map(|folder| folder.join(name));
    let found = folders.into_iter().find(|path| path.is_file());
    found.with_context(|| format!("no {name} near {}; run `{build}`", here.display()))
}

#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    grown: Condvar,
}

/// A running `runtime`; killed when dropped.
pub struct Process {
    child: Child,
    log: Arc<Log>,
    name: String,
}

impl Process {
    /// Starts `runtime` with these arguments and no `BATON_` or `UCX_` variable but `variables`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        Self::start_program(&binary()?, arguments, variables)
    }

    /// The same with another program that takes `runtime`'s arguments.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_program(program: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        Self::spawn(Command::new(program), arguments, variables)
    }

    /// As [`start`](Self::start), with a hard limit of open files.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_with_open_files(most: u32, arguments: &[&str]) -> Result<Self> {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {most} && exec \"$@\""), "sh"]).arg(binary()?);
        Self::spawn(shell, arguments, &[])
    }

    fn spawn(mut command: Command, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        for (name, _) in std::env::vars() {
            if name.starts_with("BATON_") || name.starts_with("UCX_") {
                command.env_remove(name);
            }
        }
        command.args(arguments).envs(variables.iter().copied());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let stderr = child.stderr.take().context("stderr was piped")?;
        let log = Arc::new(Log::default());
        let writer = log.clone();
        std::thread::spawn(move || collect(stderr, &writer));
        Ok(Self { child, log, name: arguments.join(" ") })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        self.log.lines.lock().unwrap_or_else(PoisonError::into_inner).0.join("\n")
    }

    /// Waits for a log line that holds every one of `words`, and returns it.
    ///
    /// # Errors
    /// The process ended or [`PATIENCE`] did; the log is in the message.
    pub fn wait_line(&self, words: &[&str]) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        let mut lines = self.log.lines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(line) = lines.0.iter().find(|line| words.iter().all(|word| line.contains(word))) {
                return Ok(line.clone());
            }
            let left = end.saturating_duration_since(Instant::now());
            if lines.1 || left.is_zero() {
                bail!(
                    "no line with {words:?} from `runtime {}`; it said:\n{}",
                    self.name,
                    lines.0.join("\n")
                );
            }
            lines = self.log.grown.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The address in the line that says what listens under `key`.
    ///
    /// # Errors
    /// As [`wait_line`](Self::wait_line).
    pub fn address(&self, key: &str) -> Result<String> {
        let line = self.wait_line(&["listening", key])?;
        let found = line.split([' ', '"', '=']).find(|word| word.contains("127.0.0.1:"));
        let address = found.with_context(|| format!("no address in {line:?}"))?;
        Ok(address.trim_start_matches("http://").to_owned())
    }

    /// Sends a signal, by number.
    ///
    /// # Errors
    /// `kill` fails.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let status = Command::new("kill").arg(signal).arg(self.pid().to_string()).status()?;
        if status.success() { Ok(()) } else { bail!("kill {signal} {}: {status}", self.pid()) }
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// It has not within [`PATIENCE`].
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let end = Instant::now() + PATIENCE;
        // The log closes when the process ends; the status follows at once.
        let mut lines = self.log.lines.lock().unwrap_or_else(PoisonError::into_inner);
        while !lines.1 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("`runtime {}` has not ended; it said:\n{}", self.name, lines.0.join("\n"));
            }
            lines = self.log.grown.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(lines);
        Ok(self.child.wait()?)
    }

    /// Resident memory in MiB.
    ///
    /// # Errors
    /// It is gone.
    pub fn resident_mib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
    }

    /// Processor time that the process has used.
    ///
    /// # Errors
    /// It is gone.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let fields: Vec<&str> = stat.rsplit_once(") ").context("a stat line")?.1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        // USER_HZ is 100 on every Linux that Rust supports.
        Ok(Duration::from_millis(ticks * 10))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended is fine too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(stderr: impl Read, log: &Log) {
    for line in BufReader::new(stderr).lines() {
        let Ok(line) = line else { break };
        log.lines.lock().unwrap_or_else(PoisonError::into_inner).0.push(line);
        log.grown.notify_all();
    }
    log.lines.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
    log.grown.notify_all();
}

/// What tests and programs do not want to be told of each time: a request is to be computed and handed over although another one
/// like it was, and although the sender is busy; who wants to see pages shared turns that on again.
const ALWAYS_HANDED_OVER: [&str; 4] =
    ["--set", "engine.prefix_cache=false", "--set", "frontend.local_if_sooner_by=1h"];

/// Arguments that let a process take any free port.
const ANY_PORTS: [&str; 6] = ["--set", "http.port=0", "--set", "frontend.port=0", "--set", "link.port=0"];

/// A receiver and a sender that have found each other.
pub struct Pair {
    /// The receiver.
    pub receiver: Process,
    /// The sender.
    pub sender: Process,
    /// Where the pair serves.
    pub frontend: String,
}

/// Starts a receiver with these `--set`s on free ports, ready for senders.
///
/// # Errors
/// It does not come up.
pub fn start_receiver(sets: &[&str]) -> Result<Process> {
    start_receiver_with(sets, &[])
}

/// As [`start_receiver`], with these variables.
///
/// # Errors
/// It does not come up.
pub fn start_receiver_with(sets: &[&str], variables: &[(&str, &str)]) -> Result<Process> {
    start_role("receiver", sets, variables)
}

fn start_role(role: &str, sets: &[&str], variables: &[(&str, &str)]) -> Result<Process> {
    let mut arguments = vec!["--role", role];
    arguments.extend(ANY_PORTS);
    arguments.extend(ALWAYS_HANDED_OVER);
    sets.iter().for_each(|set| arguments.extend(["--set", set]));
    let process = Process::start(&arguments, variables)?;
    process.wait_line(&["ready in"])?;
    Ok(process)
}

/// Starts a sender for `receiver`.
///
/// # Errors
/// It does not come up.
pub fn start_sender(receiver: &Process, sets: &[&str]) -> Result<Process> {
    start_sender_with(receiver, sets, &[])
}

/// As [`start_sender`], with these variables.
///
/// # Errors
/// It does not come up.
pub fn start_sender_with(receiver: &Process, sets: &[&str], variables: &[(&str, &str)]) -> Result<Process> {
    let link = receiver.address("link.port")?;
    let dial = format!("link.peers={link}");
    let mut arguments = vec!["--role", "sender", "--set", "http.port=0", "--set", &dial];
    arguments.extend(ALWAYS_HANDED_OVER);
    sets.iter().for_each(|set| arguments.extend(["--set", set]));
    Process::start(&arguments, variables)
}

/// Asks again and again whether it holds.
///
/// # Errors
/// It does not within `limit`, or cannot be asked.
pub fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    while !holds()? {
        ensure!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

impl Pair {
    /// Starts both with the same `--set`s and waits until pages can travel.
    ///
    /// # Errors
    /// One does not come up.
    pub fn start(sets: &[&str]) -> Result<Self> {
        Self::start_with(sets, &[])
    }

    /// As [`start`](Self::start), with these variables.
    ///
    /// # Errors
    /// One does not come up.
    pub fn start_with(sets: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        let receiver = start_receiver_with(sets, variables)?;
        let sender = start_sender_with(&receiver, sets, variables)?;
        sender.wait_line(&["receiver ready"])?;
        receiver.wait_line(&["sender ready"])?;
        let frontend = receiver.address("frontend.port")?;
        Ok(Self { receiver, sender, frontend })
    }
}

/// Starts a process of its own and returns it with its frontend's address.
///
/// # Errors
/// It does not come up.
pub fn start_local(sets: &[&str]) -> Result<(Process, String)> {
    let process = start_role("local", sets, &[])?;
    let address = process.address("frontend.port")?;
    Ok((process, address))
}

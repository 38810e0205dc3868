//! One `runtime` process, a sender with its receiver, and two nodes.

mod log;
mod nodes;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::client::{get, metrics};
use crate::deadline::STATE_WITHIN;
use log::Log;
pub use log::{Event, field};
pub use nodes::{Nodes, free_port, start_member, start_node, start_proxy};

/// The binary that `cargo xtask test` builds before the tests run.
///
/// # Errors
/// The binary does not exist.
pub fn binary() -> Result<PathBuf> {
    near("runtime", "cargo build -p runtime")
}

/// The example `failing_device`: `runtime` with an engine that fails on request.
///
/// # Errors
/// The binary does not exist.
pub fn failing_device() -> Result<PathBuf> {
    near("examples/failing_device", "cargo build -p integration-tests --examples")
}

/// A program of the package `examples`.
///
/// # Errors
/// The binary does not exist.
pub fn example(name: &str) -> Result<PathBuf> {
    near(&format!("examples/{name}"), "cargo build -p examples --examples")
}

/// A program in the folder of this program, or in one of the two folders above it.
fn near(name: &str, build: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let folders = here.ancestors().skip(1).take(3).map(|folder| folder.join(name));
    let found = folders.into_iter().find(|path| path.is_file());
    found.with_context(|| format!("no {name} near {}; run `{build}`", here.display()))
}

/// A running `runtime`; killed when dropped.
pub struct Process {
    child: Child,
    log: Arc<Log>,
    name: String,
}

impl Process {
    /// Starts `runtime` with these arguments. The process has `variables` and no other variable that starts with `BATON_` or `UCX_`.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        Self::start_program(&binary()?, arguments, variables)
    }

    /// As [`start`](Self::start), with another program that takes the arguments of `runtime`.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start_program(program: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        Self::spawn(Command::new(program), arguments, variables)
    }

    /// As [`start`](Self::start), with a hard limit of open files.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start_with_open_files(most: u32, arguments: &[&str]) -> Result<Self> {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {most} && exec \"$@\""), "sh"]).arg(binary()?);
        Self::spawn(shell, arguments, &[])
    }

    /// Starts a command that has its arguments and variables already.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start_command(command: Command) -> Result<Self> {
        Self::spawn(command, &[], &[])
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
        std::thread::spawn(move || writer.collect(stderr));
        Ok(Self { child, log, name: arguments.join(" ") })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits for a log line that reports `event` and contains each of `words`.
    ///
    /// # Errors
    /// There is no such line by the end of the process or within [`STATE_WITHIN`]. The error has the log.
    pub fn wait_event(&self, event: Event, words: &[&str]) -> Result<String> {
        let is_it = |line: &str| event.is_in(line) && words.iter().all(|word| line.contains(word));
        let found = self.log.wait_line(Instant::now() + STATE_WITHIN, is_it);
        found.with_context(|| self.failure(&format!("no line reports {event:?} with {words:?}")))
    }

    /// Number of log lines that report `event`.
    pub fn count_events(&self, event: Event) -> usize {
        self.log().lines().filter(|line| event.is_in(line)).count()
    }

    fn failure(&self, what: &str) -> String {
        format!("{what}; `runtime {}` logged:\n{}", self.name, self.log())
    }

    /// The address of the port that is configured under `key`. That of a port with TLS begins with `https://`.
    ///
    /// # Errors
    /// As [`wait_event`](Self::wait_event).
    pub fn address(&self, key: &str) -> Result<String> {
        let line = self.wait_event(Event::Listening, &[&format!("key=\"{key}\"")])?;
        let address = field(&line, "url").or(field(&line, "address"));
        let address = address.with_context(|| format!("no address in {line:?}"))?;
        Ok(address.trim_start_matches("http://").to_owned())
    }

    /// Calls `holds`, which asks the process for its state, until it returns true.
    ///
    /// # Errors
    /// `holds` fails, or it returns false until the process has ended or [`STATE_WITHIN`] has passed. The error has the log.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        until(what, STATE_WITHIN, || {
            let held = holds()?;
            ensure!(held || !self.log.is_closed(), "the process has ended");
            Ok(held)
        })
        .with_context(|| self.failure(&format!("waited until {what}")))
    }

    /// Waits until `/health` of the HTTP port under `key` answers 200, and returns the port's address.
    ///
    /// # Errors
    /// As [`until`](Self::until).
    pub fn wait_healthy(&self, key: &str) -> Result<String> {
        let address = self.address(key)?;
        // While a port is bound but not yet served, there is no answer.
        let is_healthy = || Ok(get(&address, "/health").is_ok_and(|(status, _)| status == 200));
        self.until("the process is healthy", is_healthy)?;
        Ok(address)
    }

    /// Waits until pages can travel between the process and exactly `peers` peers.
    ///
    /// # Errors
    /// As [`until`](Self::until).
    pub fn wait_peers(&self, peers: u64) -> Result<()> {
        let address = self.wait_healthy("http.port")?;
        self.until(&format!("the process has {peers} peers"), || {
            Ok(metrics(&address)?.get("baton_sessions_ready")? == peers)
        })
    }

    /// Sends a signal, such as `-TERM`.
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
    /// The process has not ended within [`STATE_WITHIN`].
    pub fn wait(&mut self) -> Result<ExitStatus> {
        // The log closes when the process ends. The status is available immediately after that.
        if !self.log.wait_closed(Instant::now() + STATE_WITHIN) {
            bail!(self.failure("the process has not ended"));
        }
        Ok(self.child.wait()?)
    }

    /// Resident memory in MiB.
    ///
    /// # Errors
    /// The process has ended.
    pub fn resident_mib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("the status of the process has no VmRSS")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
    }

    /// CPU time that the process has used.
    ///
    /// # Errors
    /// The process has ended.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let fields: Vec<&str> =
            stat.rsplit_once(") ").context("the stat line of the process has no `)`")?.1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        // USER_HZ is 100 on every Linux that Rust supports.
        Ok(Duration::from_millis(ticks * 10))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both calls fail only if the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Settings of all processes unless a test overrides them: a peer prefills every prompt, even if the prompt has been computed before or the
/// peer is busy.
const ALWAYS_HANDED_OVER: [&str; 4] =
    ["--set", "engine.prefix_cache=false", "--set", "frontend.local_if_sooner_by=1h"];

/// Arguments that bind any free ports.
const ANY_PORTS: [&str; 6] = ["--set", "http.port=0", "--set", "frontend.port=0", "--set", "link.port=0"];

/// A receiver and a sender that are connected.
pub struct Pair {
    /// The receiver.
    pub receiver: Process,
    /// The sender.
    pub sender: Process,
    /// The address of the receiver's frontend.
    pub frontend: String,
}

/// Starts a receiver with these settings on free ports and waits until it serves.
///
/// # Errors
/// The process does not start or does not become ready.
pub fn start_receiver(sets: &[&str]) -> Result<Process> {
    start_receiver_with(sets, &[])
}

/// As [`start_receiver`], with these environment variables.
///
/// # Errors
/// The process does not start or does not become ready.
pub fn start_receiver_with(sets: &[&str], variables: &[(&str, &str)]) -> Result<Process> {
    start_role("receiver", sets, variables)
}

fn start_role(role: &str, sets: &[&str], variables: &[(&str, &str)]) -> Result<Process> {
    let mut arguments = vec!["--role", role];
    arguments.extend(ANY_PORTS);
    arguments.extend(ALWAYS_HANDED_OVER);
    sets.iter().for_each(|set| arguments.extend(["--set", set]));
    let process = Process::start(&arguments, variables)?;
    process.wait_healthy("frontend.port")?;
    Ok(process)
}

/// Starts a sender for `receiver`.
///
/// # Errors
/// The process does not start or does not become ready.
pub fn start_sender(receiver: &Process, sets: &[&str]) -> Result<Process> {
    start_sender_with(receiver, sets, &[])
}

/// As [`start_sender`], with these environment variables.
///
/// # Errors
/// The process does not start or does not become ready.
pub fn start_sender_with(receiver: &Process, sets: &[&str], variables: &[(&str, &str)]) -> Result<Process> {
    let link = receiver.address("link.port")?;
    let dial = format!("link.peers={link}");
    let mut arguments = vec!["--role", "sender", "--set", "http.port=0", "--set", &dial];
    arguments.extend(ALWAYS_HANDED_OVER);
    sets.iter().for_each(|set| arguments.extend(["--set", set]));
    Process::start(&arguments, variables)
}

/// Calls `holds` until it returns true. The pauses grow with the time waited, so that a long wait needs few calls and is measured to 5 %.
///
/// # Errors
/// `holds` fails, or it returns false until `limit` has passed.
pub fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !holds()? {
        ensure!(began.elapsed() < limit, "waited {limit:?} until {what}");
        std::thread::sleep(
            (began.elapsed() / 20).clamp(Duration::from_millis(2), Duration::from_millis(100)),
        );
    }
    Ok(())
}

impl Pair {
    /// Starts both with the same settings and waits until pages can travel.
    ///
    /// # Errors
    /// A process does not start or does not become ready.
    pub fn start(sets: &[&str]) -> Result<Self> {
        Self::start_with(sets, &[])
    }

    /// As [`start`](Self::start), with these environment variables.
    ///
    /// # Errors
    /// A process does not start or does not become ready.
    pub fn start_with(sets: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        let receiver = start_receiver_with(sets, variables)?;
        let sender = start_sender_with(&receiver, sets, variables)?;
        receiver.wait_peers(1)?;
        sender.wait_peers(1)?;
        let frontend = receiver.address("frontend.port")?;
        Ok(Self { receiver, sender, frontend })
    }
}

/// Starts a process with the role `local` and returns it with the address of its frontend.
///
/// # Errors
/// The process does not start or does not become ready.
pub fn start_local(sets: &[&str]) -> Result<(Process, String)> {
    let process = start_role("local", sets, &[])?;
    let address = process.address("frontend.port")?;
    Ok((process, address))
}

//! One launched process: its logs on the screen, its end with ours.
//!
//! This file alone has `unsafe` in this crate: what the standard library does not offer.
#![allow(unsafe_code)]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};

use super::screen::Screen;

/// How often a process is looked at while waiting for its end.
const POLL: Duration = Duration::from_millis(20);

/// A running process; killed when dropped.
pub(super) struct Child {
    name: &'static str,
    process: Process,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Child {
    /// Starts the runtime in a role. Call from a thread that lives as long as the demo: on Linux the system kills the
    /// process when the thread that started it ends, so that not even `kill -9` of the demo leaves it behind.
    pub(super) fn start(
        runtime: &Path,
        name: &'static str,
        flags: &[String],
        screen: &Screen,
    ) -> Result<Self> {
        let mut command = Command::new(runtime);
        command.args(["--role", name]).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        die_with_us(&mut command);
        let mut process = command.spawn().with_context(|| format!("cannot start {}", runtime.display()))?;
        let out = process.stdout.take().map(|pipe| follow(pipe, name, screen));
        let err = process.stderr.take().map(|pipe| follow(pipe, name, screen));
        Ok(Self { name, process, readers: out.into_iter().chain(err).collect() })
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// How the process ended, if it has; by then all that it logged is on the screen.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.process.try_wait().with_context(|| format!("cannot wait for the {}", self.name))?;
        if status.is_some() {
            for reader in self.readers.drain(..) {
                // A reader has nothing to report, and a panic of it has been printed.
                let _ = reader.join();
            }
        }
        Ok(status)
    }

    /// Waits for the end, at most until `deadline`.
    pub(super) fn wait_until(&mut self, deadline: Instant) -> Result<Option<ExitStatus>> {
        loop {
            let status = self.ended()?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
            thread::sleep(POLL);
        }
    }

    /// Asks the process to end.
    pub(super) fn terminate(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            // It was not waited for yet, so the id is still its own.
            let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        }
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only for a process that is gone.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Copies lines to the screen until the pipe closes.
fn follow(pipe: impl Read + Send + 'static, name: &'static str, screen: &Screen) -> thread::JoinHandle<()> {
    let screen = screen.clone();
    thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
            screen.log(name, String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
    })
}

#[cfg(target_os = "linux")]
fn die_with_us(command: &mut Command) {
    let parent = getpid();
    // SAFETY: between fork and exec only async-signal-safe calls are made (prctl, getppid), and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // We may have died before the call.
            if getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_us(_command: &mut Command) {}

/// The signal that asked the demo to end; 0 while none has.
static ASKED: AtomicI32 = AtomicI32::new(0);

extern "C" fn note_signal(signal: libc::c_int) {
    ASKED.store(signal, Ordering::Relaxed);
}

/// From now on SIGINT and SIGTERM do not end the demo, they are noted. A new process starts with the usual handling.
pub(super) fn note_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { libc::signal(signal, note_signal as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// Which signal has asked the demo to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Ctrl-C: the terminal has sent it to the processes too.
    Interrupt,
    /// SIGTERM, to us alone.
    Terminate,
}

pub(super) fn asked_to_end() -> Option<Asked> {
    match ASKED.load(Ordering::Relaxed) {
        0 => None,
        libc::SIGINT => Some(Asked::Interrupt),
        _ => Some(Asked::Terminate),
    }
}

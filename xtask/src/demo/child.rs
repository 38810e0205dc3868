//! One launched process. Its log goes to the screen, and the process ends when the demo ends.
//!
//! This is the only file of the crate with `unsafe`. It calls what the standard library does not offer.
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

/// Pause between two looks at a process whose end is awaited.
const POLL: Duration = Duration::from_millis(20);

/// A running process; killed when dropped.
pub(super) struct Child {
    name: &'static str,
    process: Process,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Child {
    /// Starts the runtime in a role. The calling thread must live as long as the demo: on Linux the kernel kills the process when the thread
    /// that started it ends. So the process ends also after `kill -9` of the demo.
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

    /// The exit status, if the process has ended. Its whole log is then on the screen.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.process.try_wait().with_context(|| format!("cannot wait for the {}", self.name))?;
        if status.is_some() {
            for reader in self.readers.drain(..) {
                // A reader returns nothing, and its panic has been printed.
                let _ = reader.join();
            }
        }
        Ok(status)
    }

    /// Waits for the end of the process until `deadline`.
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
            // The process has not been waited for, so its id is still valid.
            let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        }
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both calls fail only if the process has ended.
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
            // The parent may have ended before the call.
            if getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_us(_command: &mut Command) {}

/// The signal that asked the demo to end; 0 if there was none.
static ASKED: AtomicI32 = AtomicI32::new(0);

extern "C" fn note_signal(signal: libc::c_int) {
    ASKED.store(signal, Ordering::Relaxed);
}

/// From now on SIGINT and SIGTERM do not end the demo but are recorded. Child processes start with the default handling.
pub(super) fn note_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { libc::signal(signal, note_signal as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// The signal that asked the demo to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Ctrl-C. The terminal has sent it to the child processes too.
    Interrupt,
    /// SIGTERM to the demo alone.
    Terminate,
}

pub(super) fn asked_to_end() -> Option<Asked> {
    match ASKED.load(Ordering::Relaxed) {
        0 => None,
        libc::SIGINT => Some(Asked::Interrupt),
        _ => Some(Asked::Terminate),
    }
}

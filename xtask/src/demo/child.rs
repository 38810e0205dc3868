//! One launched process. Its log goes to the screen or into a file, and the process ends when the demo ends.
//!
//! This is the only file of the crate with `unsafe`. It calls what the standard library does not offer.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
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

/// The place of a process's log.
pub(super) enum Log<'a> {
    Screen(&'a Screen),
    File(PathBuf),
}

/// A running process; killed when dropped.
pub(super) struct Child {
    name: String,
    /// The file of its log. Without a file, its log is on the screen.
    log: Option<PathBuf>,
    process: Process,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Child {
    /// Starts a command. The calling thread must live as long as the demo: on Linux the kernel kills the process when the thread
    /// that started it ends. So the process ends also after `kill -9` of the demo.
    pub(super) fn start(name: &str, mut command: Command, log: Log<'_>) -> Result<Self> {
        die_with_us(&mut command);
        command.stdin(Stdio::null());
        match &log {
            Log::Screen(_) => command.stdout(Stdio::piped()).stderr(Stdio::piped()),
            Log::File(path) => {
                let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
                command.stdout(file.try_clone()?).stderr(file)
            }
        };
        let spawned = command.spawn();
        let mut process =
            spawned.with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let (log, readers) = match log {
            Log::Screen(screen) => {
                let out = process.stdout.take().map(|pipe| follow(pipe, name, screen));
                let err = process.stderr.take().map(|pipe| follow(pipe, name, screen));
                (None, out.into_iter().chain(err).collect())
            }
            Log::File(path) => (Some(path), Vec::new()),
        };
        Ok(Self { name: name.to_owned(), log, process, readers })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Where to read about its end. Names the last line of a file.
    pub(super) fn last_words(&self) -> String {
        let Some(path) = &self.log else { return "see the end of its log above".into() };
        let log = std::fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("its log is empty");
        format!("{last} ({})", path.display())
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

impl Child {
    /// Ends the process with SIGKILL and waits for its end.
    pub(super) fn kill(&mut self) {
        // Both calls fail only if the process has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Copies lines to the screen until the pipe closes.
fn follow(pipe: impl Read + Send + 'static, name: &str, screen: &Screen) -> thread::JoinHandle<()> {
    let (name, screen) = (name.to_owned(), screen.clone());
    thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
            screen.log(&name, String::from_utf8_lossy(&line).trim_end());
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

//! The processes of the demo: waits until they are ready, notices when one ends, and ends them.

use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::child::{self, Asked, Child};
use super::screen::Screen;

/// Loading the model takes seconds, and longer on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How long the processes may take to end after a signal.
const END_WITHIN: Duration = Duration::from_secs(30);
/// How long to wait after Ctrl-C before sending SIGTERM. Ctrl-C has reached the processes only if it came from the terminal.
const INTERRUPT_WITHIN: Duration = Duration::from_secs(10);
/// How long a process may live after its connections have broken.
const DYING: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(100);

/// Processes that end together.
pub(super) struct Group {
    children: Vec<Child>,
    screen: Screen,
}

impl Group {
    /// A group without processes. From now on signals are recorded.
    pub(super) fn new(screen: &Screen) -> Self {
        child::note_signals();
        Self { children: Vec::new(), screen: screen.clone() }
    }

    pub(super) fn add(&mut self, child: Child) {
        self.children.push(child);
    }

    /// The process id of a process.
    pub(super) fn pid(&self, name: &str) -> Result<u32> {
        let child = self.children.iter().find(|child| child.name() == name);
        child.map(Child::pid).with_context(|| format!("{name} does not run"))
    }

    /// Kills a process with SIGKILL. It is no longer a part of the group.
    pub(super) fn kill(&mut self, name: &str) {
        // A child is killed when it is dropped.
        self.children.retain(|child| child.name() != name);
    }

    /// Waits until `missing` returns nothing. Otherwise it returns what the demo waits for.
    pub(super) fn wait_until_ready(&mut self, mut missing: impl FnMut() -> Option<String>) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            self.require_alive()?;
            self.require_unasked()?;
            let Some(missing) = missing() else { return Ok(()) };
            if Instant::now() >= deadline {
                bail!("the demo is not ready within {} s: {missing}", READY_WITHIN.as_secs());
            }
            thread::sleep(POLL);
        }
    }

    /// Fails if a process has ended although the demo was not asked to end.
    pub(super) fn require_alive(&mut self) -> Result<()> {
        if child::asked_to_end().is_some() {
            return Ok(());
        }
        for process in &mut self.children {
            if let Some(status) = process.ended()? {
                bail!("the {} has ended ({status}): {}", process.name(), process.last_words());
            }
        }
        Ok(())
    }

    /// Called when a request has failed. Fails if a process has ended or the demo was asked to end, which explains the failure.
    pub(super) fn explain(&mut self) -> Result<()> {
        // A connection may break shortly before its process ends.
        let deadline = Instant::now() + DYING;
        while Instant::now() < deadline {
            self.require_alive()?;
            self.require_unasked()?;
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// If the demo was asked to end, ends all processes and fails.
    pub(super) fn require_unasked(&mut self) -> Result<()> {
        if let Some(asked) = child::asked_to_end() {
            self.end(asked)?;
            bail!("interrupted before the demo was complete");
        }
        Ok(())
    }

    /// Serves until a signal asks the demo to end, and then ends all processes.
    pub(super) fn serve(mut self) -> Result<()> {
        loop {
            if let Some(asked) = child::asked_to_end() {
                return self.end(asked);
            }
            self.require_alive()?;
            thread::sleep(POLL);
        }
    }

    fn end(&mut self, asked: Asked) -> Result<()> {
        self.screen.print_line("\nstopping");
        if asked == Asked::Interrupt {
            // A second signal makes the processes end at once, so the first one gets time.
            let deadline = Instant::now() + INTERRUPT_WITHIN;
            for process in &mut self.children {
                process.wait_until(deadline)?;
            }
        }
        self.stop()
    }

    /// Sends SIGTERM to all processes, the last one first, and checks their exit statuses.
    pub(super) fn stop(&mut self) -> Result<()> {
        for process in self.children.iter_mut().rev() {
            process.terminate()?;
        }
        let deadline = Instant::now() + END_WITHIN;
        for process in &mut self.children {
            let status = process.wait_until(deadline)?;
            require_clean(process.name(), status)?;
        }
        self.screen.print_line(&format!("{} processes ended cleanly", self.children.len()));
        Ok(())
    }
}

fn require_clean(name: &str, status: Option<ExitStatus>) -> Result<()> {
    match status {
        Some(status) => ensure!(status.success(), "the {name} did not end cleanly: {status}"),
        None => bail!("the {name} did not end within {} s and was killed", END_WITHIN.as_secs()),
    }
    Ok(())
}

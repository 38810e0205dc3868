//! Starts the receiver and the sender, waits until they are ready, and ends them.

use std::path::Path;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::child::{self, Asked, Child};
use super::client::{self, Health};
use super::options::Ports;
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

/// Both processes.
pub(super) struct Pair {
    receiver: Child,
    sender: Child,
    ports: Ports,
    screen: Screen,
}

impl Pair {
    pub(super) fn launch(runtime: &Path, ports: Ports, screen: &Screen) -> Result<Self> {
        child::note_signals();
        let receiver = Child::start(runtime, "receiver", &ports.of_receiver(), screen)?;
        let sender = Child::start(runtime, "sender", &ports.of_sender(), screen)?;
        Ok(Self { receiver, sender, ports, screen: screen.clone() })
    }

    /// The process ids of the receiver and the sender.
    pub(super) fn pids(&self) -> (u32, u32) {
        (self.receiver.pid(), self.sender.pid())
    }

    /// Waits until the frontend serves and a sender is connected.
    pub(super) fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            self.require_alive()?;
            self.require_unasked()?;
            let last = client::health(self.ports.frontend);
            if last.is_ready() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(
                    "the demo is not ready within {} s: {}",
                    READY_WITHIN.as_secs(),
                    self.waiting_for(&last)
                );
            }
            thread::sleep(POLL);
        }
    }

    fn waiting_for(&self, health: &Health) -> String {
        format!("http://127.0.0.1:{}/health {health}", self.ports.frontend)
    }

    /// Fails if a process has ended although the demo was not asked to end.
    pub(super) fn require_alive(&mut self) -> Result<()> {
        if child::asked_to_end().is_some() {
            return Ok(());
        }
        for process in [&mut self.receiver, &mut self.sender] {
            if let Some(status) = process.ended()? {
                bail!("the {} has ended ({status}); see the end of its log above", process.name());
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

    /// If the demo was asked to end, ends both processes and fails.
    fn require_unasked(&mut self) -> Result<()> {
        if let Some(asked) = child::asked_to_end() {
            self.end(asked)?;
            bail!("interrupted before the demo was complete");
        }
        Ok(())
    }

    /// Serves until a signal asks the demo to end, and then ends both processes.
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
            self.receiver.wait_until(deadline)?;
            self.sender.wait_until(deadline)?;
        }
        self.stop()
    }

    /// Sends SIGTERM to both processes and checks their exit statuses.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.sender.terminate()?;
        self.receiver.terminate()?;
        let deadline = Instant::now() + END_WITHIN;
        for process in [&mut self.sender, &mut self.receiver] {
            let status = process.wait_until(deadline)?;
            require_clean(process.name(), status)?;
        }
        self.screen.print_line("both processes ended cleanly");
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

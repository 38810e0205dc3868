//! The receiver and the sender together: launch, readiness, end.

use std::path::Path;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::child::{self, Asked, Child};
use super::client::{self, Health};
use super::options::Ports;
use super::screen::Screen;

/// Loading the model takes seconds; on a busy machine more.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How long the processes may take to end once asked.
const END_WITHIN: Duration = Duration::from_secs(30);
/// How long Ctrl-C is left to work: it reached the processes only if it came from the terminal.
const INTERRUPT_WITHIN: Duration = Duration::from_secs(10);
/// How long a process that broke its connections may take to be gone.
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

    /// The process ids of receiver and sender.
    pub(super) fn pids(&self) -> (u32, u32) {
        (self.receiver.pid(), self.sender.pid())
    }

    /// Waits until the frontend is up and a sender is connected.
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
                bail!("not ready within {} s: {}", READY_WITHIN.as_secs(), self.waiting_for(&last));
            }
            thread::sleep(POLL);
        }
    }

    fn waiting_for(&self, health: &Health) -> String {
        format!("http://127.0.0.1:{}/health {health}", self.ports.frontend)
    }

    /// Fails if a process has ended by itself.
    pub(super) fn require_alive(&mut self) -> Result<()> {
        if child::asked_to_end().is_some() {
            return Ok(());
        }
        for process in [&mut self.receiver, &mut self.sender] {
            if let Some(status) = process.ended()? {
                bail!("the {} ended early ({status}); its last lines above say why", process.name());
            }
        }
        Ok(())
    }

    /// Called when a request went wrong: fails if a dead process or a wish to end is why.
    pub(super) fn explain(&mut self) -> Result<()> {
        // A connection may break some moments before the process that held it is gone.
        let deadline = Instant::now() + DYING;
        while Instant::now() < deadline {
            self.require_alive()?;
            self.require_unasked()?;
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Fails, after an orderly end, if somebody asked for the end.
    fn require_unasked(&mut self) -> Result<()> {
        if let Some(asked) = child::asked_to_end() {
            self.end(asked)?;
            bail!("stopped before the demo was over");
        }
        Ok(())
    }

    /// Serves until somebody asks for the end, then waits for both to end cleanly.
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
        self.screen.say("\nstopping");
        if asked == Asked::Interrupt {
            // A second signal may mean "at once" to them, so the first is given time.
            let deadline = Instant::now() + INTERRUPT_WITHIN;
            self.receiver.wait_until(deadline)?;
            self.sender.wait_until(deadline)?;
        }
        self.stop()
    }

    /// Asks both to end and checks how they did.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.sender.terminate()?;
        self.receiver.terminate()?;
        let deadline = Instant::now() + END_WITHIN;
        for process in [&mut self.sender, &mut self.receiver] {
            let status = process.wait_until(deadline)?;
            require_clean(process.name(), status)?;
        }
        self.screen.say("both processes ended cleanly");
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

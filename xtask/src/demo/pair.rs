//! Starts the receiver and the sender, and waits until they are ready.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::child::{Child, Log};
use super::client;
use super::group::Group;
use super::options::Ports;
use super::screen::Screen;

/// Both processes.
pub(super) struct Pair {
    pub(super) group: Group,
    ports: Ports,
}

impl Pair {
    pub(super) fn launch(runtime: &Path, ports: Ports, screen: &Screen) -> Result<Self> {
        let mut group = Group::new(screen);
        for (role, flags) in [("receiver", ports.of_receiver()), ("sender", ports.of_sender())] {
            let mut command = Command::new(runtime);
            command.args(["--role", role]).args(flags);
            group.add(Child::start(role, command, Log::Screen(screen))?);
        }
        Ok(Self { group, ports })
    }

    /// The process ids of the receiver and the sender.
    pub(super) fn pids(&self) -> Result<(u32, u32)> {
        Ok((self.group.pid("receiver")?, self.group.pid("sender")?))
    }

    /// Waits until the frontend serves and a sender is connected.
    pub(super) fn wait_until_ready(&mut self) -> Result<()> {
        let port = self.ports.frontend;
        self.group.wait_until_ready(|| {
            let health = client::health(port);
            (!health.is_ready()).then(|| format!("http://127.0.0.1:{port}/health {health}"))
        })
    }
}

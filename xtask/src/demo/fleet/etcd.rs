//! An etcd with one member, in a temporary folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::layout::Layout;
use crate::demo::child::{Child, Log};
use crate::demo::client;

const READY_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// A running etcd. Dropping it kills etcd and removes its folder.
pub(super) struct Etcd {
    child: Child,
    folder: PathBuf,
}

impl Etcd {
    /// Whether the program `etcd` is in `PATH`.
    pub(super) fn is_installed() -> bool {
        let mut version = Command::new("etcd");
        version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        version.status().is_ok_and(|status| status.success())
    }

    /// Starts an empty etcd and waits until it is healthy.
    pub(super) fn start(layout: &Layout, logs: &Path) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("baton-demo-etcd-{}", std::process::id()));
        let (client, peer) = (layout.etcd_url(), format!("http://127.0.0.1:{}", layout.etcd[1]));
        let mut command = Command::new("etcd");
        command
            .arg("--data-dir")
            .arg(&folder)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")]);
        let child = Child::start("etcd", command, Log::File(logs.join("etcd.log")))?;
        let mut etcd = Self { child, folder };
        etcd.wait_until_healthy(layout.etcd[0])?;
        Ok(etcd)
    }

    fn wait_until_healthy(&mut self, port: u16) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = self.child.ended()? {
                bail!("etcd has ended ({status}): {}", self.child.last_words());
            }
            match client::report(port, "/health") {
                Ok(health) if health["health"] == "true" => return Ok(()),
                Ok(health) if Instant::now() >= deadline => bail!("etcd is not healthy: {health}"),
                Err(error) if Instant::now() >= deadline => {
                    return Err(error).context("etcd does not answer");
                }
                _ => thread::sleep(POLL),
            }
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.child.kill();
        // Best effort: the folder is in the folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

//! Processes as the kernel of this host knows them: who we are, and when a peer is gone for good.
//!
//! A process that is gone puts nothing any more. That is proof where the peer runs on this host, in our PID namespace: a
//! pidfd names one process for ever, and turns readable when that process has ended.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::frame::Incarnation;

impl Incarnation {
    /// This life of this process, as `/proc` tells it.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn current() -> io::Result<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self {
            pid: std::process::id(),
            start_ticks: start_ticks("self")?,
            boot: u128::from_str_radix(&boot.trim().replace('-', ""), 16).unwrap_or_default(),
            pid_namespace: std::fs::metadata("/proc/self/ns/pid")?.ino(),
        })
    }
}

fn start_ticks(process: &str) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The command name, in parentheses, may hold spaces; the start time is the 20th field after it.
    let ticks = stat.rsplit_once(") ").and_then(|(_, after)| after.split(' ').nth(19)?.parse().ok());
    ticks.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no start time in {stat:?}")))
}

/// Whether and how the end of a peer's process can be seen from here.
#[derive(Debug)]
pub enum Watch {
    /// It cannot: another host or another PID namespace, or the kernel refuses.
    Blind,
    /// It has ended already.
    Gone,
    /// It lives, and its end will be seen.
    Alive(Pidfd),
}

/// One process, for ever: its number cannot come to mean another one.
#[derive(Debug)]
pub struct Pidfd(AsyncFd<OwnedFd>);

impl Watch {
    /// Looks for `peer` among the processes of this host. On a tokio runtime with I/O.
    pub fn new(peer: &Incarnation) -> Self {
        let Ok(ours) = Incarnation::current() else { return Self::Blind };
        if (peer.boot, peer.pid_namespace) != (ours.boot, ours.pid_namespace) {
            return Self::Blind;
        }
        let pid = i32::try_from(peer.pid).ok().and_then(Pid::from_raw);
        let fd = match pid.map_or(Err(Errno::SRCH), |pid| pidfd_open(pid, PidfdFlags::NONBLOCK)) {
            Ok(fd) => fd,
            Err(Errno::SRCH) => return Self::Gone,
            Err(_) => return Self::Blind,
        };
        // Read after the pidfd was opened: if the start time is the peer's, so is the pidfd. Where it cannot be read, the end of
        // whatever has the number now still means that the peer is gone.
        if start_ticks(&peer.pid.to_string()).is_ok_and(|ticks| ticks != peer.start_ticks) {
            return Self::Gone;
        }
        // SAFETY: an `OwnedFd` is its descriptor's only owner, names the same one for ever and closes it when dropped.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        fd.map_or(Self::Blind, |fd| Self::Alive(Pidfd(fd)))
    }
}

impl Pidfd {
    /// Waits until the process has ended.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn gone(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn incarnation_of(pid: u32) -> Incarnation {
        let start_ticks = start_ticks(&pid.to_string()).expect("it lives");
        Incarnation { pid, start_ticks, ..Incarnation::current().expect("/proc") }
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_seen() {
        let mut child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("sleep");
        let peer = incarnation_of(child.id());
        let Watch::Alive(pidfd) = Watch::new(&peer) else { panic!("a living process is watched") };
        let early = tokio::time::timeout(std::time::Duration::from_millis(50), pidfd.gone()).await;
        assert!(early.is_err(), "it lives");
        child.kill().expect("ours");
        pidfd.gone().await.expect("seen before it is waited for");
        child.wait().expect("ours");
        assert!(matches!(Watch::new(&peer), Watch::Gone));
    }

    #[tokio::test]
    async fn another_process_of_the_same_number_is_not_the_peer() {
        let ours = Incarnation::current().expect("/proc");
        assert!(matches!(Watch::new(&ours), Watch::Alive(_)));
        let before = Incarnation { start_ticks: ours.start_ticks - 1, ..ours };
        assert!(matches!(Watch::new(&before), Watch::Gone));
        assert!(matches!(Watch::new(&Incarnation { boot: !ours.boot, ..ours }), Watch::Blind));
        let elsewhere = Incarnation { pid_namespace: !ours.pid_namespace, ..ours };
        assert!(matches!(Watch::new(&elsewhere), Watch::Blind));
        assert!(matches!(Watch::new(&Incarnation { pid: u32::MAX, ..ours }), Watch::Gone));
    }
}

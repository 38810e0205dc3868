//! Processes as the kernel of this host knows them: this process's incarnation, and proof that a dialer has ended.
//!
//! A process that has ended writes nothing any more. Using that as proof takes a pidfd of the very process that dialled.
//! What a peer says of itself cannot lead to one: after a virtual machine was cloned, two machines have the same boot id and
//! PID namespace number, and a process id of one may be free, or another process, on the other. So the kernel has to say it.
//! During the handshake the dialer listens on an abstract Unix socket whose name depends on both sides' fresh nonces, and the
//! listener connects to it. That succeeds only on the same kernel, and the kernel then tells the listener which process it is.
//! Where it does not succeed (another host, another network namespace) there is no proof.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use crate::frame::Incarnation;

impl Incarnation {
    /// This life of this process: what `/proc` tells, and a random number, so that no two processes have the same.
    ///
    /// # Errors
    /// `/proc` cannot be read or understood, or there are no random bytes.
    pub fn current() -> io::Result<Self> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self {
            pid: std::process::id(),
            start_ticks: start_ticks()?,
            boot: boot(&std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?)?,
            pid_namespace: std::fs::metadata("/proc/self/ns/pid")?.ino(),
            random: u128::from_le_bytes(random),
        })
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn boot(text: &str) -> io::Result<u128> {
    let digits = text.trim().replace('-', "");
    u128::from_str_radix(&digits, 16).map_err(|_| invalid(format!("{text:?} is no boot id")))
}

fn start_ticks() -> io::Result<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The command name, in parentheses, may hold spaces; the start time is the 20th field after it.
    let ticks = stat.rsplit_once(") ").and_then(|(_, after)| after.split(' ').nth(19)?.parse().ok());
    ticks.ok_or_else(|| invalid(format!("no start time in {stat:?}")))
}

/// The dialer's side: as long as this lives, a listener on the same host can find this process by the name.
#[derive(Debug)]
pub(crate) struct Presence(#[expect(dead_code, reason = "open for others to connect to")] UnixListener);

impl Presence {
    /// Shows this process under a name that only the listener of one handshake knows.
    pub(crate) fn show(name: &str) -> io::Result<Self> {
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?).map(Self)
    }
}

/// One process, for ever: its number cannot come to mean another one.
#[derive(Debug)]
pub struct Pidfd(AsyncFd<OwnedFd>);

impl Pidfd {
    /// The process that shows its [`Presence`] under this name on this host. On a tokio runtime with I/O.
    ///
    /// # Errors
    /// There is none, it is in another PID namespace, or it has ended.
    pub(crate) async fn find(name: &str) -> io::Result<Self> {
        let stream = UnixStream::connect(OsStr::from_bytes(format!("\0{name}").as_bytes())).await?;
        // The process that listens, by its number in our PID namespace; 0 if it has none there.
        let pid = stream.peer_cred()?.pid().and_then(Pid::from_raw);
        let fd = pidfd_open(pid.ok_or(io::ErrorKind::NotFound)?, PidfdFlags::NONBLOCK)?;
        // The number may have changed hands before the pidfd was opened. It has not if the process lives afterwards, and then
        // the connection is still open.
        match stream.into_std()?.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return Err(io::ErrorKind::NotConnected.into()),
        }
        // SAFETY: an `OwnedFd` is its descriptor's only owner, names the same one for ever and closes it when dropped.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self(fd?))
    }

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
    use std::io::BufRead;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    /// Set in the child process of a test: the name under which it shows itself.
    const NAME: &str = "BATON_TEST_PRESENCE";

    /// Not a test of its own: what a child process of the tests below runs.
    #[test]
    fn child() {
        let Ok(name) = std::env::var(NAME) else { return };
        let _presence = Presence::show(&name).expect("a free name");
        println!("@shown");
        std::thread::sleep(Duration::from_secs(600));
    }

    fn unique(name: &str) -> String {
        format!("baton-test-{name}-{:032x}", Incarnation::current().expect("/proc").random)
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_seen() {
        let name = unique("end");
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "process::tests::child", "--nocapture"])
            .env(NAME, &name)
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program");
        let output = io::BufReader::new(child.stdout.take().expect("piped"));
        let shown = output.lines().map_while(Result::ok).any(|line| line.contains("@shown"));
        assert!(shown, "it shows itself");
        let pidfd = Pidfd::find(&name).await.expect("it lives");
        let early = tokio::time::timeout(Duration::from_millis(50), pidfd.gone()).await;
        assert!(early.is_err(), "it lives");
        child.kill().expect("ours");
        pidfd.gone().await.expect("seen before it is waited for");
        assert!(Pidfd::find(&name).await.is_err(), "it is gone");
        child.wait().expect("ours");
    }

    #[tokio::test]
    async fn a_process_is_found_only_while_it_shows_itself() {
        let name = unique("while");
        assert!(Pidfd::find(&name).await.is_err());
        let presence = Presence::show(&name).expect("a free name");
        Pidfd::find(&name).await.expect("this process");
        drop(presence);
        assert!(Pidfd::find(&name).await.is_err());
    }

    #[test]
    fn incarnations_differ_and_a_boot_id_is_not_made_up() {
        let (one, other) = (Incarnation::current().expect("/proc"), Incarnation::current().expect("/proc"));
        assert_eq!(Incarnation { random: one.random, ..other }, one, "the same process");
        assert_ne!(one, other, "as a clone of it would be");
        assert_eq!(boot("0f000000-0000-0000-0000-000000000001\n").expect("a boot id"), (0xf << 120) + 1);
        for text in ["", "unknown\n"] {
            assert!(boot(text).is_err(), "{text:?}");
        }
    }
}

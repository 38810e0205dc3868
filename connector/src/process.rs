//! This process's incarnation, and proof from the kernel that a dialer's process has ended.
//!
//! A process that has ended writes no more pages. To use that as proof, the listener needs a pidfd of the process that dialled. The
//! incarnation in the peer's Hello is not enough: two clones of a virtual machine have the same boot id and the same PID namespace
//! number, so a process id from one may mean no process, or another one, on the other.
//!
//! Therefore the dialer listens during the handshake on an abstract Unix socket, whose name is derived from both sides' nonces, and
//! the listener connects to it. The connection succeeds only on the same kernel, and the kernel then reports the dialer's process id.
//! If it fails (another host, another network namespace), there is no such proof.

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
    /// The incarnation of this process, from `/proc` and a new random number. Call it once at process start.
    ///
    /// # Errors
    /// `/proc` cannot be read or parsed, or the operating system provides no random bytes.
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
    u128::from_str_radix(&digits, 16)
        .map_err(|_| invalid(format!("boot id {text:?} is not a hexadecimal number")))
}

fn start_ticks() -> io::Result<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The command name, in parentheses, may hold spaces; the start time is the 20th field after it.
    let ticks = stat.rsplit_once(") ").and_then(|(_, after)| after.split(' ').nth(19)?.parse().ok());
    ticks.ok_or_else(|| invalid(format!("/proc/self/stat has no start time: {stat:?}")))
}

/// The dialer's Unix socket. While it exists, a listener on the same kernel can find this process by the socket's name.
#[derive(Debug)]
pub(crate) struct Presence(#[expect(dead_code, reason = "the socket must stay open")] UnixListener);

impl Presence {
    /// Listens under `name`, which only the two sides of one handshake know.
    pub(crate) fn show(name: &str) -> io::Result<Self> {
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?).map(Self)
    }
}

/// A handle to one process (`pidfd_open`). Unlike a process id, it never refers to another process later.
#[derive(Debug)]
pub struct Pidfd(AsyncFd<OwnedFd>);

impl Pidfd {
    /// Finds the process that listens under `name` ([`Presence`]). Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// No process listens under `name` on this kernel, the process is in another PID namespace, or it has ended.
    pub(crate) async fn find(name: &str) -> io::Result<Self> {
        let stream = UnixStream::connect(OsStr::from_bytes(format!("\0{name}").as_bytes())).await?;
        // The process id in our PID namespace; 0 if the process is not visible there.
        let pid = stream.peer_cred()?.pid().and_then(Pid::from_raw);
        let fd = pidfd_open(pid.ok_or(io::ErrorKind::NotFound)?, PidfdFlags::NONBLOCK)?;
        // The id may have been reused before the pidfd was opened. If the connection is still open, the process is alive, so the
        // id was not reused.
        match stream.into_std()?.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return Err(io::ErrorKind::NotConnected.into()),
        }
        // SAFETY: an `OwnedFd` owns its descriptor alone, always returns the same one and closes it when dropped, as
        // `register_with_interest` requires.
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

    /// Environment variable of a child process: the name under which it listens.
    const NAME: &str = "BATON_TEST_PRESENCE";

    /// The child process of the tests below. Without the variable it does nothing.
    #[test]
    fn child() {
        let Ok(name) = std::env::var(NAME) else { return };
        let _presence = Presence::show(&name).expect("the name is free");
        println!("@shown");
        std::thread::sleep(Duration::from_secs(600));
    }

    fn unique(name: &str) -> String {
        format!("baton-test-{name}-{:032x}", Incarnation::current().expect("/proc can be read").random)
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
        let output = io::BufReader::new(child.stdout.take().expect("the stream is piped"));
        let shown = output.lines().map_while(Result::ok).any(|line| line.contains("@shown"));
        assert!(shown, "the child listens");
        let pidfd = Pidfd::find(&name).await.expect("the child is alive");
        let early = tokio::time::timeout(Duration::from_millis(50), pidfd.gone()).await;
        assert!(early.is_err(), "the child is alive");
        child.kill().expect("our own child");
        pidfd.gone().await.expect("the pidfd reports the end of a zombie too");
        assert!(Pidfd::find(&name).await.is_err(), "the child has ended");
        child.wait().expect("our own child");
    }

    #[tokio::test]
    async fn a_process_is_found_only_while_it_listens() {
        let name = unique("while");
        assert!(Pidfd::find(&name).await.is_err());
        let presence = Presence::show(&name).expect("the name is free");
        Pidfd::find(&name).await.expect("this process");
        drop(presence);
        assert!(Pidfd::find(&name).await.is_err());
    }

    #[test]
    fn incarnations_differ_and_a_malformed_boot_id_is_an_error() {
        let (one, other) = (
            Incarnation::current().expect("/proc can be read"),
            Incarnation::current().expect("/proc can be read"),
        );
        assert_eq!(Incarnation { random: one.random, ..other }, one, "the same process");
        assert_ne!(one, other, "the random number differs, as in a cloned machine");
        assert_eq!(
            boot("0f000000-0000-0000-0000-000000000001\n").expect("the boot id can be read"),
            (0xf << 120) + 1
        );
        for text in ["", "unknown\n"] {
            assert!(boot(text).is_err(), "{text:?}");
        }
    }
}

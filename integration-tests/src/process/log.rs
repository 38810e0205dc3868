//! The log of a process: its lines as they arrive, and the table of the lines that tests look for.
//!
//! Tests ask over HTTP for every state that a process shows there. They read the log only for facts that nothing else shows, and they
//! identify such a line by its [`Event`].

use std::io::{BufRead, BufReader, Read};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A log line that tests look for, identified by its constant message. When the message changes in the sources, it changes here and nowhere
/// else in the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A port is bound. Fields: `key`, and `url` or `address`.
    Listening,
    /// The process has ended in order.
    Ended,
    /// The limit of open files allows fewer HTTP connections than the settings ask for. Fields: `open_files`, `connections`.
    FewConnections,
    /// A sender cannot reach its receiver and continues to dial. Fields: `address`, `reason`.
    ReceiverUnreachable,
    /// A receiver has refused the sender, which dials again later. Fields: `address`, `reason`.
    ReceiverRefuses,
    /// A node has no peers to connect to. Field: `address`, of its link port.
    WorksAlone,
    /// A receiver has refused a connection to its link port. Fields: `address`, `reason`.
    ConnectionRefused,
    /// The registration in etcd has begun or ended. Field: `is_registered`.
    Registration,
    /// etcd does not answer the renewals of the registration. Field: `error`.
    RegistrationFails,
    /// etcd does not answer who the members are. Field: `error`.
    MembersUnread,
    /// The process has removed itself from etcd.
    Deregistered,
    /// The members were read as a whole. Field: `members`.
    MembersRead,
    /// A member has left the fleet. Field: `member`.
    MemberLeft,
    /// An entry of the fleet is malformed. Field: `entry`.
    EntrySkipped,
    /// The files for TLS have changed and cannot be used. Field: `error`.
    CertificatesUnread,
    /// The files for TLS were read again.
    CertificatesRead,
    /// Files for TLS of HTTP or of the link have changed and cannot be used.
    PemUnusable,
    /// A handshake with a client of an HTTPS port has failed. Fields: `peer`, `reason`.
    HandshakeFailed,
    /// Files for TLS of HTTP or of the link have changed and are in use.
    PemRenewed,
    /// The fleet has more peers than `link.sessions`. Field: `sessions`.
    TooManyPeers,
    /// A header names no prefiller that can be used. Field: `addresses`.
    HeaderUnknown,
    /// A node of a proxy does not report, or its report cannot be used. Field: `node`.
    NodeLeftOut,
    /// A node of a proxy gave no valid report for 3 s. Field: `node`.
    NodeSilent,
    /// A model in FP8 has scales that are not used. Fields: `input_scales`, `kv_scales`.
    ScalesIgnored,
    /// Codes and scales of an FP8 checkpoint are used as they are. Field: `matrices`.
    CodesKept,
    /// Weights of an FP8 checkpoint become bf16. Field: `matrices`.
    CodesBecomeBf16,
    /// Weights of an FP8 checkpoint are rounded again. Field: `matrices`.
    CodesRounded,
    /// KV pages in FP8 do not have the scales of the checkpoint. Field: `kv_scales`.
    KvScalesIgnored,
}

impl Event {
    const fn message(self) -> &'static str {
        match self {
            Self::Listening => " listening",
            Self::Ended => " ended",
            Self::FewConnections => " each HTTP port takes ",
            Self::ReceiverUnreachable => " receiver cannot be reached yet",
            Self::ReceiverRefuses => " receiver refuses sessions",
            Self::WorksAlone => " this node works alone",
            Self::ConnectionRefused => " link connection refused",
            Self::Registration => " registration in etcd",
            Self::RegistrationFails => " etcd does not renew the registration",
            Self::MembersUnread => " the members in etcd cannot be read",
            Self::Deregistered => " removed from etcd",
            Self::MembersRead => " members read",
            Self::MemberLeft => " member left",
            Self::EntrySkipped => " an entry of the fleet is skipped",
            Self::CertificatesUnread => " the certificates for etcd cannot be read",
            Self::CertificatesRead => " the certificates for etcd were read again",
            Self::PemUnusable => ": the new files cannot be used",
            Self::HandshakeFailed => " TLS handshakes of clients fail",
            Self::PemRenewed => ": the files have changed and are in use",
            Self::TooManyPeers => " the fleet has more peers for this process than link.sessions",
            Self::HeaderUnknown => " prefiller header names no connected sender",
            Self::NodeLeftOut => " node is left out: ",
            Self::NodeSilent => " node gave no valid report for 3 s",
            Self::ScalesIgnored => " scales of activations and of the KV cache are ignored",
            Self::CodesKept => " codes and scales of FP8 weights are used as they are",
            Self::CodesBecomeBf16 => " FP8 weights become bf16",
            Self::CodesRounded => " are rounded again, to scales ",
            Self::KvScalesIgnored => " KV pages in FP8 have the scale 1 ",
        }
    }

    /// Whether `line` reports this event.
    pub fn is_in(self, line: &str) -> bool {
        line.contains(self.message())
    }
}

/// The value of a field of a log line, without quotes. A value that is not quoted ends at the first space.
pub fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let value = line.split_once(&format!(" {name}="))?.1;
    match value.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => value.split(' ').next(),
    }
}

#[derive(Default)]
struct Lines {
    lines: Vec<String>,
    closed: bool,
}

/// All lines that a process has written, and whether there will be more.
#[derive(Default)]
pub(super) struct Log {
    lines: Mutex<Lines>,
    changed: Condvar,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies lines until the pipe closes.
    pub(super) fn collect(&self, stderr: impl Read) {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            self.lock().lines.push(line);
            self.changed.notify_all();
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }

    pub(super) fn text(&self) -> String {
        self.lock().lines.join("\n")
    }

    /// Whether the process has closed its log, as it does when it ends.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits for a line that `is_it`; `None` if there is none by `end` or when the log closes.
    pub(super) fn wait_line(&self, end: Instant, is_it: impl Fn(&str) -> bool) -> Option<String> {
        let find = |lines: &Lines| lines.lines.iter().find(|line| is_it(line)).cloned();
        self.wait(end, |lines| find(lines).is_some() || lines.closed);
        find(&self.lock())
    }

    /// Waits until the log is closed; false if it is still open at `end`.
    pub(super) fn wait_closed(&self, end: Instant) -> bool {
        self.wait(end, |lines| lines.closed);
        self.is_closed()
    }

    fn wait(&self, end: Instant, done: impl Fn(&Lines) -> bool) {
        let left = end.saturating_duration_since(Instant::now());
        drop(self.changed.wait_timeout_while(self.lock(), left, |lines| !done(lines)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_fields_are_found_in_a_line() {
        let line = r#"2026-11-22 21:32:52.123  INFO listening url=http://127.0.0.1:9000 key="frontend.port" route=Auto"#;
        assert!(Event::Listening.is_in(line) && !Event::Ended.is_in(line));
        assert_eq!(field(line, "url"), Some("http://127.0.0.1:9000"));
        assert_eq!(field(line, "key"), Some("frontend.port"));
        assert_eq!(field(line, "address"), None);
    }
}

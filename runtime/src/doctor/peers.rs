//! Checks of the peers that a sender or node dials: whether they answer, and whether they accept a session.
//!
//! The handshake with a peer ends before a session begins ([`Link::ask`]). The peer logs a line for each question.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use actors::node::kv_shape;
use connector::frame::{Capabilities, Hello, Incarnation, Incompatible, KvShape, Versions};
use connector::link::tls::LinkTls;
use connector::link::{Link, LinkError, nonce};
use futures_util::future::join_all;
use tokio::time::timeout;

use super::Subject;
use super::report::{Finding, divided};
use crate::config::{Config, Role};
use crate::roles::certificates;
use crate::roles::joining::is_of_machine;
use crate::tls::{CertificateExpiry, open_link};

const CHECK: &str = "peers";

/// Time limit of the questions to one peer.
const ASK: Duration = Duration::from_secs(5);
/// Time for which the fingerprint of the model is awaited. Then a peer cannot be asked for its model.
const FINGERPRINT: Duration = Duration::from_secs(6);
/// Peers beyond this number are not asked.
const PEERS_MAX: usize = 32;

/// What a peer answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PeerAnswer {
    /// It accepts sessions of this version.
    Fits(u32),
    /// Its version fits, and nothing else was compared, for this reason.
    FitsSoFar(u32, &'static str),
    /// It has no secret, and this process has one.
    HasNoSecret,
    /// It refuses sessions, or this process would. The sentence is from the side that refuses.
    Refuses { by_peer: bool, reason: String },
    /// It is busy and may accept a session later.
    Busy(String),
    /// Nothing listens there.
    Absent(String),
    /// Its name does not resolve, or its host cannot be reached.
    Unreachable(String),
}

pub(super) fn check(subject: &Subject) -> Vec<Finding> {
    let config = &subject.config;
    if !config.role.dials_peers() {
        return Vec::new();
    }
    // Members in etcd are compared by what they say there.
    let of_name = config.fleet.dns.iter().flat_map(|name| name.to_socket_addrs()).flatten();
    let peers: Vec<String> =
        config.link.peers.iter().cloned().chain(of_name.map(|peer| peer.to_string())).collect();
    let peers: Vec<&String> = peers.iter().filter(|peer| !is_own(config, peer)).collect();
    if peers.is_empty() {
        return Vec::new();
    }
    let (shape, unknown) = own_shape(subject);
    // A file that cannot be used is a finding of another check.
    let tls = certificates::link(config.role, config)
        .map(|files| open_link(files, CertificateExpiry::default()))
        .transpose();
    let Ok(tls) = tls.map(|opened| opened.map(|(tls, _)| tls)) else { return Vec::new() };
    let asked = peers.iter().take(PEERS_MAX).map(|peer| async {
        let answer = timeout(ASK, ask(peer, config, tls.as_deref(), shape.as_ref(), unknown)).await;
        let silent = || PeerAnswer::Unreachable(format!("no answer in {} s", ASK.as_secs()));
        judge(peer, &answer.unwrap_or_else(|_| silent()))
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let mut findings = match runtime {
        Ok(runtime) => {
            let findings = runtime.block_on(join_all(asked));
            // A look-up of a name may hang for longer than this check may take. Dropping the runtime would wait for it.
            runtime.shutdown_background();
            findings
        }
        Err(error) => vec![Finding::fault(CHECK, error.to_string(), "raise the limit of open files")],
    };
    if peers.len() > PEERS_MAX {
        findings.push(Finding::ok(CHECK, format!("{} more were not asked", peers.len() - PEERS_MAX)));
    }
    findings
}

/// Whether the address is that of this process's own link port, which it does not dial.
fn is_own(config: &Config, peer: &str) -> bool {
    if config.role != Role::Node {
        return false;
    }
    let Ok(own) = (config.link.host.as_str(), config.link.port).to_socket_addrs() else { return false };
    let own: Vec<SocketAddr> = own.chain(config.link.advertise).collect();
    let is_own = |address: SocketAddr| {
        let is_any = |own: &SocketAddr| own.ip().is_unspecified() && own.port() == address.port();
        own.contains(&address) || (own.iter().any(is_any) && is_of_machine(address.ip()))
    };
    peer.to_socket_addrs().is_ok_and(|mut addresses| addresses.any(is_own))
}

/// What this process says of its pages. If the fingerprint is not known, the reason is returned too.
fn own_shape(subject: &Subject) -> (Option<KvShape>, &'static str) {
    let Some(model) = subject.model() else { return (None, "this process cannot read its model") };
    let Ok(model) = model.as_ref() else { return (None, "this process cannot read its model") };
    match subject.fingerprint(FINGERPRINT) {
        Some(Ok(fingerprint)) => {
            let model_id = (model.info().name.as_str(), fingerprint);
            (Some(kv_shape(&model.layout, model_id, subject.config.transport.page_hash)), "")
        }
        Some(Err(_)) => (None, "this process cannot read its model"),
        None => (None, "the model is too large to read all of it now"),
    }
}

async fn ask(
    peer: &str,
    config: &Config,
    tls: Option<&LinkTls>,
    shape: Option<&KvShape>,
    unknown: &'static str,
) -> PeerAnswer {
    let link = match Link::dial(peer, Versions::OURS, tls).await {
        Ok((link, _)) => link,
        Err(error) => return answer_of(&error),
    };
    let version = link.version();
    let Some(shape) = shape else { return PeerAnswer::FitsSoFar(version, unknown) };
    let secret = config.link.secret.as_ref().map(|secret| secret.reveal());
    if let Err(error) = say(link, shape, secret).await {
        return answer_of(&error);
    }
    match secret {
        Some(_) if !has_secret(peer, tls, shape).await => PeerAnswer::HasNoSecret,
        _ => PeerAnswer::Fits(version),
    }
}

async fn say(link: Link, shape: &KvShape, secret: Option<&str>) -> Result<(), LinkError> {
    let hello = Hello {
        versions: Versions::OURS,
        version: link.version(),
        incarnation: Incarnation::current()?,
        capabilities: Capabilities { prefill: true, decode: false },
        http: String::new(),
        session: 1,
        previous: 0,
        previous_drained: true,
        shape: shape.clone(),
        nonce: link.nonces().dialer,
        proof: None,
    };
    link.ask(hello, secret).await
}

/// Whether the peer refuses another secret than its own. A peer without a secret accepts any.
async fn has_secret(peer: &str, tls: Option<&LinkTls>, shape: &KvShape) -> bool {
    let other = nonce().map(|bytes| format!("{bytes:?}"));
    let Ok(other) = other else { return true };
    let Ok((link, _)) = Link::dial(peer, Versions::OURS, tls).await else { return true };
    say(link, shape, Some(&other)).await.is_err()
}

fn answer_of(error: &LinkError) -> PeerAnswer {
    let stranger = || PeerAnswer::Refuses { by_peer: false, reason: Incompatible::Stranger.to_string() };
    match error {
        LinkError::Incompatible(reason) => PeerAnswer::Refuses { by_peer: false, reason: reason.to_string() },
        LinkError::Refused(reason) => PeerAnswer::Refuses { by_peer: true, reason: reason.clone() },
        LinkError::Tls(reason) => PeerAnswer::Refuses { by_peer: false, reason: reason.to_string() },
        LinkError::Busy(reason) => PeerAnswer::Busy(reason.clone()),
        LinkError::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            PeerAnswer::Absent(error.to_string())
        }
        // Another program sends other bytes, such as a length that no message has.
        LinkError::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => stranger(),
        LinkError::Wire(_) | LinkError::Closed | LinkError::Silent(_) => stranger(),
        error => PeerAnswer::Unreachable(error.to_string()),
    }
}

pub(super) fn judge(peer: &str, answer: &PeerAnswer) -> Finding {
    match answer {
        PeerAnswer::Fits(version) => Finding::ok(
            CHECK,
            format!("{peer} accepts sessions, protocol version {version}, same model and secret"),
        ),
        PeerAnswer::FitsSoFar(version, reason) => {
            let what = format!(
                "{peer} answers, protocol version {version}; model and secret were not compared, because {reason}"
            );
            Finding::ok(CHECK, what)
        }
        PeerAnswer::HasNoSecret => {
            let what = format!("{peer} has no link.secret, but this process has one");
            Finding::fault(CHECK, what, "set the same link.secret on both sides")
        }
        PeerAnswer::Refuses { by_peer, reason } => {
            let (reason, advice) = divided(reason);
            let by = if *by_peer { "refuses this process. It says: " } else { "does not fit: " };
            let remedy = advice.unwrap_or_else(|| "compare the configurations of both sides".to_owned());
            Finding::fault(CHECK, format!("{peer} {by}{reason}"), remedy)
        }
        PeerAnswer::Busy(reason) => Finding::warning(
            CHECK,
            format!("{peer} is busy: {reason}"),
            "see the log of the peer; it is asked again after a start",
        ),
        PeerAnswer::Absent(error) => {
            let what = format!("nothing listens at {peer}: {error}");
            Finding::warning(
                CHECK,
                what,
                "start the peer, or correct link.peers; this process dials it until it answers",
            )
        }
        PeerAnswer::Unreachable(error) => {
            let what = format!("{peer} cannot be reached: {error}");
            Finding::fault(
                CHECK,
                what,
                "correct link.peers, and see if a firewall drops packets to this port",
            )
        }
    }
}

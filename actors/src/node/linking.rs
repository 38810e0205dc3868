//! The parts that only a node with peers has: the peer link, on its own arbiter, and the transport.

use std::sync::{Arc, OnceLock};

use actix::prelude::*;
use connector::frame::KvShape;
use connector::transport::{Event, EventSink, Transport};
use engine::{KvDtype, KvLayout};
use tokio::net::TcpListener;

use super::{LinkConfig, NodeError, NodeFacts, Parts};
use crate::devices::{
    Devices,
    sockets::{Identity, Sockets},
};
use crate::effect::{Endpoint, ToPeerLink, ToTransfer};
use crate::kit::Awake;
use crate::messages::TransportEvents;
use crate::pages::SHARDS;
use crate::peer_link::{
    PeerLink, PeerLinkBehaviour,
    state::{PeerLinkConfig, PeerLinkState},
};
use crate::router::{Mailboxes, Router};

/// A running peer link.
pub(super) struct Linked {
    pub(super) peer_link: Addr<PeerLink>,
    pub(super) arbiter: Arbiter,
    pub(super) transport: Arc<dyn Transport>,
}

/// Starts the transport and the peer link. A listener accepts at once; peers are dialled after [`StartDialling`](crate::messages::StartDialling).
pub(super) fn start<E>(
    link: LinkConfig<'_, E>,
    facts: &NodeFacts,
    parts: &mut Parts,
    mailboxes: &Mailboxes,
) -> Result<Linked, NodeError<E>> {
    let NodeFacts { incarnation, capabilities, cache_pages, http, .. } = *facts;
    let model = (parts.model.name.as_str(), parts.model.fingerprint);
    let shape = kv_shape(parts.pool.layout(), model, link.page_hash);
    let listener = link.listener;
    if let Some(listener) = &listener {
        listener.set_nonblocking(true).map_err(NodeError::Io)?;
    }
    let identity = Identity {
        incarnation,
        versions: link.versions,
        shape,
        secret: link.secret,
        tls: link.tls,
        ring_pages: parts.shares.ring,
        capabilities,
        http: http.map(|http| http.to_string()).unwrap_or_default(),
    };
    let (sink, late_link) = sink(mailboxes.transfer.clone());
    let transport = (link.transport)(sink).map_err(NodeError::Transport)?;
    let state = PeerLinkState::new(PeerLinkConfig {
        own: incarnation,
        close_ends_writes: transport.close_ends_writes(),
        ring_pages: identity.ring_pages,
        receivers: link.peers,
        cache_pages,
    })
    .with_limits(link.limits);
    let behaviour = PeerLinkBehaviour { state, counters: parts.counters.clone() };

    let arbiter = Arbiter::new();
    let (awake, vitals, faults) = (parts.awake, parts.pulse("peer_link"), parts.faults.clone());
    let (mailboxes, lanes, shared) = (mailboxes.clone(), transport.clone(), parts.devices());
    let peer_link = PeerLink::start_in_arbiter(&arbiter.handle(), move |ctx| {
        // Set once, before a socket can begin a session, so before the transport reports about one.
        let _ = late_link.set(ctx.address().recipient());
        let sockets = Sockets::new(identity, ctx.address().recipient());
        if let Some(listener) = listener {
            let (sockets, faults) = (sockets.clone(), faults.clone());
            actix::spawn(async move {
                match TcpListener::from_std(listener) {
                    Ok(listener) => sockets.listen(listener).await,
                    Err(error) => faults.pull(format!("link port: {error}")),
                }
            });
        }
        let devices = Devices { transport: Some(lanes), sockets: Some(sockets), faults, ..shared };
        let own = Mailboxes { peer_link: Some(ctx.address().recipient()), ..mailboxes };
        let router = Router::new(Endpoint::PeerLink, &own, devices);
        PeerLink::new(behaviour, router, Awake::new(awake), vitals)
    });
    Ok(Linked { peer_link, arbiter, transport })
}

/// The KV shape that a process announces to its peers. `model` is its name and fingerprint.
pub fn kv_shape(layout: &KvLayout, (name, fingerprint): (&str, [u8; 32]), page_hash: bool) -> KvShape {
    KvShape {
        model: name.to_owned(),
        fingerprint,
        layers: layout.layers,
        kv_heads: layout.kv_heads,
        head_dim: layout.head_dim,
        page_tokens: layout.page_tokens,
        dtype: layout.dtype.name().to_owned(),
        scale: KvDtype::SCALE.to_string(),
        page_bytes: layout.page_bytes(),
        page_hash,
        shards: SHARDS,
    }
}

type LateLink = Arc<OnceLock<Recipient<ToPeerLink>>>;

/// Routes the transport's events: completions to the transfer actor, the rest to the peer link, which starts later.
/// `do_send` ignores the mailbox's bound; the number of operations in flight bounds the events instead.
fn sink(transfer: Option<Recipient<ToTransfer>>) -> (EventSink, LateLink) {
    let late = LateLink::default();
    let link = late.clone();
    let sink = move |events: Vec<Event>| {
        let (completions, sessions): (Vec<Event>, Vec<Event>) = events
            .into_iter()
            .partition(|event| matches!(event, Event::PutCompleted { .. } | Event::Flushed { .. }));
        if let (false, Some(transfer)) = (completions.is_empty(), &transfer) {
            transfer.do_send(TransportEvents(completions).into());
        }
        if let (false, Some(link)) = (sessions.is_empty(), link.get()) {
            link.do_send(TransportEvents(sessions).into());
        }
    };
    (Box::new(sink), late)
}

//! Delivers effects in production: to the mailboxes of actors, and to streams, threads, sockets and the log.
//!
//! Each actor has its own router, so an edge between two actors is one [`Outbox`] with its own counters. The type of an effect names its
//! recipient, so delivery is a `match` and a direct call.

use actix::prelude::*;
use connector::transport::{Command, TransportError};
use engine::EngineError;

use crate::devices::Devices;
use crate::effect::{
    Effect, Endpoint, ToBufferManager, ToDecoder, ToEngine, ToGenerator, ToGrammarThread, ToHashThread,
    ToKvEvents, ToLog, ToPeerLink, ToPrefiller, ToProcess, ToProxy, ToStreams, ToTraces, ToTransfer,
    ToTransport,
};
use crate::kit::Outbox;
use crate::messages::{StepFinished, StreamEnd, StreamPrompt, StreamToken, TransportEvents};
use crate::request::{AbortRequest, Refused, StreamEvent};
use crate::streams::StreamBatch;

/// The mailboxes of a node's actors. A node without peers has no transfer, prefiller and peer link.
#[derive(Clone)]
pub struct Mailboxes {
    /// Mailbox of the proxy.
    pub proxy: Recipient<ToProxy>,
    /// Mailbox of the decoder.
    pub decoder: Recipient<ToDecoder>,
    /// Mailbox of the buffer manager.
    pub buffer_manager: Recipient<ToBufferManager>,
    /// Mailbox of the generator.
    pub generator: Recipient<ToGenerator>,
    /// Mailbox of the transfer actor.
    pub transfer: Option<Recipient<ToTransfer>>,
    /// Mailbox of the prefiller.
    pub prefiller: Option<Recipient<ToPrefiller>>,
    /// Mailbox of the peer link.
    pub peer_link: Option<Recipient<ToPeerLink>>,
}

/// Delivers the effects of one actor.
pub struct Router {
    from: Endpoint,
    proxy: Outbox<ToProxy>,
    decoder: Outbox<ToDecoder>,
    buffer_manager: Outbox<ToBufferManager>,
    generator: Outbox<ToGenerator>,
    transfer: Option<Outbox<ToTransfer>>,
    prefiller: Option<Outbox<ToPrefiller>>,
    peer_link: Option<Outbox<ToPeerLink>>,
    devices: Devices,
}

fn outbox<M>(from: Endpoint, to: Endpoint, recipient: Recipient<M>) -> Outbox<M>
where
    M: Message<Result = ()> + Send + 'static,
{
    Outbox::new(from.name(), to.name(), recipient)
}

impl Router {
    /// The router of the actor `from`.
    pub fn new(from: Endpoint, mailboxes: &Mailboxes, devices: Devices) -> Self {
        let Mailboxes { proxy, decoder, buffer_manager, generator, transfer, prefiller, peer_link } =
            mailboxes.clone();
        Self {
            from,
            proxy: outbox(from, Endpoint::Proxy, proxy),
            decoder: outbox(from, Endpoint::Decoder, decoder),
            buffer_manager: outbox(from, Endpoint::BufferManager, buffer_manager),
            generator: outbox(from, Endpoint::Generator, generator),
            transfer: transfer.map(|address| outbox(from, Endpoint::Transfer, address)),
            prefiller: prefiller.map(|address| outbox(from, Endpoint::Prefiller, address)),
            peer_link: peer_link.map(|address| outbox(from, Endpoint::PeerLink, address)),
            devices,
        }
    }

    /// Delivers the effects of a message, in order.
    pub fn deliver(&self, effects: Vec<Effect>) {
        let mut clients = self.devices.streams.batch();
        effects.into_iter().for_each(|effect| self.deliver_one(effect, &mut clients));
    }

    fn deliver_one(&self, effect: Effect, clients: &mut StreamBatch<'_>) {
        debug_assert!(
            effect.row().from.contains(&self.from),
            "the table has no edge from {:?} for {:?}",
            self.from,
            effect.row()
        );
        match effect {
            Effect::Proxy(mail) => drop(self.proxy.post(mail)),
            Effect::Decoder(mail) => self.to_decoder(mail, clients),
            Effect::BufferManager(mail) => drop(self.buffer_manager.post(mail)),
            Effect::Generator(mail) => drop(self.generator.post(mail)),
            Effect::Transfer(mail) => post(self.transfer.as_ref(), mail),
            Effect::Prefiller(mail) => {
                if let ToPrefiller::PagesSent(sent) = &mail {
                    self.devices.peers.pages_sent(sent);
                }
                post(self.prefiller.as_ref(), mail);
            }
            // A node without peers reports its load to its own proxy only.
            Effect::PeerLink(ToPeerLink::LoadReport(_)) if self.peer_link.is_none() => {}
            Effect::PeerLink(mail) => post(self.peer_link.as_ref(), mail),
            Effect::Streams(message) => self.to_streams(message, clients),
            Effect::Engine(ToEngine::RunStep(plan)) => {
                if !self.devices.engine.as_ref().is_some_and(|engine| engine.submit(plan)) {
                    // The engine's thread ends only by a panic.
                    let outcome = Err(EngineError::WorkerPanicked);
                    drop(self.generator.post(StepFinished { outcome }.into()));
                }
            }
            Effect::HashThread(ToHashThread::HashPages(pages)) => {
                if let Some(thread) = &self.devices.hash_thread {
                    thread.post(pages);
                }
            }
            Effect::GrammarThread(ToGrammarThread::CompileGrammar(compile)) => {
                if let Some(thread) = &self.devices.grammar_thread {
                    thread.post(compile);
                }
            }
            Effect::KvEvents(ToKvEvents::CacheChanged(changed)) => {
                if let Some(queue) = &self.devices.kv_events {
                    queue.post(changed);
                }
            }
            Effect::Traces(ToTraces::PrefillTraced(prefill)) => {
                if let Some(record) = &self.devices.traces {
                    record(*prefill);
                }
            }
            Effect::Transport(ToTransport::Command(command)) => self.to_transport(command),
            Effect::Sockets(message) => {
                if let Some(sockets) = &self.devices.sockets {
                    sockets.deliver(message);
                }
            }
            Effect::Log(ToLog::LogLine(line)) => {
                self.devices.peers.log_line(&line);
                line.write();
            }
            Effect::Process(ToProcess::ProcessFault(fault)) => self.devices.faults.pull(fault.0),
        }
    }

    /// If the decoder has stopped, the request ends at once.
    fn to_decoder(&self, mail: ToDecoder, clients: &mut StreamBatch<'_>) {
        if let ToDecoder::PrefillFinished(finished) = &mail {
            self.devices.streams.prefilled(finished.request, finished.session);
        }
        if let Some(ToDecoder::Decode(decode)) = self.decoder.post(mail) {
            let event = StreamEvent::Failed(Refused::ShuttingDown.into());
            clients.end(decode.generate.request, event);
        }
    }

    /// If a token's client is gone, its request is aborted.
    fn to_streams(&self, message: ToStreams, clients: &mut StreamBatch<'_>) {
        match message {
            ToStreams::StreamPrompt(StreamPrompt { request, logprobs }) => {
                clients.prompt(request, logprobs);
            }
            ToStreams::StreamToken(StreamToken { request, token }) => {
                if !clients.token(request, token) {
                    self.to_decoder(AbortRequest::cancelled(request).into(), clients);
                }
            }
            ToStreams::StreamEnd(StreamEnd { request, event }) => {
                tracing::debug!(%request, ?event, "request ended");
                clients.end(request, event);
            }
        }
    }

    /// If the transport refuses a command, its sender gets the event of a failed command.
    fn to_transport(&self, command: Command) {
        let Some(transport) = &self.devices.transport else { return };
        let Err(error) = transport.submit(command.clone()) else { return };
        let failed = TransportEvents(vec![command.failed(TransportError::NotTaken(error))]);
        match self.from {
            Endpoint::Transfer => post(self.transfer.as_ref(), failed.into()),
            _ => post(self.peer_link.as_ref(), failed.into()),
        }
    }
}

/// Sends to an actor that a node without peers does not have. Such a node has no effects for it.
fn post<M>(outbox: Option<&Outbox<M>>, mail: M)
where
    M: Message<Result = ()> + Send + 'static,
{
    debug_assert!(outbox.is_some(), "this node has no such actor");
    if let Some(outbox) = outbox {
        drop(outbox.post(mail));
    }
}

//! The actors that every node has: proxy, decoder, buffer manager and generator.

use std::io;
use std::time::{Duration, Instant};

use actix::prelude::*;
use connector::frame::GRAMMARS_MAX;
use engine::Engine;
use tokio::sync::{mpsc, watch};

use super::{NodeFacts, Parts};
use crate::buffer_manager::{
    BufferManager, BufferManagerBehaviour,
    state::{PoolConfig, PoolState},
};
use crate::decoder::{
    Decoder, DecoderBehaviour,
    state::{DecoderConfig, DecoderState},
};
use crate::devices::{
    Devices,
    engine_thread::{EnginePulse, EngineThread},
    kv_events::{CacheBatch, KvEventQueue},
};
use crate::effect::Endpoint;
use crate::finish::FinishRule;
use crate::generator::{
    Generator, GeneratorBehaviour,
    state::{GeneratorConfig, GeneratorState},
};
use crate::pages::Pages;
use crate::proxy::{
    Proxy, ProxyBehaviour,
    state::{ProxyConfig, ProxyReport, ProxyState},
};
use crate::router::{Mailboxes, Router};
use crate::routing::RoutingConfig;

/// Pages are reserved for a request's tokens and this many more, not for its `max_tokens`. So requests with a large `max_tokens` do not
/// keep others out of the pool.
const GROWTH_TOKENS: u32 = 256;

/// Actors that have addresses but do not run yet.
#[derive(Default)]
pub(super) struct Contexts {
    pub(super) proxy: Context<Proxy>,
    pub(super) decoder: Context<Decoder>,
    pub(super) buffer_manager: Context<BufferManager>,
    pub(super) generator: Context<Generator>,
}

/// See [`NodeConfig`](super::NodeConfig).
pub(super) struct Settings {
    pub(super) prefill_chunk_tokens: u32,
    pub(super) inter_token_bound: Option<Duration>,
    pub(super) prefix_cache: bool,
    pub(super) scattered: bool,
    pub(super) routing: RoutingConfig,
    pub(super) facts: NodeFacts,
    pub(super) kv_events: Option<mpsc::Sender<CacheBatch>>,
    /// Where the proxy publishes its report.
    pub(super) report: watch::Sender<ProxyReport>,
}

impl Contexts {
    /// Starts the actors. `hashed` is the pool in which landed pages are checked; `None`: pages are not hashed.
    pub(super) fn run(
        self,
        engine: Box<dyn Engine>,
        settings: Settings,
        hashed: Option<Pages>,
        parts: &mut Parts,
        mailboxes: &Mailboxes,
        pulse: &EnginePulse,
    ) -> io::Result<()> {
        let (pages, page_tokens) = (parts.pool.pages(), parts.page_tokens());
        let counters = parts.counters.clone();
        let (proxy_devices, decoder_devices) = (parts.devices(), parts.devices());

        let pool = PoolState::new(PoolConfig {
            prefill_pages: parts.shares.quota,
            pages,
            ring_pages: parts.shares.ring,
            page_tokens,
            page_bytes: parts.page_bytes(),
            sharing: settings.prefix_cache,
            announces: settings.kv_events.is_some(),
            scattered: settings.scattered,
        });
        let behaviour = BufferManagerBehaviour { state: pool, hashed, counters: counters.clone() };
        let kv_events = settings.kv_events.map(|batches| KvEventQueue::new(batches, counters.clone()));
        let devices = Devices { kv_events, ..parts.devices() };
        let router = Router::new(Endpoint::BufferManager, mailboxes, devices);
        let pulse_of = parts.pulse("buffer_manager");
        self.buffer_manager.run(BufferManager::new(behaviour, router, parts.awake(), pulse_of));

        let finish = FinishRule::new(parts.model.eos_tokens.clone());
        let state = GeneratorState::new(GeneratorConfig {
            chunk_tokens: settings.prefill_chunk_tokens,
            inter_token_bound: settings.inter_token_bound,
            limits: engine.limits(),
            page_tokens,
            finish: finish.clone(),
            runs_ahead: engine.runs_ahead(),
        });
        let thread = EngineThread::spawn(engine, mailboxes.generator.clone(), pulse.clone())?;
        let devices = Devices { engine: Some(thread), ..parts.devices() };
        let router = Router::new(Endpoint::Generator, mailboxes, devices);
        let behaviour = GeneratorBehaviour { state, epoch: Instant::now(), counters: counters.clone() };
        self.generator.run(Generator::new(behaviour, router, parts.asleep(), parts.pulse("generator")));

        let state = DecoderState::new(DecoderConfig {
            page_tokens,
            page_bytes: parts.page_bytes(),
            finish,
            vocabulary: parts.model.vocabulary,
            pid: std::process::id(),
            growth_tokens: GROWTH_TOKENS,
            grammars_per_session: GRAMMARS_MAX,
            holds_first_token: settings.inter_token_bound.is_some(),
        });
        let router = Router::new(Endpoint::Decoder, mailboxes, decoder_devices);
        let behaviour = DecoderBehaviour { state, counters: counters.clone() };
        self.decoder.run(Decoder::new(behaviour, router, parts.asleep(), parts.pulse("decoder")));

        let mut routing = settings.routing;
        if !settings.prefix_cache {
            routing.index_bytes = 0;
        }
        let state = ProxyState::new(ProxyConfig {
            page_tokens,
            pool_pages: pages,
            request_pages: parts.shares.request,
            name: settings.facts.incarnation.name(),
            http: settings.facts.http,
            routing,
        });
        let router = Router::new(Endpoint::Proxy, mailboxes, proxy_devices);
        let behaviour = ProxyBehaviour { state, counters, report: settings.report };
        self.proxy.run(Proxy::new(behaviour, router, parts.asleep(), parts.pulse("proxy")));
        Ok(())
    }
}

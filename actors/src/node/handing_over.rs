//! The actors that only a node has that prefills for peers: prefiller and transfer.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;
use connector::transport::Transport;

use super::{LinkConfig, Parts};
use crate::devices::{Devices, RecordPrefill, grammar_thread::GrammarThread, hash_thread::HashThread};
use crate::effect::Endpoint;
use crate::grammar::GrammarCompiler;
use crate::pages::{Pages, SHARDS};
use crate::prefiller::{
    Prefiller, PrefillerBehaviour,
    state::{PrefillerConfig, PrefillerState},
};
use crate::router::{Mailboxes, Router};
use crate::transfer::{
    Transfer, TransferBehaviour,
    state::{TransferConfig, TransferState},
};

/// Actors that have addresses but do not run yet.
#[derive(Default)]
pub(super) struct Contexts {
    pub(super) transfer: Context<Transfer>,
    pub(super) prefiller: Context<Prefiller>,
}

/// See [`NodeConfig`](super::NodeConfig) and [`LinkConfig`](super::LinkConfig).
pub(super) struct Settings {
    pub(super) min_gigabytes_per_second: f64,
    pub(super) pages_in_flight: usize,
    pub(super) grammars: Option<Arc<dyn GrammarCompiler>>,
    pub(super) traces: Option<RecordPrefill>,
}

impl Settings {
    /// The settings of a process with this link.
    pub(super) fn of<E>(
        link: &LinkConfig<'_, E>,
        grammars: Option<Arc<dyn GrammarCompiler>>,
        traces: Option<RecordPrefill>,
    ) -> Self {
        let LinkConfig { min_gigabytes_per_second, pages_in_flight, .. } = *link;
        Self { min_gigabytes_per_second, pages_in_flight, grammars, traces }
    }
}

impl Contexts {
    /// Starts the actors. Pages go over `transport`. `hashed` is the pool whose pages are hashed; `None`: pages are announced without
    /// hashes.
    pub(super) fn run(
        self,
        settings: Settings,
        hashed: Option<Pages>,
        transport: Arc<dyn Transport>,
        parts: &mut Parts,
        mailboxes: &Mailboxes,
    ) -> io::Result<()> {
        let Settings { min_gigabytes_per_second, pages_in_flight, grammars, traces } = settings;
        let page_bytes = parts.page_bytes();
        let state = TransferState::new(TransferConfig {
            page_bytes,
            shards: SHARDS,
            min_gigabytes_per_second,
            hashed: hashed.is_some(),
            on_device: parts.pool.is_on_device(),
            pages_in_flight,
        });
        let results = mailboxes.transfer.clone();
        let hash_thread =
            hashed.zip(results).map(|(pages, results)| HashThread::spawn(pages, results)).transpose()?;
        let devices = Devices { hash_thread, transport: Some(transport), ..parts.devices() };
        let router = Router::new(Endpoint::Transfer, mailboxes, devices);
        let behaviour = TransferBehaviour { state, epoch: Instant::now(), counters: parts.counters.clone() };
        self.transfer.run(Transfer::new(behaviour, router, parts.awake(), parts.pulse("transfer")));

        let state = PrefillerState::new(PrefillerConfig {
            page_tokens: parts.page_tokens(),
            page_bytes,
            pool_pages: parts.shares.quota.unwrap_or(parts.pool.pages()),
            vocabulary: parts.model.vocabulary,
            context_tokens: parts.model.context_tokens,
            compiles_grammars: grammars.is_some(),
            records_traces: traces.is_some(),
        });
        let results = mailboxes.prefiller.clone();
        let grammar_thread = grammars
            .zip(results)
            .map(|(compiler, results)| GrammarThread::spawn(compiler, results))
            .transpose()?;
        let devices = Devices { grammar_thread, traces, ..parts.devices() };
        let router = Router::new(Endpoint::Prefiller, mailboxes, devices);
        let behaviour = PrefillerBehaviour { state, counters: parts.counters.clone() };
        self.prefiller.run(Prefiller::new(behaviour, router, parts.asleep(), parts.pulse("prefiller")));
        Ok(())
    }
}

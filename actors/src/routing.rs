//! Routing: chooses for each request the member that decodes it and the member that prefills it.
//!
//! [`Routing`] is a pure state, without actix, clock or I/O. The proxy of a node uses it: the members are the node itself and its connected
//! senders. `M` is the name of a member.
//!
//! **Work** is the number of a prompt's tokens that a member must compute: those whose KV it does not have, as far as the router knows from
//! its own placements (`routing/index.rs`).
//!
//! **Predicted time to first token** of a prompt at a member: the member's queue and the prompt's work there, at the member's measured
//! speed, and the measured delay of the hand-over if another member decodes.
//!
//! **Decode.** The choice is, in this order:
//! 1. The member with the longest cached prefix of the prompt, if that is at least half of it and the member has pages for the request: a
//!    conversation continues where its KV is.
//! 2. The member that decodes most and has pages for the request, while its steps take at most half as long again as if the answers of all
//!    members were spread evenly. Then many answers share one reading of the weights, and the other members prefill in long steps, without rows
//!    that they delay. On a CPU, where each row costs as much, answers are spread. A member is left out while requests wait there for admission,
//!    or while the members that can prefill for it are all much busier than others.
//! 3. A member with few rows and about the most free pages.
//! 4. If all are busy: of those with about the most free pages, one that prefills about as soon as any and has about the fewest rows. It prefills too,
//!    unless another member is better for that.
//!
//! The rows of a member are those that it reports and those expected from the router's own placements ([`DecodeShare`]) that are not in the
//! report, or, if they are more, those expected from all placements of the router.
//!
//! **Prefill.** The candidates are at most 8 members with the longest known prefixes and the 8 members with the shortest queues. Members
//! whose prefills fail pause. The rules, in this order:
//! 1. A candidate without a queue whose speed is unknown, and that has not ended a prefill yet, is tried first.
//! 2. If no candidate is predicted to meet [`RoutingConfig::ttft_target`], the soonest is chosen or, at random, one that is about as good.
//! 3. The cost of a candidate is the time of these tokens at its speed: the work, an eighth of the queue, and the tokens that the member has
//!    computed recently in excess of the others (at most the prompt's length). So a prefix that is asked for very often gets a second holder, and
//!    busy times stay even. The candidate with the lowest cost is chosen, or one with as little work that is
//!    faster or, at random, one that is about as good.
//! 4. If no member has the first tokens of the prompt, only the soonest candidates are considered, and a hash of these tokens chooses among those
//!    that cost about the same. So several routers that do not know each other choose the same member. A node that has received the request
//!    itself ([`Ask::decode_on`]) prefills it, unless another candidate is clearly sooner. For this, the predictions of the others contain the
//!    price of the hand-over: a quarter of the tokens in the node's queue and in the prompt.
//!
//! Last, the chosen candidate is compared with the decoding member, which prefills if its first token is sooner by more than
//! [`RoutingConfig::local_if_sooner_by`]. That is the price of delaying the answers that it decodes. For a continuation, that is, if the
//! decoding member has at most half as much to compute, the price is at most the time that it computes. If the price is zero, the
//! decoding member is a candidate among the others.
//!
//! **Several routers.** Routers that do not know each other see the same reports. If each chose the best member, all would choose the same one until the next
//! report. So a router chooses at random, with its own seed, among the candidates that are about as good as the best one: the predicted time is at
//! most 5 % longer, which is less than the error of a prediction, and the work differs by at most 2 % of the prompt. Members that hold
//! the same prefix and decode equally much are chosen at random too. Two choices stay the same in all routers on purpose: a prompt with an unknown beginning
//! goes to the member that its hash chooses, so that its KV is computed once, and answers go to the member that decodes most.
//! Each router adds what it has placed to the last report. It adds answers to a member until the rows that it expects there fill the room in that
//! report, so `n` routers may fill it `n` times. Conversations that return to their KV are limited only by pages.
//!
//! `routing/tests/several.rs` has several routers, and `routing/tests/fleet.rs` measures these rules on a small model of a fleet.

mod choice;
mod index;
mod member;
mod prefix;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use connector::frame::Capabilities;

use crate::messages::{LoadReport, PrefillOutcome};
use crate::request::CacheSalt;
use choice::{Decision, Estimate};
use common::splitmix::SplitMix64;
use index::{Key, PrefixIndex};
use member::{KeySet, Member, Work};
use prefix::prefixes;

pub use prefix::PromptHashes;

/// The configuration of a router.
#[derive(Clone, Debug)]
pub struct RoutingConfig {
    /// `routing.index_bytes`: memory for the prefix index. 0 if prompts are not cached.
    pub index_bytes: u64,
    /// `routing.ttft_target`: members that are predicted to meet this time to first token are chosen for their prefixes.
    pub ttft_target: Duration,
    /// `frontend.local_if_sooner_by`: the decoding member prefills if its first token is sooner by more than this. Zero makes it a candidate
    /// among the others.
    pub local_if_sooner_by: Duration,
    /// `frontend.local`: whether the decoding member may prefill.
    pub local: LocalPrefill,
    /// Seed of the choices among members that are about as good. It differs between routers, so that those with the same reports do not all
    /// choose the same member.
    pub seed: u64,
}

impl Default for RoutingConfig {
    fn default() -> Self {
        Self {
            index_bytes: 16 << 20,
            ttft_target: Duration::from_secs(1),
            local_if_sooner_by: Duration::from_secs(1),
            local: LocalPrefill::Auto,
            seed: 0,
        }
    }
}

/// Whether the member that decodes a request may also prefill it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalPrefill {
    /// If its first token is sooner by enough, or if no other member can prefill.
    #[default]
    Auto,
    /// Never.
    Never,
    /// Always, also if it does not prefill for others.
    Always,
}

/// What the router knows of a member when it joins.
#[derive(Clone, Copy, Debug)]
pub struct Joining {
    /// A number that all routers know the member by, for example a hash of its address.
    pub name: u64,
    /// The work that the member accepts.
    pub capabilities: Capabilities,
    /// Pages of its pool.
    pub pool_pages: u32,
}

/// A request that is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a, M> {
    /// Prompt token ids.
    pub prompt: &'a [u32],
    /// The salt of its prefix cache.
    pub salt: Option<CacheSalt>,
    /// The hashes of the prompt with its salt, if they are computed already.
    pub hashes: Option<&'a PromptHashes>,
    /// Whether it may use cached pages.
    pub reads_cache: bool,
    /// Number of tokens to sample.
    pub max_tokens: u32,
    /// The member that decodes; `None`: the router chooses it.
    pub decode_on: Option<M>,
    /// Whether the decoding member may prefill.
    pub local: LocalPrefill,
    /// Members with a smaller context get no part of the request.
    pub context_tokens: u32,
    /// Members that must not prefill, because they have failed to. If the router chooses the decoder, they must not decode either.
    pub not_on: &'a [M],
}

/// What a request takes of the member that decodes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodeShare {
    /// KV pages at its longest.
    pub pages: u32,
    /// The part of its life, in thousandths, in which it is expected to decode. The sum of these parts over the requests of a member is the number
    /// of its sequences that decode at one time (Little's law).
    pub millirows: u32,
}

impl DecodeShare {
    fn plus(self, other: Self) -> Self {
        Self {
            pages: self.pages.saturating_add(other.pages),
            millirows: self.millirows.saturating_add(other.millirows),
        }
    }

    /// Zero where `other` is larger.
    fn minus(self, other: Self) -> Self {
        Self {
            pages: self.pages.saturating_sub(other.pages),
            millirows: self.millirows.saturating_sub(other.millirows),
        }
    }
}

/// Where a request runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed<M> {
    /// The member that decodes.
    pub decode_on: M,
    /// What counts there; nothing if the router did not choose it. [`Routing::decoded`] takes it.
    pub decode: DecodeShare,
    /// The member that prefills.
    pub prefill_on: M,
    /// The prompt's work there; [`Routing::prefilled`] takes it.
    pub prefill_tokens: u32,
    /// Number of members whose time to first token was predicted.
    pub predictions: usize,
}

/// A request cannot be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPlaced {
    /// No member decodes.
    #[error("no member of the fleet decodes")]
    NoDecoder,
    /// No member may prefill the request now.
    #[error("no member of the fleet can prefill the prompt")]
    NoPrefiller,
}

/// The members of a fleet, and what was placed on them.
#[derive(Debug)]
pub struct Routing<M> {
    page_tokens: u32,
    config: RoutingConfig,
    /// By their keys. The key of a member that has left is used again.
    members: Vec<Option<Member<M>>>,
    keys: BTreeMap<M, Key>,
    random: SplitMix64,
    index: PrefixIndex,
}

impl<M: Copy + Ord> Routing<M> {
    /// A router without members. Pages have `page_tokens` tokens.
    pub fn new(page_tokens: u32, config: RoutingConfig) -> Self {
        let (index, random) = (PrefixIndex::new(config.index_bytes), SplitMix64::new(config.seed));
        let (members, keys) = (Vec::new(), BTreeMap::new());
        Self { page_tokens: page_tokens.max(1), config, members, keys, random, index }
    }

    /// A member joins. A member that is known starts afresh.
    pub fn joined(&mut self, id: M, joining: Joining) {
        self.left(id);
        // It starts with as much recent work as the busiest member, so that it does not get all prompts for a while.
        let work = self.members().map(|(_, member)| member.work).fold(Work::default(), Work::or_larger);
        let free = self.members.iter().position(Option::is_none).unwrap_or(self.members.len());
        self.members.resize_with(self.members.len().max(free + 1), || None);
        self.members[free] = Some(Member::new(id, joining, work));
        let key = free as Key;
        self.keys.insert(id, key);
        self.index.set_pool(key, joining.pool_pages);
    }

    /// A member is lost, or accepts no new prompts.
    pub fn left(&mut self, id: M) {
        let Some(key) = self.keys.remove(&id) else { return };
        self.members[key as usize] = None;
        self.index.remove(key);
        // The next member with this key prefills for no member that has not named it.
        let others = self.members.iter_mut().flatten();
        others.filter_map(|member| member.prefillers.as_mut()).for_each(|prefillers| prefillers.remove(key));
    }

    /// A member has reported its load. The report is taken to contain all placed requests.
    pub fn reported(&mut self, now: Instant, id: M, report: &LoadReport) {
        if let Some(member) = self.member_mut(id) {
            member.all_decodes_in_reports();
            member.reported(now, report, member.waiting);
        }
    }

    /// A member has reported its load. `prompts` are the placed prompts that this report contains for the first
    /// time, by their [`Placed::prefill_tokens`]. They no longer count as waiting. The report contains the placed requests for which
    /// [`decode_in_reports`](Self::decode_in_reports) was called.
    pub fn reported_with(
        &mut self,
        now: Instant,
        id: M,
        report: &LoadReport,
        prompts: impl IntoIterator<Item = u32>,
    ) {
        if let Some(member) = self.member_mut(id) {
            prompts.into_iter().for_each(|tokens| member.in_reports(tokens));
            member.reported(now, report, 0);
        }
    }

    /// Whether a member takes new requests. One that takes none keeps what the router knows of it.
    pub fn accepts(&mut self, id: M, accepts: bool) {
        if let Some(member) = self.member_mut(id) {
            member.accepts = accepts;
        }
    }

    /// Only these other members can prefill for this one, until the next call. Those that have not joined are ignored.
    pub fn prefillers_of(&mut self, id: M, prefillers: impl IntoIterator<Item = M>) {
        let mut set = KeySet::default();
        prefillers.into_iter().filter_map(|id| self.keys.get(&id)).for_each(|key| set.insert(*key));
        if let Some(member) = self.member_mut(id) {
            member.prefillers = Some(set);
        }
    }

    /// A member has reported the maximum number of tokens of a prompt and its answer together. Until then, every request fits.
    pub fn context_reported(&mut self, id: M, tokens: u32) {
        if let Some(member) = self.member_mut(id) {
            member.context_tokens = tokens;
        }
    }

    /// A member has reported the pages that can keep the KV of earlier prompts.
    pub fn cache_reported(&mut self, id: M, pages: u32) {
        if let Some(key) = self.keys.get(&id) {
            self.index.set_pool(*key, pages);
        }
    }

    /// A member has reported the pages of its pool, and how many of them are in use.
    pub fn room_changed(&mut self, id: M, pool_pages: u32, used_pages: u32) {
        if let Some(member) = self.member_mut(id) {
            member.set_room(pool_pages, used_pages);
        }
    }

    /// A member has reported how many requests wait for admission there. Their prompts are in no queue that the router knows.
    pub fn queued(&mut self, id: M, requests: u64) {
        if let Some(member) = self.member_mut(id) {
            member.queued = requests;
        }
    }

    /// Whether the member has joined and not left.
    pub fn has(&self, id: M) -> bool {
        self.keys.contains_key(&id)
    }

    /// The prefill of a placed request has ended. `tokens` is [`Placed::prefill_tokens`].
    pub fn prefilled(&mut self, now: Instant, id: M, tokens: u32, outcome: &PrefillOutcome) {
        if let Some(member) = self.member_mut(id) {
            member.over(now, tokens, outcome);
        }
    }

    /// The hand-over of a prefill from this member has added this time to the request.
    pub fn handed_over(&mut self, id: M, micros: u64) {
        if let Some(member) = self.member_mut(id) {
            member.handed_over(micros);
        }
    }

    /// The next report of the member that decodes a placed request contains it, or the request is about to end and no report has contained it.
    /// `share` is [`Placed::decode`].
    pub fn decode_in_reports(&mut self, id: M, share: DecodeShare) {
        if let Some(member) = self.member_mut(id) {
            member.decode_in_reports(share);
        }
    }

    /// A placed request has ended. `share` is [`Placed::decode`].
    pub fn decoded(&mut self, id: M, share: DecodeShare) {
        if let Some(member) = self.member_mut(id) {
            member.decoded(share);
        }
    }

    /// Total work of the placed prompts that are not computed yet.
    pub fn waiting(&self) -> u64 {
        self.members().map(|(_, member)| member.waiting).sum()
    }

    /// Pages and expected thousandths of rows of the requests that were placed to decode and have not ended, and of those of them that are in
    /// no report yet.
    pub fn placed(&self) -> [(u64, u64); 2] {
        let mut sums = [(0, 0); 2];
        for (_, member) in self.members() {
            for (sum, share) in sums.iter_mut().zip([member.placed, member.unreported]) {
                *sum = (sum.0 + u64::from(share.pages), sum.1 + u64::from(share.millirows));
            }
        }
        sums
    }

    /// The number of members that get requests.
    pub fn accepting(&self) -> usize {
        self.members().filter(|(_, member)| member.accepts).count()
    }

    /// Bytes of the prefix index.
    pub fn index_bytes(&self) -> u64 {
        self.index.bytes()
    }

    /// What the requests that were placed on a member to decode and have not ended take.
    #[cfg(test)]
    pub(crate) fn share_of(&self, id: M) -> DecodeShare {
        self.keys.get(&id).map_or(DecodeShare::default(), |key| self.member(*key).placed)
    }

    /// The pages that are free on a member.
    #[cfg(test)]
    pub(crate) fn room(&self, id: M) -> u32 {
        self.keys.get(&id).map_or(0, |key| self.member(*key).room())
    }

    /// The rows of a member.
    #[cfg(test)]
    pub(crate) fn rows(&self, id: M) -> f64 {
        self.keys.get(&id).map_or(0.0, |key| self.member(*key).rows())
    }

    fn member_mut(&mut self, id: M) -> Option<&mut Member<M>> {
        let key = *self.keys.get(&id)?;
        self.members[key as usize].as_mut()
    }

    /// The member of a key in use.
    fn member(&self, key: Key) -> &Member<M> {
        self.members[key as usize].as_ref().expect("keys in use have members")
    }

    fn members(&self) -> impl Iterator<Item = (Key, &Member<M>)> {
        (0..).zip(&self.members).filter_map(|(key, member)| Some((key, member.as_ref()?)))
    }

    /// Places a request.
    ///
    /// # Errors
    /// [`NotPlaced`].
    pub fn place(&mut self, now: Instant, ask: &Ask<'_, M>) -> Result<Placed<M>, NotPlaced> {
        self.place_with(now, ask, None)
    }

    /// Places a request whose prefiller was chosen elsewhere. [`Ask::local`] and [`Ask::not_on`] do not matter, and neither do pauses.
    ///
    /// # Errors
    /// [`NotPlaced`].
    pub fn place_on(
        &mut self,
        now: Instant,
        ask: &Ask<'_, M>,
        prefill_on: M,
    ) -> Result<Placed<M>, NotPlaced> {
        let prefiller = self.keys.get(&prefill_on).copied().ok_or(NotPlaced::NoPrefiller)?;
        self.place_with(now, ask, Some(prefiller))
    }

    /// Places a request, on this prefiller if there is one.
    fn place_with(
        &mut self,
        now: Instant,
        ask: &Ask<'_, M>,
        prefiller: Option<Key>,
    ) -> Result<Placed<M>, NotPlaced> {
        let computed;
        let all = match ask.hashes {
            _ if self.config.index_bytes == 0 => &[][..],
            Some(known) if known.page_tokens == self.page_tokens => &known.hashes,
            _ => {
                computed = prefixes(ask.salt, ask.prompt, self.page_tokens);
                &computed
            }
        };
        let draw = self.random.draw();
        let decision = Decision::new(self, now, ask, all, draw);
        let decoder = match ask.decode_on {
            Some(id) => self.keys.get(&id).map(|key| (*key, false)),
            None => decision.decoder(),
        };
        let (decoder, stays) = decoder.ok_or(NotPlaced::NoDecoder)?;
        let (choice, predictions) = match prefiller {
            Some(key) => (Some(decision.estimate(key, decoder, decision.fastest)), 0),
            None => decision.prefiller(decoder, stays),
        };
        let Estimate { key: prefiller, work, ttft, .. } = choice.ok_or(NotPlaced::NoPrefiller)?;
        let (decode_on, prefill_on) = (self.member(decoder).id, self.member(prefiller).id);
        let decode = match ask.decode_on {
            Some(_) => DecodeShare::default(),
            None => {
                let millirows = self.member(decoder).millirows(ask.max_tokens, ttft);
                DecodeShare { pages: self.pages(ask), millirows }
            }
        };
        self.index.insert(prefiller, all);
        if decoder != prefiller {
            self.index.insert(decoder, all);
        }
        if let Some(member) = self.member_mut(decode_on) {
            member.place_decode(decode);
        }
        if let Some(member) = self.member_mut(prefill_on) {
            member.place(now, work);
        }
        Ok(Placed { decode_on, decode, prefill_on, prefill_tokens: work, predictions })
    }

    /// Pages of the request at its longest. The last sampled token needs no KV.
    fn pages(&self, ask: &Ask<'_, M>) -> u32 {
        let tokens = ask.prompt.len() as u64 + u64::from(ask.max_tokens.saturating_sub(1));
        tokens.div_ceil(u64::from(self.page_tokens)) as u32
    }
}

#[cfg(test)]
mod tests;

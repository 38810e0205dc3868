//! The choice of a decoder and a prefiller for one request.

use std::cmp::Reverse;
use std::time::Instant;

use super::index::{Key, Path};
use super::member::Member;
use super::prefix::{PrefixHash, rendezvous};
use super::{Ask, LocalPrefill, Routing};

/// Maximum number of candidates of each kind: members with the longest prefixes, and members with the shortest queues.
pub(super) const CANDIDATES: usize = 8;

/// Tokens at the start of a prompt that identify its system prompt. They are long enough to contain more than the fixed beginning of a chat
/// template.
const FIRST_TOKENS: u32 = 256;

/// Part of a queue that counts in the cost of a candidate. A low weight keeps prompts with their prefixes while
/// [`ttft_target`](super::RoutingConfig::ttft_target) is met.
const QUEUE_WEIGHT: f64 = 1.0 / 8.0;

/// Members whose computed tokens differ by less than this part, and the length of a prompt, count as even.
const UNEVEN: f64 = 0.1;

/// Candidates whose costs differ by less than this part of the prompt's length count as equal for a prompt with an unknown beginning.
const NEAR_COST: f64 = 0.5;

/// Candidates have about the same work if it differs by less than this part of the prompt's length.
const NEAR_WORK: f64 = 0.02;

/// Predicted times that differ by less than this part are about the same. A prediction is a number of tokens multiplied by a moving average of
/// the member's speed, which is not more exact than this.
const NEAR_TTFT: f64 = 0.05;

/// A member is about as fast as another one if it needs at most this many times as long for a token. One that decodes in the same steps is slower.
const NEAR_SPEED: f64 = 1.2;

/// The price of a hand-over, as a part of the tokens in the node's queue and in the prompt. It applies where a node has received the request and is
/// a candidate itself: a hand-over costs both nodes time, and the longer the queues are, the less exact are their predictions. If the router also
/// chooses the decoding node, hand-overs keep the computed tokens even, and have no price.
const HAND_OVER: f64 = 0.25;

/// Prefillers are much busier than others if their queues take longer by this part of the TTFT target.
const MUCH_BUSIER: f64 = 0.25;

/// Members whose free pages differ by less than this part of the pool count as equal.
const NEAR_ROOM: u32 = 8;

/// A candidate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimate {
    pub(super) key: Key,
    /// Tokens of the prompt that it must compute.
    pub(super) work: u32,
    /// Predicted microseconds to the first token, with the price of the hand-over.
    pub(super) ttft: f64,
    /// The cost in tokens of the fastest candidate.
    cost: f64,
    /// The part of the cost that does not depend on the queue.
    lasting: f64,
    /// Tokens that are to be computed before it, and the price of the hand-over.
    queue: u64,
    /// Of candidates that are about as good, the one with the highest weight is chosen.
    weight: u64,
}

fn lowest(estimates: &[Estimate], value: impl Fn(&Estimate) -> f64) -> Option<Estimate> {
    let order = |a: &&Estimate, b: &&Estimate| value(a).total_cmp(&value(b)).then(b.weight.cmp(&a.weight));
    estimates.iter().min_by(order).copied()
}

fn heaviest(estimates: impl Iterator<Item = Estimate>) -> Option<Estimate> {
    estimates.max_by_key(|estimate| estimate.weight)
}

/// The choice for one request.
pub(super) struct Decision<'a, M> {
    routing: &'a Routing<M>,
    now: Instant,
    ask: &'a Ask<'a, M>,
    /// What is known of the beginning of the prompt.
    path: Path<'a>,
    /// Number of pages of the prompt that may be cached.
    pages: usize,
    /// The hash of the prompt's first tokens, if no member is known to have their KV.
    first: Option<PrefixHash>,
    /// A random number.
    draw: u64,
}

impl<'a, M: Copy + Ord> Decision<'a, M> {
    /// `hashes` are those of the prompt's full pages, and `draw` is a random number.
    pub(super) fn new(
        routing: &'a Routing<M>,
        now: Instant,
        ask: &'a Ask<'a, M>,
        hashes: &[PrefixHash],
        draw: u64,
    ) -> Self {
        // The last token is always computed, because its logits are needed.
        let usable = ask.prompt.len().saturating_sub(1) / routing.page_tokens as usize;
        let cached = if ask.reads_cache { &hashes[..usable.min(hashes.len())] } else { &[] };
        let path = routing.index.path(cached);
        let first_pages = (FIRST_TOKENS.div_ceil(routing.page_tokens) as usize).min(cached.len());
        let is_known = path.known() >= first_pages;
        let first = first_pages.checked_sub(1).filter(|_| !is_known).map(|last| cached[last]);
        Self { routing, now, ask, path, pages: cached.len(), first, draw }
    }

    /// Decides between members that are about as good: the highest weight is chosen. All routers give a member the same weight for a prompt with an
    /// unknown beginning. Otherwise the weights are random.
    fn weight(&self, member: &Member<M>) -> u64 {
        rendezvous(self.first.unwrap_or(PrefixHash(self.draw)), member.name)
    }

    /// True if the request may run on this member.
    fn is_allowed(&self, member: &Member<M>) -> bool {
        member.accepts
            && member.context_tokens >= self.ask.context_tokens
            && !self.ask.not_on.contains(&member.id)
    }

    /// The members that hold the longest prefixes, and the pages that they hold. Those that hold equally much are in random order.
    fn holders(&self, is_usable: impl Fn(Key, &Member<M>) -> bool) -> Vec<(Key, usize)> {
        let from = (self.draw % self.routing.members.len().max(1) as u64) as Key;
        self.path.longest(CANDIDATES, from, |key| is_usable(key, self.routing.member(key)))
    }

    /// The member that decodes the request; and whether it also prefills, unless another member is better for that.
    pub(super) fn decoder(&self) -> Option<(Key, bool)> {
        let may = |member: &Member<M>| member.capabilities.decode && self.is_allowed(member);
        let decoders = || self.routing.members().filter(|(_, member)| may(member));
        let pages = self.routing.pages(self.ask);
        let (mut count, mut rows, mut least) = (0.0_f64, 1.0, u32::MAX);
        for (_, member) in decoders() {
            count += 1.0;
            rows += member.rows();
            least = least.min(member.decode_steps.map_or(u32::MAX, |steps| steps.least_micros));
        }
        let (even, least) = (rows / count.max(1.0), f64::from(least));
        let is_free = |member: &Member<M>| member.has_free_row(even, least);
        let millirows = |member: &Member<M>| (1e3 * member.rows()) as u64;
        let joins = |member: &Member<M>| member.rows() > 0.0 && member.room() >= pages && is_free(member);
        // The last one of equal ones is taken.
        let returns = self.holders(|_, member| may(member)).into_iter().rev();
        let returns = returns
            .map(|(key, resident)| (key, resident, self.routing.member(key)))
            .filter(|(_, resident, member)| 2 * resident >= self.pages.max(1) && member.room() >= pages)
            .max_by_key(|(_, resident, member)| {
                (*resident, is_free(member), if joins(member) { millirows(member) } else { 0 })
            });
        if let Some((key, ..)) = returns {
            return Some((key, false));
        }
        // All routers choose the same one of those that decode equally much.
        let mut joined: Option<(u64, u64, Key)> = None;
        let mut most = 0;
        for (key, member) in decoders() {
            most = most.max(member.room());
            let rank = (millirows(member), member.name, key);
            if joined.is_none_or(|joined| rank > joined) && joins(member) {
                joined = Some(rank);
            }
        }
        if let Some((.., key)) = joined.filter(|(.., key)| self.has_prefillers(*key)) {
            return Some((key, false));
        }
        let near = || {
            decoders().filter(move |(_, member)| {
                member.room().saturating_add(member.pool_pages / NEAR_ROOM) >= most
            })
        };
        let free = near().filter(|(_, member)| is_free(member));
        let free = free.max_by_key(|(_, member)| self.weight(member));
        free.map(|(key, _)| (key, false)).or_else(|| Some((self.least_busy(&near)?, true)))
    }

    /// Of busy members, one that prefills about as soon as any, because it needs no hand-over, and that has about the fewest rows.
    fn least_busy<'m, I: Iterator<Item = (Key, &'m Member<M>)>>(&self, members: &dyn Fn() -> I) -> Option<Key>
    where
        M: 'm,
    {
        let tokens = self.ask.prompt.len() as f64;
        let micros =
            |member: &Member<M>| (member.queue() as f64 + tokens) * member.expected_speed(self.now, 1.0);
        let soonest = members().map(|(_, member)| micros(member)).min_by(f64::total_cmp)?;
        let soon = || members().filter(|(_, member)| micros(member) <= (1.0 + NEAR_TTFT) * soonest);
        let fewest = soon().map(|(_, member)| member.rows()).min_by(f64::total_cmp)?;
        let few = soon().filter(|(_, member)| member.rows() <= (1.0 + NEAR_TTFT) * fewest);
        few.max_by_key(|(_, member)| self.weight(member)).map(|(key, _)| key)
    }

    /// False if the members that can prefill for this one are all much busier than others.
    fn has_prefillers(&self, key: Key) -> bool {
        let connected = self.routing.member(key).prefillers.as_ref();
        let (mut shortest, mut own) = (f64::INFINITY, f64::INFINITY);
        for (other, member) in self.routing.members() {
            if !(member.capabilities.prefill && member.accepts) {
                continue;
            }
            let micros = member.queue() as f64 * member.expected_speed(self.now, 1.0);
            shortest = shortest.min(micros);
            if other == key || connected.is_none_or(|connected| connected.contains(other)) {
                own = own.min(micros);
            }
        }
        let much = self.routing.config.ttft_target.as_secs_f64() * 1e6 * MUCH_BUSIER;
        shortest.is_infinite() || own <= shortest + much
    }

    /// The member that prefills; and the number of predictions. If `stays`, that is the decoding member, unless another one is better.
    pub(super) fn prefiller(&self, decoder: Key, stays: bool) -> (Option<Estimate>, usize) {
        let here = self.routing.member(decoder);
        let may_prefill = here.capabilities.prefill || self.ask.local == LocalPrefill::Always;
        let is_local = may_prefill && !self.ask.not_on.contains(&here.id);
        let local = match self.ask.local {
            LocalPrefill::Never => None,
            _ => is_local.then_some(decoder),
        };
        let speeds = self.routing.members().filter_map(|(_, member)| member.speed());
        let fastest = speeds.min_by(f64::total_cmp).unwrap_or(0.0);
        let estimate = |key: Key| self.estimate(key, decoder, fastest);
        if self.ask.local == LocalPrefill::Always {
            return (local.map(estimate), usize::from(local.is_some()));
        }
        let mut keys = self.candidates(decoder, |member| member.is_open(self.now));
        if keys.is_empty() && local.is_none() {
            // A member that pauses after a failure is better than none.
            keys = self.candidates(decoder, |_| true);
        }
        let mut candidates: Vec<Estimate> = keys.into_iter().map(&estimate).collect();
        for here in candidates.iter_mut().filter(|here| stays && here.key == decoder) {
            here.weight = u64::MAX;
        }
        let predictions = candidates.len() + usize::from(local.is_some() && !self.is_equal());
        let choice = match (self.best(&mut candidates), local) {
            (None, local) => local.map(estimate),
            (Some(best), None) => Some(best),
            (Some(best), _) if self.is_equal() => Some(best),
            (Some(best), Some(local)) => {
                // Without a measured speed, the decoding member is assumed to be as fast as the other one.
                let speed = self.routing.member(best.key).expected_speed(self.now, fastest);
                let here = self.estimate(local, decoder, speed);
                let own = self.routing.member(local).speed().unwrap_or(speed);
                Some(if self.is_local_sooner(&here, &best, own) { here } else { best })
            }
        };
        (choice, predictions)
    }

    /// True if the decoding member is a candidate among the others.
    fn is_equal(&self) -> bool {
        self.ask.local == LocalPrefill::Auto && self.routing.config.local_if_sooner_by.is_zero()
    }

    /// True if the prompt should stay where it arrived unless another member is clearly sooner.
    fn hand_over_has_price(&self) -> bool {
        self.ask.decode_on.is_some() && self.is_equal()
    }

    /// True if the decoding member should prefill, although another member could.
    fn is_local_sooner(&self, here: &Estimate, there: &Estimate, speed: f64) -> bool {
        let price = self.routing.config.local_if_sooner_by.as_secs_f64() * 1e6;
        let is_continuation = 2 * u64::from(here.work) <= u64::from(there.work);
        let price = match (is_continuation, there.queue) {
            (true, _) => price.min(f64::from(here.work) * speed),
            // An idle member is not passed over for its measured speed, so that a member that was slow is measured again.
            (false, 0) => return false,
            (false, _) => price,
        };
        there.ttft - here.ttft > price
    }

    /// Members that may prefill the request: those with the longest prefixes, and those with the shortest queues.
    fn candidates(&self, decoder: Key, is_open: impl Fn(&Member<M>) -> bool) -> Vec<Key> {
        let connected = self.routing.member(decoder).prefillers.as_ref();
        let may = |key: Key, member: &Member<M>| {
            (if key == decoder {
                self.is_equal()
            } else {
                connected.is_none_or(|connected| connected.contains(key))
            }) && member.capabilities.prefill
                && self.is_allowed(member)
                && is_open(member)
        };
        let mut keys: Vec<Key> = self.holders(may).into_iter().map(|(key, _)| key).collect();
        // The shortest queues, in order.
        let mut idlest: Vec<(u64, Reverse<u64>, Key)> = Vec::with_capacity(CANDIDATES + 1);
        for (key, member) in self.routing.members() {
            let queue = member.queue();
            let is_longer = idlest.get(CANDIDATES - 1).is_some_and(|(last, ..)| queue > *last);
            if is_longer || !may(key, member) {
                continue;
            }
            let entry = (queue, Reverse(self.weight(member)), key);
            idlest.insert(idlest.partition_point(|other| *other < entry), entry);
            idlest.truncate(CANDIDATES);
        }
        for (.., key) in idlest {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        // The node that has received the request is compared with the others, however many there are.
        if self.is_equal() && may(decoder, self.routing.member(decoder)) && !keys.contains(&decoder) {
            keys.push(decoder);
        }
        keys
    }

    pub(super) fn estimate(&self, key: Key, decoder: Key, fastest: f64) -> Estimate {
        let member = self.routing.member(key);
        let resident = self.path.resident(key) as u32 * self.routing.page_tokens;
        let work = self.ask.prompt.len() as u32 - resident;
        let has_price = key != decoder && self.hand_over_has_price();
        let here = self.routing.member(decoder).queue() as f64 + self.ask.prompt.len() as f64;
        let price = if has_price { (HAND_OVER * here) as u64 } else { 0 };
        let queue = member.queue().saturating_add(price);
        let delay = if key == decoder { 0.0 } else { member.hand_over() };
        let ttft = (queue as f64 + f64::from(work)) * member.expected_speed(self.now, fastest) + delay;
        Estimate { key, work, ttft, cost: 0.0, lasting: 0.0, queue, weight: self.weight(member) }
    }

    /// True if the first token comes about as soon as that of `best`, or sooner, after about as much work.
    fn is_as_good(&self, estimate: &Estimate, best: &Estimate) -> bool {
        let work = (f64::from(estimate.work) - f64::from(best.work)).abs();
        work <= NEAR_WORK * self.ask.prompt.len() as f64 && estimate.ttft <= (1.0 + NEAR_TTFT) * best.ttft
    }

    /// The best of the candidates.
    fn best(&self, candidates: &mut [Estimate]) -> Option<Estimate> {
        let member = |estimate: &Estimate| self.routing.member(estimate.key);
        let is_untried = |estimate: &Estimate| {
            let member = member(estimate);
            member.speed().is_none() && !member.is_tried && member.queue() == 0
        };
        if let Some(untried) = heaviest(candidates.iter().copied().filter(is_untried)) {
            return Some(untried);
        }
        let target = self.routing.config.ttft_target.as_secs_f64() * 1e6;
        if candidates.iter().all(|estimate| estimate.ttft > target) {
            let soonest = lowest(candidates, |estimate| estimate.ttft)?;
            return heaviest(candidates.iter().copied().filter(|other| self.is_as_good(other, &soonest)));
        }
        // Only the members' own measurements count: ours contain waits and fixed costs of short prompts.
        let reported = |estimate: &Estimate| member(estimate).valid_report(self.now);
        let fastest = candidates.iter().filter_map(reported).min_by(f64::total_cmp).unwrap_or(1.0).max(1e-3);
        let speed = |estimate: &Estimate| reported(estimate).unwrap_or(fastest);
        // Tokens are counted in the time of the fastest candidate: one that is half as fast, because it decodes too, pays twice for each.
        // Small differences do not count.
        let ratio = |estimate: &Estimate| {
            let ratio = speed(estimate) / fastest;
            if ratio > NEAR_SPEED { ratio } else { 1.0 }
        };
        let recent = |estimate: &Estimate| member(estimate).recent(self.now) * ratio(estimate);
        let least = candidates.iter().map(recent).min_by(f64::total_cmp).unwrap_or(0.0);
        let length = self.ask.prompt.len() as f64;
        for estimate in candidates.iter_mut() {
            let ahead = (recent(estimate) - least - length - UNEVEN * least).clamp(0.0, length);
            let ratio = ratio(estimate);
            estimate.lasting = f64::from(estimate.work) * ratio + ahead;
            estimate.cost = estimate.lasting + estimate.queue as f64 * QUEUE_WEIGHT * ratio;
        }
        let timely: Vec<Estimate> =
            candidates.iter().filter(|estimate| estimate.ttft <= target).copied().collect();
        let best = lowest(&timely, |estimate| estimate.cost)?;
        let with_work = timely
            .into_iter()
            .filter(|estimate| f64::from(estimate.work) <= f64::from(best.work) + NEAR_WORK * length);
        let with_work: Vec<Estimate> = with_work.collect();
        let soonest = lowest(&with_work, |estimate| estimate.ttft)?;
        if self.first.is_some() && self.hand_over_has_price() {
            return Some(soonest);
        }
        let near = |estimate: &Estimate| match self.first {
            Some(_) => estimate.ttft <= (1.0 + NEAR_TTFT) * soonest.ttft,
            // Computed tokens stay even among members that are about as fast.
            None => speed(estimate) <= NEAR_SPEED * speed(&soonest),
        };
        let near: Vec<Estimate> = with_work.into_iter().filter(near).collect();
        let best = lowest(&near, |estimate| estimate.cost)?;
        heaviest(near.into_iter().filter(|estimate| match self.first {
            Some(_) => estimate.cost <= best.cost + NEAR_COST * length,
            None => self.is_as_good(estimate, &best) && estimate.lasting <= best.lasting + NEAR_WORK * length,
        }))
    }
}

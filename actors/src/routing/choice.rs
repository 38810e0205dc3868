//! The choice of a decoder and a prefiller for one request.

use std::cmp::Reverse;
use std::time::Instant;

use super::index::Key;
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

/// Of those, candidates are left out whose first token comes later than the soonest one by more than this part of the prompt's own time.
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
    /// Tokens that are to be computed before it, and the price of the hand-over.
    queue: u64,
    turn: u64,
}

fn lowest(estimates: &[Estimate], value: impl Fn(&Estimate) -> f64) -> Option<Estimate> {
    estimates.iter().min_by(|a, b| value(a).total_cmp(&value(b)).then(a.turn.cmp(&b.turn))).copied()
}

impl<M: Copy + Ord> Routing<M> {
    /// The member that decodes a request of `pages` pages, but none of `not_on`.
    pub(super) fn choose_decoder(
        &self,
        now: Instant,
        cached: &[PrefixHash],
        pages: u32,
        not_on: &[M],
    ) -> Option<Key> {
        let may =
            |member: &Member<M>| member.capabilities.decode && member.accepts && !not_on.contains(&member.id);
        let decodes = |key: Key| self.members.get(&key).is_some_and(may);
        let from = (self.turn % u64::from(self.next_key.max(1))) as Key;
        let holders = self.index.longest(cached, CANDIDATES, from, decodes);
        let decoders = self.members.iter().filter(|(key, _)| decodes(**key));
        let least =
            decoders.clone().filter_map(|(_, member)| member.decode_steps).map(|steps| steps.least_micros);
        let least = f64::from(least.min().unwrap_or(u32::MAX));
        let millirows = |member: &Member<M>| (1e3 * member.rows()) as u64;
        let count = decoders.clone().count().max(1) as f64;
        let even = (decoders.clone().map(|(_, member)| member.rows()).sum::<f64>() + 1.0) / count;
        let joins = |member: &Member<M>| member.rows() > 0.0 && member.has_free_row(even, least);
        // Members that hold equally much are in turn; the last of equal ones would be taken.
        let returns = holders
            .into_iter()
            .rev()
            .map(|(key, resident)| (key, resident, &self.members[&key]))
            .filter(|(_, resident, member)| 2 * resident >= cached.len().max(1) && member.room() >= pages)
            .max_by_key(|(_, resident, member)| {
                let rows = if joins(member) { millirows(member) } else { 0 };
                (*resident, member.has_free_row(even, least), rows)
            });
        if let Some((key, ..)) = returns {
            return Some(key);
        }
        let joined = decoders.clone().filter(|(_, member)| member.room() >= pages && joins(member));
        let joined = joined.max_by_key(|(_, member)| (millirows(member), member.name)).map(|(key, _)| *key);
        if let Some(key) = joined.filter(|key| self.has_prefillers(now, *key)) {
            return Some(key);
        }
        let most = decoders.clone().map(|(_, member)| member.room()).max()?;
        let first = self.unknown_first_tokens(cached);
        let near = decoders
            .filter(|(_, member)| member.room().saturating_add(member.pool_pages / NEAR_ROOM) >= most);
        let queue_micros =
            |member: &Member<M>| (member.queue() as f64 * member.expected_speed(now, 1.0)) as u64;
        let preference = |member: &Member<M>| match (member.has_free_row(even, least), first) {
            (true, Some(first)) => (true, rendezvous(first, member.name), 0),
            (true, None) => (true, u64::from(member.room()), 0),
            // All are busy. The one that prefills soonest needs no hand-over.
            (false, _) => (false, u64::MAX - queue_micros(member), u64::MAX - millirows(member)),
        };
        near.max_by_key(|(_, member)| (preference(member), Reverse(member.turn))).map(|(key, _)| *key)
    }

    /// False if the members that can prefill for this one are all much busier than others.
    fn has_prefillers(&self, now: Instant, key: Key) -> bool {
        let here = &self.members[&key];
        let micros = |member: &Member<M>| member.queue() as f64 * member.expected_speed(now, 1.0);
        let reaches = |member: &Member<M>| {
            let connected = here.prefillers.as_ref().is_none_or(|prefillers| prefillers.contains(&member.id));
            member.id == here.id || connected
        };
        let may = |member: &&Member<M>| member.capabilities.prefill && member.accepts;
        let all = self.members.values().filter(may);
        let least = |queues: &mut dyn Iterator<Item = f64>| queues.min_by(f64::total_cmp);
        let Some(shortest) = least(&mut all.clone().map(micros)) else { return true };
        let much = self.config.ttft_target.as_secs_f64() * 1e6 * MUCH_BUSIER;
        least(&mut all.filter(|member| reaches(member)).map(micros)).is_some_and(|own| own <= shortest + much)
    }

    /// The hash of the prompt's first tokens, if no member is known to have their KV.
    fn unknown_first_tokens(&self, cached: &[PrefixHash]) -> Option<PrefixHash> {
        let pages = (FIRST_TOKENS.div_ceil(self.page_tokens) as usize).min(cached.len());
        let first = cached[pages.checked_sub(1)?];
        (!self.index.is_known(first)).then_some(first)
    }

    /// The member that prefills; and the number of predictions.
    pub(super) fn choose_prefiller(
        &self,
        now: Instant,
        decoder: Key,
        cached: &[PrefixHash],
        ask: &Ask<'_, M>,
    ) -> (Option<Estimate>, usize) {
        let here = &self.members[&decoder];
        let may_prefill = here.capabilities.prefill || ask.local == LocalPrefill::Always;
        let is_local = may_prefill && !ask.not_on.contains(&here.id);
        let local = match ask.local {
            LocalPrefill::Never => None,
            _ => is_local.then_some(decoder),
        };
        let fastest = self.members.values().filter_map(Member::speed).min_by(f64::total_cmp).unwrap_or(0.0);
        let estimate = |key: Key| self.estimate(now, key, decoder, cached, ask, fastest);
        if ask.local == LocalPrefill::Always {
            return (local.map(estimate), usize::from(local.is_some()));
        }
        let mut keys = self.candidates(decoder, cached, ask, |member| member.is_open(now));
        if keys.is_empty() && local.is_none() {
            // A member that pauses after a failure is better than none.
            keys = self.candidates(decoder, cached, ask, |_| true);
        }
        let mut candidates: Vec<Estimate> = keys.into_iter().map(&estimate).collect();
        let predictions = candidates.len() + usize::from(local.is_some() && !self.is_equal(ask));
        let choice = match (self.best(now, &mut candidates, cached, ask), local) {
            (None, local) => local.map(estimate),
            (Some(best), None) => Some(best),
            (Some(best), _) if self.is_equal(ask) => Some(best),
            (Some(best), Some(local)) => {
                // Without a measured speed, the decoding member is assumed to be as fast as the other one.
                let speed = self.members[&best.key].expected_speed(now, fastest);
                let here = self.estimate(now, local, decoder, cached, ask, speed);
                let is_sooner =
                    self.is_local_sooner(&here, &best, self.members[&local].speed().unwrap_or(speed));
                Some(if is_sooner { here } else { best })
            }
        };
        (choice, predictions)
    }

    /// True if the decoding member is a candidate among the others.
    fn is_equal(&self, ask: &Ask<'_, M>) -> bool {
        ask.local == LocalPrefill::Auto && self.config.local_if_sooner_by.is_zero()
    }

    /// True if the prompt should stay where it arrived unless another member is clearly sooner.
    fn hand_over_has_price(&self, ask: &Ask<'_, M>) -> bool {
        ask.decode_on.is_some() && self.is_equal(ask)
    }

    /// True if the decoding member should prefill, although another member could.
    fn is_local_sooner(&self, here: &Estimate, there: &Estimate, speed: f64) -> bool {
        let price = self.config.local_if_sooner_by.as_secs_f64() * 1e6;
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
    fn candidates(
        &self,
        decoder: Key,
        cached: &[PrefixHash],
        ask: &Ask<'_, M>,
        is_open: impl Fn(&Member<M>) -> bool,
    ) -> Vec<Key> {
        let connected = self.members[&decoder].prefillers.as_ref();
        let reaches = |member: &Member<M>| connected.is_none_or(|prefillers| prefillers.contains(&member.id));
        let may = |key: Key, member: &Member<M>| {
            let is_here = key == decoder;
            (if is_here { self.is_equal(ask) } else { reaches(member) })
                && member.capabilities.prefill
                && member.accepts
                && is_open(member)
                && !ask.not_on.contains(&member.id)
        };
        let is_usable = |key: Key| self.members.get(&key).is_some_and(|member| may(key, member));
        let from = (self.turn % u64::from(self.next_key.max(1))) as Key;
        let holders = self.index.longest(cached, CANDIDATES, from, is_usable);
        let mut keys: Vec<Key> = holders.into_iter().map(|(key, _)| key).collect();
        let open = self.members.iter().filter(|(key, member)| may(**key, member));
        let mut idlest: Vec<(u64, u64, Key)> =
            open.map(|(key, member)| (member.queue(), member.turn, *key)).collect();
        if idlest.len() > CANDIDATES {
            idlest.select_nth_unstable(CANDIDATES - 1);
            idlest.truncate(CANDIDATES);
        }
        let others: Vec<Key> =
            idlest.into_iter().map(|(.., key)| key).filter(|key| !keys.contains(key)).collect();
        keys.extend(others);
        // The node that has received the request is compared with the others, however many there are.
        if self.is_equal(ask) && is_usable(decoder) && !keys.contains(&decoder) {
            keys.push(decoder);
        }
        keys
    }

    pub(super) fn estimate(
        &self,
        now: Instant,
        key: Key,
        decoder: Key,
        cached: &[PrefixHash],
        ask: &Ask<'_, M>,
        fastest: f64,
    ) -> Estimate {
        let member = &self.members[&key];
        let work = self.work(key, cached, ask);
        let has_price = key != decoder && self.hand_over_has_price(ask);
        let here = self.members[&decoder].queue() as f64 + ask.prompt.len() as f64;
        let price = if has_price { (HAND_OVER * here) as u64 } else { 0 };
        let queue = member.queue().saturating_add(price);
        let delay = if key == decoder { 0.0 } else { member.hand_over() };
        let ttft = (queue as f64 + f64::from(work)) * member.expected_speed(now, fastest) + delay;
        Estimate { key, work, ttft, cost: 0.0, queue, turn: member.turn }
    }

    /// Tokens of the prompt that this member must compute.
    fn work(&self, key: Key, cached: &[PrefixHash], ask: &Ask<'_, M>) -> u32 {
        ask.prompt.len() as u32 - self.resident_tokens(key, cached)
    }

    /// The best of the candidates.
    fn best(
        &self,
        now: Instant,
        candidates: &mut [Estimate],
        cached: &[PrefixHash],
        ask: &Ask<'_, M>,
    ) -> Option<Estimate> {
        let is_untried = |estimate: &&Estimate| {
            let member = &self.members[&estimate.key];
            member.speed().is_none() && !member.is_tried && member.queue() == 0
        };
        if let Some(untried) = candidates.iter().filter(is_untried).min_by_key(|estimate| estimate.turn) {
            return Some(*untried);
        }
        let target = self.config.ttft_target.as_secs_f64() * 1e6;
        if candidates.iter().all(|estimate| estimate.ttft > target) {
            return lowest(candidates, |estimate| estimate.ttft);
        }
        // Only the members' own measurements count: ours contain waits and fixed costs of short prompts.
        let reported = |estimate: &Estimate| self.members[&estimate.key].valid_report(now);
        let fastest = candidates.iter().filter_map(reported).min_by(f64::total_cmp).unwrap_or(1.0).max(1e-3);
        let speed = |estimate: &Estimate| reported(estimate).unwrap_or(fastest);
        // Tokens are counted in the time of the fastest candidate: one that is half as fast, because it decodes too, pays twice for each.
        // Small differences do not count, so that members that are about as fast take turns.
        let ratio = |estimate: &Estimate| {
            let ratio = speed(estimate) / fastest;
            if ratio > NEAR_SPEED { ratio } else { 1.0 }
        };
        let recent = |estimate: &Estimate| self.members[&estimate.key].recent(now) * ratio(estimate);
        let least = candidates.iter().map(recent).min_by(f64::total_cmp).unwrap_or(0.0);
        let length = ask.prompt.len() as f64;
        for estimate in candidates.iter_mut() {
            let ahead = (recent(estimate) - least - length - UNEVEN * least).clamp(0.0, length);
            let tokens = f64::from(estimate.work) + estimate.queue as f64 * QUEUE_WEIGHT;
            estimate.cost = tokens * ratio(estimate) + ahead;
        }
        let timely: Vec<Estimate> =
            candidates.iter().filter(|estimate| estimate.ttft <= target).copied().collect();
        let best = lowest(&timely, |estimate| estimate.cost)?;
        let with_work = timely
            .into_iter()
            .filter(|estimate| f64::from(estimate.work) <= f64::from(best.work) + NEAR_WORK * length);
        let with_work: Vec<Estimate> = with_work.collect();
        let soonest = lowest(&with_work, |estimate| estimate.ttft)?;
        let first = self.unknown_first_tokens(cached);
        if first.is_some() && self.hand_over_has_price(ask) {
            return Some(soonest);
        }
        let own = f64::from(soonest.work) * self.members[&soonest.key].expected_speed(now, 0.0);
        let near = |estimate: &Estimate| match first {
            Some(_) => estimate.ttft <= soonest.ttft + NEAR_TTFT * own,
            // Computed tokens stay even among members that are about as fast.
            None => speed(estimate) <= NEAR_SPEED * speed(&soonest),
        };
        let near: Vec<Estimate> = with_work.into_iter().filter(near).collect();
        let best = lowest(&near, |estimate| estimate.cost)?;
        let Some(first) = first else { return Some(best) };
        let equal = near.into_iter().filter(|estimate| estimate.cost <= best.cost + NEAR_COST * length);
        equal.max_by_key(|estimate| {
            (rendezvous(first, self.members[&estimate.key].name), Reverse(estimate.turn))
        })
    }
}

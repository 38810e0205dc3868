//! What holds for every order of events.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::index::{PAGE_BYTES, SEGMENT_BYTES};
use super::*;

#[derive(Clone, Debug)]
enum Op {
    Join(u32),
    Leave(u32),
    /// The prompt's number and length, and whether the router chooses the decoder.
    Place(u32, u32, bool),
    /// The request of an earlier placement ends. The flag says whether its prefill failed.
    End(usize, bool),
    Report(u32, u64, u32),
    Wait(u64),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..6u32).prop_map(Op::Join),
        (1..6u32).prop_map(Op::Leave),
        (0..6u32, 1..400u32, any::<bool>())
            .prop_map(|(number, tokens, free)| Op::Place(number, tokens, free)),
        (0..6u32, 1..400u32, any::<bool>())
            .prop_map(|(number, tokens, free)| Op::Place(number, tokens, free)),
        (0..10usize, any::<bool>()).prop_map(|(placed, fails)| Op::End(placed, fails)),
        (0..6u32, 0..5000u64, 0..60u32).prop_map(|(id, waiting, pages)| Op::Report(id, waiting, pages)),
        (0..60_000u64).prop_map(Op::Wait),
    ]
}

/// A placement whose request has not ended, and whether the members that it names are still members.
#[derive(Debug)]
struct Live {
    placed: Placed<u32>,
    prefills: bool,
    decodes: bool,
}

/// The counters that a router must have, kept by a simple model.
#[derive(Debug, Default)]
struct Model {
    members: BTreeSet<u32>,
    live: Vec<Live>,
}

impl Model {
    /// The member has left, or has joined again without its earlier placements.
    fn left(&mut self, id: u32) {
        self.members.remove(&id);
        for live in &mut self.live {
            live.prefills &= live.placed.prefill_on != id;
            live.decodes &= live.placed.decode_on != id;
        }
    }

    /// The work placed on members, without that of members that have left.
    fn waiting(&self) -> u64 {
        let prefilling = self.live.iter().filter(|live| live.prefills);
        prefilling.map(|live| u64::from(live.placed.prefill_tokens)).sum()
    }

    fn placed_pages(&self, id: u32) -> u32 {
        let decoding = self.live.iter().filter(|live| live.decodes && live.placed.decode_on == id);
        decoding.map(|live| live.placed.decode.pages).sum()
    }

    /// The request of a placement ends. A router also hears of requests whose members have left. It does not if another member has joined
    /// under the same id since, because a session's id is never used again.
    fn end(&mut self, routing: &mut Routing<u32>, now: Instant, index: usize, fails: bool) {
        let Live { placed, prefills, decodes } = self.live.swap_remove(index);
        let outcome = if fails { PrefillOutcome::Failed } else { computed(&placed) };
        if prefills || !self.members.contains(&placed.prefill_on) {
            routing.prefilled(now, placed.prefill_on, placed.prefill_tokens, &outcome);
        }
        if decodes || !self.members.contains(&placed.decode_on) {
            routing.decoded(placed.decode_on, placed.decode);
        }
    }

    /// The router has the members and the counters of the model, and knows no prefixes of other members.
    fn is_followed_by(&self, routing: &Routing<u32>) -> Result<(), TestCaseError> {
        let members: BTreeSet<u32> = routing.members().map(|(_, member)| member.id).collect();
        prop_assert_eq!(&members, &self.members);
        prop_assert_eq!(routing.members().count(), members.len());
        prop_assert_eq!(routing.waiting(), self.waiting());
        for (_, member) in routing.members() {
            prop_assert_eq!(member.placed_pages, self.placed_pages(member.id));
        }
        routing.index.check().map_err(TestCaseError::fail)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Only members are chosen, the index keeps its bounds, the counters count only placements on members, and they return to zero. The
    /// end of a request whose member has left changes nothing.
    #[test]
    fn bounds_and_counters(ops in vec(any_op(), 0..120)) {
        let index_bytes = 20 * SEGMENT_BYTES + 100 * PAGE_BYTES;
        let mut routing = Routing::new(PAGE, RoutingConfig { index_bytes, ..RoutingConfig::default() });
        routing.joined(0, node(0, 50));
        let mut model = Model { members: BTreeSet::from([0]), ..Model::default() };
        let mut now = Instant::now();
        for op in ops {
            match op {
                Op::Join(id) => {
                    routing.joined(id, node(u64::from(id), 50));
                    model.left(id);
                    model.members.insert(id);
                }
                Op::Leave(id) => {
                    routing.left(id);
                    model.left(id);
                }
                Op::Place(number, tokens, free) => {
                    let prompt = prompt(number, tokens);
                    let decode_on = (!free).then_some(0);
                    let placed = routing.place(now, &Ask { decode_on, ..ask(&prompt) }).unwrap();
                    prop_assert!(model.members.contains(&placed.prefill_on) && model.members.contains(&placed.decode_on));
                    prop_assert!(placed.predictions <= 17);
                    prop_assert!(placed.prefill_tokens >= 1 && placed.prefill_tokens <= tokens);
                    model.live.push(Live { placed, prefills: true, decodes: true });
                }
                Op::End(index, fails) if index < model.live.len() => {
                    model.end(&mut routing, now, index, fails);
                }
                Op::End(..) => {}
                Op::Report(id, waiting_tokens, cache_pages) => {
                    routing.reported(now, id, &load(waiting_tokens));
                    routing.cache_reported(id, cache_pages);
                }
                Op::Wait(millis) => now += Duration::from_millis(millis),
            }
            model.is_followed_by(&routing)?;
            prop_assert!(routing.index_bytes() <= index_bytes);
            for (key, _) in routing.members() {
                prop_assert!(routing.index.pages_of(key) <= 60);
                for number in 0..6 {
                    let all = prefixes(None, &prompt(number, 400), PAGE);
                    prop_assert!(routing.index.is_closed_under(key, &all));
                }
            }
        }
        while !model.live.is_empty() {
            model.end(&mut routing, now, 0, false);
        }
        model.is_followed_by(&routing)?;
        prop_assert_eq!(routing.waiting(), 0);
    }

    /// If no member leaves, every counter returns to zero when all requests have ended.
    #[test]
    fn counters_return_to_zero(prompts in vec((0..6u32, 1..400u32), 0..60)) {
        let (mut routing, now) = (Routing::new(PAGE, RoutingConfig::default()), Instant::now());
        (0..4).for_each(|id| routing.joined(id, node(u64::from(id), 50)));
        let place = |routing: &mut Routing<u32>, (number, tokens)| {
            routing.place(now, &Ask { decode_on: None, ..ask(&prompt(number, tokens)) }).unwrap()
        };
        let live: Vec<Placed<u32>> = prompts.into_iter().map(|prompt| place(&mut routing, prompt)).collect();
        prop_assert_eq!(routing.waiting(), live.iter().map(|placed| u64::from(placed.prefill_tokens)).sum::<u64>());
        for placed in live {
            routing.prefilled(now, placed.prefill_on, placed.prefill_tokens, &computed(&placed));
            routing.decoded(placed.decode_on, placed.decode);
        }
        prop_assert_eq!(routing.waiting(), 0);
        prop_assert!(routing.members().all(|(_, member)| member.placed_pages == 0));
    }

    /// No member starves: with different prompts every member computes between half and twice its share.
    #[test]
    fn every_member_gets_work(lengths in vec(1..400u32, 200..300)) {
        let (mut routing, now) = (router(5, RoutingConfig::default()), Instant::now());
        let mut tokens = [0; 6];
        for (number, length) in (1..).zip(&lengths) {
            let placed = run(&mut routing, now, &ask(&prompt(number, *length)));
            tokens[placed.prefill_on as usize] += placed.prefill_tokens;
        }
        let share = lengths.iter().sum::<u32>() / 5;
        prop_assert!(tokens[1..].iter().all(|tokens| (share / 2..=2 * share).contains(tokens)), "{:?}", tokens);
    }
}

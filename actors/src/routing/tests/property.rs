//! What holds for every order of events.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::index::ENTRY_BYTES;
use super::*;

#[derive(Clone, Debug)]
enum Op {
    Join(u32),
    Leave(u32),
    /// The prompt's number and length, and whether the router chooses the decoder.
    Place(u32, u32, bool),
    /// An earlier placement, and whether it failed.
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Only members are chosen, the index keeps its bounds, and the counters return to zero.
    #[test]
    fn bounds_and_counters(ops in vec(any_op(), 0..120)) {
        let index_bytes = 100 * ENTRY_BYTES;
        let mut routing = Routing::new(PAGE, RoutingConfig { index_bytes, ..RoutingConfig::default() });
        routing.joined(0, node(0, 50));
        let (mut members, mut now) = (BTreeSet::from([0]), Instant::now());
        let mut live: Vec<Placed<u32>> = Vec::new();
        for op in ops {
            match op {
                Op::Join(id) => {
                    routing.joined(id, node(u64::from(id), 50));
                    members.insert(id);
                    // It starts afresh, without the earlier placements.
                    live.retain(|placed| placed.prefill_on != id && placed.decode_on != id);
                }
                Op::Leave(id) => {
                    routing.left(id);
                    members.remove(&id);
                    live.retain(|placed| placed.prefill_on != id && placed.decode_on != id);
                }
                Op::Place(number, tokens, free) => {
                    let prompt = prompt(number, tokens);
                    let decode_on = (!free).then_some(0);
                    let placed = routing.place(now, &Ask { decode_on, ..ask(&prompt) }).unwrap();
                    prop_assert!(members.contains(&placed.prefill_on) && members.contains(&placed.decode_on));
                    prop_assert!(placed.predictions <= 17);
                    prop_assert!(placed.prefill_tokens >= 1 && placed.prefill_tokens <= tokens);
                    live.push(placed);
                }
                Op::End(index, fails) if index < live.len() => {
                    let placed = live.swap_remove(index);
                    let outcome = if fails { PrefillOutcome::Failed } else { computed(&placed) };
                    routing.prefilled(now, placed.prefill_on, placed.prefill_tokens, &outcome);
                    routing.decoded(placed.decode_on, placed.decode_pages);
                }
                Op::End(..) => {}
                Op::Report(id, waiting_tokens, cache_pages) => {
                    routing.reported(now, id, &load(waiting_tokens));
                    routing.cache_reported(id, cache_pages);
                }
                Op::Wait(millis) => now += Duration::from_millis(millis),
            }
            prop_assert!(routing.index_bytes() <= index_bytes);
            for key in routing.members.keys() {
                prop_assert!(routing.index.entries_of(*key) <= 60);
                for number in 0..6 {
                    let all = prefixes(None, &prompt(number, 400), PAGE);
                    prop_assert!(routing.index.is_closed_under(*key, &all));
                }
            }
        }
        // Placements whose other member has left were not ended above; this ends the others.
        for placed in live {
            routing.prefilled(now, placed.prefill_on, placed.prefill_tokens, &PrefillOutcome::Withdrawn);
            routing.decoded(placed.decode_on, placed.decode_pages);
        }
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
            routing.decoded(placed.decode_on, placed.decode_pages);
        }
        prop_assert_eq!(routing.waiting(), 0);
        prop_assert!(routing.members.values().all(|member| member.placed_pages == 0));
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

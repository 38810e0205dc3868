//! Where single prompts go.

use super::*;
use crate::messages::DecodeSteps;

#[test]
fn a_prompt_returns_to_the_member_with_its_prefix() {
    let (mut routing, now) = (router(4, RoutingConfig::default()), Instant::now());
    let first = run(&mut routing, now, &ask(&prompt(1, 600)));
    assert_eq!(first.prefill_tokens, 600);
    for other in 2..8 {
        run(&mut routing, now, &ask(&prompt(other, 600)));
    }
    let longer = [prompt(1, 600), prompt(9, 50)].concat();
    // Local prefill is not allowed, because member 0 has decoded the first prompt and has its KV too.
    let never = Ask { local: LocalPrefill::Never, ..ask(&longer) };
    let second = run(&mut routing, now, &never);
    // 37 pages of 16 tokens are cached.
    assert_eq!((second.prefill_on, second.prefill_tokens), (first.prefill_on, 650 - 592));
    // A request for the log probabilities of its prompt computes everything.
    let scores = Ask { reads_cache: false, ..never };
    assert_eq!(run(&mut routing, now, &scores).prefill_tokens, 650);
}

#[test]
fn hashes_are_computed_if_they_are_missing_or_have_other_pages() {
    let text = prompt(1, 600);
    let [known, other] = [PAGE, 4 * PAGE].map(|pages| PromptHashes::new(pages, None, &text));
    let all = [None, Some(&known), Some(&other)];
    for (first, second) in all.iter().flat_map(|first| all.map(|second| (*first, second))) {
        let (mut routing, now) = (router(1, RoutingConfig::default()), Instant::now());
        let tokens = [first, second].map(|hashes| {
            let ask = Ask { hashes, local: LocalPrefill::Never, ..ask(&text) };
            run(&mut routing, now, &ask).prefill_tokens
        });
        assert_eq!(tokens, [600, 600 - 592]);
    }
}

#[test]
fn salts_share_nothing() {
    let (mut routing, now) = (router(1, RoutingConfig::default()), Instant::now());
    let prompt = prompt(1, 600);
    let salts = [None, Some(CacheSalt::of("a")), Some(CacheSalt::of("b")), Some(CacheSalt([0; 32]))];
    for salt in salts {
        assert_eq!(run(&mut routing, now, &Ask { salt, ..ask(&prompt) }).prefill_tokens, 600, "{salt:?}");
    }
    for salt in salts {
        assert_eq!(
            run(&mut routing, now, &Ask { salt, ..ask(&prompt) }).prefill_tokens,
            600 - 592,
            "{salt:?}"
        );
    }
}

#[test]
fn a_continuation_is_prefilled_where_it_is_decoded_if_that_is_sooner() {
    let (mut routing, now) = (router(1, RoutingConfig::default()), Instant::now());
    routing.reported(now, 0, &load(0));
    run(&mut routing, now, &ask(&prompt(1, 600)));
    let longer = [prompt(1, 600), prompt(9, 50)].concat();
    // Both have the prefix: the idle prefiller computes the rest, so that answers are not delayed here.
    assert_eq!(run(&mut routing, now, &ask(&longer)).prefill_on, 1);
    // The prefiller is replaced by one without the prefix.
    routing.left(1);
    routing.joined(2, prefiller(2));
    routing.reported(now, 2, &load(0));
    let placed = run(&mut routing, now, &ask(&longer));
    assert_eq!((placed.prefill_on, placed.prefill_tokens), (0, 650 - 640));
    // A prompt without a known prefix still goes there.
    assert_eq!(run(&mut routing, now, &ask(&prompt(2, 600))).prefill_on, 2);
}

#[test]
fn a_prompt_with_an_unknown_beginning_goes_to_the_soonest_member_although_that_has_computed_much() {
    let (mut routing, now) = (router(2, RoutingConfig::default()), Instant::now());
    routing.reported(now, 2, &LoadReport { nanos_per_token: Some(100_000), ..load(0) });
    for number in 1..4 {
        let placed = run(&mut routing, now, &Ask { not_on: &[1], ..ask(&prompt(number, 600)) });
        assert_eq!(placed.prefill_on, 2);
    }
    assert_eq!(run(&mut routing, now, &ask(&prompt(9, 600))).prefill_on, 2);
}

#[test]
fn the_target_decides_between_the_prefix_and_the_queue() {
    let target = RoutingConfig { ttft_target: Duration::from_millis(900), ..RoutingConfig::default() };
    let (mut routing, now) = (router(2, target), Instant::now());
    let holder = run(&mut routing, now, &ask(&prompt(1, 600))).prefill_on;
    // Equal work for both, so that only the prefix and the queue differ.
    run(&mut routing, now, &Ask { not_on: &[holder], ..ask(&prompt(2, 600)) });
    let first = prompt(1, 600);
    let place = |routing: &mut Routing<u32>| {
        run(routing, now, &Ask { local: LocalPrefill::Never, ..ask(&first) }).prefill_on
    };
    // The holder meets the target with a queue of 800 ms, although the other member is idle.
    routing.reported(now, holder, &load(800));
    assert_eq!(place(&mut routing), holder);
    // With a queue of 1 s it does not, and the other member computes the whole prompt in 600 ms.
    routing.reported(now, holder, &load(1000));
    assert_ne!(place(&mut routing), holder);
    // No member meets the target: the soonest computes. Both have the prefix now.
    routing.reported(now, 3 - holder, &load(5000));
    assert_eq!(place(&mut routing), holder);
}

#[test]
fn routers_that_do_not_know_each_other_agree() {
    let now = Instant::now();
    // The routers see the prompts in different orders, with different suffixes.
    let mut routers: Vec<Routing<u32>> = (0..3).map(|_| router(4, RoutingConfig::default())).collect();
    let mut homes = vec![Vec::new(); 32];
    for (number, routing) in routers.iter_mut().enumerate() {
        for step in 0..32 {
            let system = (step * (2 * number + 1) + number) % 32;
            let prompt = [prompt(system as u32 + 1, 512), prompt(100 + number as u32, 32)].concat();
            homes[system].push(run(routing, now, &ask(&prompt)).prefill_on);
        }
    }
    let agreed = homes.iter().filter(|homes| homes.iter().all(|home| *home == homes[0])).count();
    // By chance, 2 of 32 would agree.
    assert!(agreed >= 16, "{agreed} of 32: {homes:?}");
}

/// The members that prefill prompts without a full page, so without a prefix.
fn chosen(seed: u64, count: u32) -> Vec<u32> {
    let (mut routing, now) = (router(4, RoutingConfig { seed, ..RoutingConfig::default() }), Instant::now());
    (0..count).map(|number| run(&mut routing, now, &ask(&prompt(number, 10))).prefill_on).collect()
}

#[test]
fn equal_members_are_chosen_at_random() {
    let all = chosen(1, 400);
    for member in 1..=4 {
        let count = all.iter().filter(|chosen| **chosen == member).count();
        assert!((70..=130).contains(&count), "{member}: {count}");
    }
    assert_eq!(all, chosen(1, 400), "a seed decides");
    assert_ne!(all, chosen(2, 400));
}

#[test]
fn a_member_of_unknown_speed_is_tried_and_a_slow_one_is_tried_again() {
    let (mut routing, mut now) = (router(2, RoutingConfig::default()), Instant::now());
    routing.joined(3, prefiller(3));
    let slow = routing.place(now, &ask(&prompt(1, 600))).unwrap();
    assert_eq!(slow.prefill_on, 3);
    assert_ne!(
        routing.place(now, &ask(&prompt(2, 600))).unwrap().prefill_on,
        3,
        "it is tried with one prompt"
    );
    let tokens = slow.prefill_tokens;
    routing.prefilled(now, 3, tokens, &PrefillOutcome::Computed { tokens, micros: 60_000_000 });
    let mut count = |now: Instant, prompts: std::ops::Range<u32>| {
        prompts.filter(|number| run(&mut routing, now, &ask(&prompt(*number, 600))).prefill_on == 3).count()
    };
    assert_eq!(count(now, 10..30), 0, "60 s for a prompt do not meet the target");
    now += Duration::from_secs(31);
    assert!(count(now, 30..50) > 3, "the measurement is too old");
}

#[test]
fn the_decoder_has_the_conversation_and_room_for_it() {
    let (mut routing, now) = (Routing::new(PAGE, RoutingConfig::default()), Instant::now());
    for id in 0..4 {
        routing.joined(id, node(u64::from(id), 100));
        routing.reported(now, id, &load(0));
        // No member gets more rows, because the steps are long.
        routing.reported(now, id, &decodes(0, 1, 9_000));
    }
    routing.joined(9, prefiller(9));
    fn free(prompt: &[u32]) -> Ask<'_, u32> {
        Ask { decode_on: None, max_tokens: 100, ..ask(prompt) }
    }
    let long = prompt(1, 600);
    let first = routing.place(now, &free(&long)).unwrap();
    assert_eq!(first.decode.pages, 700_u32.div_ceil(PAGE));
    // The next request goes to another member, which has more room.
    let second = routing.place(now, &free(&prompt(2, 600))).unwrap();
    assert_ne!(first.decode_on, second.decode_on);
    // 44 of 100 pages are used. The conversation returns while there is room for it.
    let longer = [long.clone(), prompt(3, 50)].concat();
    let third = routing.place(now, &free(&longer)).unwrap();
    assert_eq!(third.decode_on, first.decode_on);
    let fourth = routing.place(now, &free(&longer)).unwrap();
    assert_ne!(fourth.decode_on, first.decode_on);
    for placed in [first, second, third, fourth] {
        routing.decoded(placed.decode_on, placed.decode);
    }
    // The members' own reports count too.
    routing.room_changed(first.decode_on, 100, 90);
    assert_ne!(routing.place(now, &free(&longer)).unwrap().decode_on, first.decode_on);
}

/// The load of an idle member that decodes `decoding` sequences and whose recent steps had `rows` rows and took `micros`.
fn decodes(decoding: u32, rows: u32, micros: u32) -> LoadReport {
    LoadReport { decoding, decode: Some(DecodeSteps { rows, micros, least_micros: 4_000 }), ..load(0) }
}

#[test]
fn a_member_gets_more_to_decode_while_its_steps_stay_short() {
    let (mut routing, now) = (Routing::new(PAGE, RoutingConfig::default()), Instant::now());
    for id in 0..4 {
        routing.joined(id, node(u64::from(id), 10_000));
        routing.reported(now, id, &decodes(0, 1, 4_000));
    }
    let mut number = 0;
    let mut place = |routing: &mut Routing<u32>| {
        number += 1;
        routing.place(now, &Ask { decode_on: None, max_tokens: 2600, ..ask(&prompt(number, 600)) }).unwrap()
    };
    let first = place(&mut routing).decode_on;
    // As many as can be judged from a measurement of one row go there; then they are spread.
    let joined = (0..30).take_while(|_| place(&mut routing).decode_on == first).count();
    assert!((9..=12).contains(&joined), "{joined}");
    let second = place(&mut routing);
    assert_ne!(second.decode_on, first);
    routing.decoded(second.decode_on, second.decode);
    // 8 rows add a tenth to the step, so there is room for up to 24: twice what is measured, and 8. A request decodes 95 % of its life.
    (0..8).for_each(|_| routing.row_began(first));
    routing.reported(now, first, &decodes(8, 8, 4_400));
    let joined = (0..30).take_while(|_| place(&mut routing).decode_on == first).count();
    assert!((16..=24).contains(&joined), "{joined}");
    // 24 rows double the step.
    routing.reported(now, first, &decodes(24, 24, 8_000));
    assert_ne!(place(&mut routing).decode_on, first);
}

#[test]
fn a_member_gets_no_more_to_decode_while_requests_or_its_prefillers_wait() {
    let (mut routing, now) = (Routing::new(PAGE, RoutingConfig::default()), Instant::now());
    // Two decoders, each with a prefiller of its own.
    for (decoder, other) in [(0, 10), (1, 11)] {
        let capabilities = Capabilities { prefill: false, decode: true };
        routing.joined(decoder, Joining { capabilities, ..node(u64::from(decoder), 10_000) });
        routing.joined(other, prefiller(u64::from(other)));
        routing.prefillers_of(decoder, [other]);
    }
    let free = |routing: &mut Routing<u32>, number| {
        let prompt = prompt(number, 320);
        let placed = routing.place(now, &Ask { decode_on: None, ..ask(&prompt) }).unwrap();
        routing.prefilled(now, placed.prefill_on, placed.prefill_tokens, &computed(&placed));
        routing.decoded(placed.decode_on, placed.decode);
        placed.decode_on
    };
    routing.reported(now, 0, &decodes(3, 3, 4_200));
    [10, 11].into_iter().for_each(|id| routing.reported(now, id, &load(0)));
    assert_eq!(free(&mut routing, 1), 0, "it decodes most");
    routing.queued(0, 1);
    assert_eq!(free(&mut routing, 2), 1, "a request waits there for admission");
    routing.queued(0, 0);
    routing.reported(now, 10, &load(400));
    let on_second = (3..13).filter(|number| free(&mut routing, *number) == 1).count();
    assert!(on_second > 0, "its only prefiller is much busier than the other one");
}

#[test]
fn the_member_with_the_shortest_queue_decodes_if_all_are_busy() {
    let config = RoutingConfig { local_if_sooner_by: Duration::ZERO, ..RoutingConfig::default() };
    let (mut routing, now) = (Routing::new(PAGE, config), Instant::now());
    (0..3).for_each(|id| routing.joined(id, node(u64::from(id), 10_000)));
    for (id, waiting_tokens) in [(0, 900), (1, 300), (2, 600)] {
        routing.reported(now, id, &LoadReport { waiting_tokens, ..decodes(1, 1, 9_000) });
    }
    // Steps of one row take 9 ms instead of 4, so no member gets more rows.
    for number in 1..6 {
        let placed = routing.place(now, &Ask { decode_on: None, ..ask(&prompt(number, 320)) }).unwrap();
        assert_eq!(placed.decode_on, placed.prefill_on, "no hand-over is needed");
        if number == 1 {
            assert_eq!(placed.decode_on, 1);
        }
    }
}

#[test]
fn a_busy_member_gets_no_more_to_decode_if_each_row_costs_as_much() {
    let (mut routing, now) = (Routing::new(PAGE, RoutingConfig::default()), Instant::now());
    for id in 0..4 {
        routing.joined(id, node(u64::from(id), 10_000));
        routing.reported(now, id, &load(0));
        routing.reported(now, id, &decodes(0, 1, 4_000));
    }
    routing.reported(now, 1, &decodes(2, 2, 8_000));
    let placed = routing.place(now, &Ask { decode_on: None, ..ask(&prompt(1, 600)) }).unwrap();
    assert_ne!(placed.decode_on, 1);
    // A member that is slow even with one row is not joined, although it decodes most.
    routing.reported(now, 1, &decodes(1, 1, 4_000));
    let slow = DecodeSteps { rows: 3, micros: 9_000, least_micros: 9_000 };
    routing.reported(now, 2, &LoadReport { decode: Some(slow), ..decodes(3, 3, 9_000) });
    routing.decoded(placed.decode_on, placed.decode);
    let placed = routing.place(now, &Ask { decode_on: None, ..ask(&prompt(2, 600)) }).unwrap();
    assert_eq!(placed.decode_on, 1);
}

#[test]
fn a_member_that_decodes_computes_less_because_its_tokens_take_longer() {
    let config = RoutingConfig { local_if_sooner_by: Duration::ZERO, ..RoutingConfig::default() };
    let (mut routing, now) = (Routing::new(PAGE, config), Instant::now());
    (0..2).for_each(|id| routing.joined(id, node(u64::from(id), 10_000)));
    (0..2).for_each(|id| routing.reported(now, id, &LoadReport { nanos_per_token: Some(25_000), ..load(0) }));
    let history = prompt(1, 4096);
    fn free(prompt: &[u32]) -> Ask<'_, u32> {
        Ask { decode_on: None, ..ask(prompt) }
    }
    let first = run(&mut routing, now, &Ask { not_on: &[0], ..free(&history) });
    assert_eq!((first.decode_on, first.prefill_on), (1, 1));
    // Member 0 has computed as much for others.
    run(&mut routing, now, &Ask { not_on: &[1], ..free(&prompt(9, 16_384)) });
    let slow = LoadReport { nanos_per_token: Some(100_000), ..decodes(4, 4, 4_400) };
    routing.reported(now, 1, &slow);
    let (long, short) = ([history.clone(), prompt(2, 2048)].concat(), [history, prompt(3, 256)].concat());
    // A short continuation stays.
    let short = run(&mut routing, now, &free(&short));
    assert_eq!((short.decode_on, short.prefill_on), (1, 1));
    // Member 0 computes all tokens in less time than member 1 computes 2,048.
    let next = run(&mut routing, now, &free(&long));
    assert_eq!((next.decode_on, next.prefill_on), (1, 0));
}

#[test]
fn the_cost_of_a_decision_is_bounded() {
    let now = Instant::now();
    let mut routing = router(1000, RoutingConfig { index_bytes: 1 << 30, ..RoutingConfig::default() });
    let long = prompt(1, 512);
    // Every member gets the same prefix.
    for id in 1..=1000 {
        let others: Vec<u32> = (1..=1000).filter(|other| *other != id).collect();
        let placed =
            routing.place(now, &Ask { local: LocalPrefill::Never, not_on: &others, ..ask(&long) }).unwrap();
        assert_eq!(placed.prefill_on, id);
    }
    let placed = routing.place(now, &ask(&long)).unwrap();
    // 8 members with the prefix, 8 with short queues, and the decoder.
    assert!((9..=17).contains(&placed.predictions), "{}", placed.predictions);
}

#[test]
fn local_prefill_is_allowed_denied_or_forced() {
    let (mut routing, now) = (router(1, RoutingConfig::default()), Instant::now());
    let prompt = prompt(1, 100);
    let mut place = |local, not_on: &[u32]| {
        let placed = routing.place(now, &Ask { local, not_on, ..ask(&prompt) });
        placed.map(|placed| placed.prefill_on)
    };
    assert_eq!(place(LocalPrefill::Always, &[]), Ok(0));
    assert_eq!(place(LocalPrefill::Auto, &[1]), Ok(0));
    assert_eq!(place(LocalPrefill::Never, &[]), Ok(1));
    assert_eq!(place(LocalPrefill::Never, &[1]), Err(NotPlaced::NoPrefiller));
}

/// The member that prefills a new prompt that the decoding member must not prefill.
fn sent(routing: &mut Routing<u32>, now: Instant, number: u32, tokens: u32) -> u32 {
    let text = prompt(number, tokens);
    run(routing, now, &Ask { local: LocalPrefill::Never, ..ask(&text) }).prefill_on
}

#[test]
fn a_reported_speed_is_valid_for_a_while() {
    let (mut routing, mut now) = (router(2, RoutingConfig::default()), Instant::now());
    routing.reported(now, 2, &LoadReport { nanos_per_token: Some(10_000_000), ..load(0) });
    // 6 s at member 2, which is more than the target.
    for number in 1..4 {
        assert_eq!(sent(&mut routing, now, number, 600), 1);
    }
    now += Duration::from_secs(60);
    routing.reported(now, 1, &load(0));
    let chosen: Vec<u32> = (4..8).map(|number| sent(&mut routing, now, number, 600)).collect();
    assert!(chosen.contains(&2), "it may be as fast as the other by now: {chosen:?}");
}

#[test]
fn a_pausing_member_is_better_than_none() {
    let (mut routing, now) = (router(1, RoutingConfig::default()), Instant::now());
    let text = prompt(1, 600);
    let never = Ask { local: LocalPrefill::Never, ..ask(&text) };
    let placed = routing.place(now, &never).unwrap();
    routing.prefilled(now, placed.prefill_on, placed.prefill_tokens, &PrefillOutcome::Failed);
    assert_eq!(routing.place(now, &ask(&text)).unwrap().prefill_on, 0, "it pauses");
    assert_eq!(routing.place(now, &never).unwrap().prefill_on, 1);
    assert!(routing.place(now, &Ask { not_on: &[1], ..never }).is_err());
}

#[test]
fn a_member_that_refuses_is_not_untried_for_ever() {
    let mut routing = router(1, RoutingConfig::default());
    routing.joined(2, prefiller(2));
    let now = Instant::now();
    let text = prompt(1, 600);
    let first = routing.place(now, &Ask { local: LocalPrefill::Never, ..ask(&text) }).unwrap();
    assert_eq!(first.prefill_on, 2, "its speed is unknown");
    routing.prefilled(now, 2, first.prefill_tokens, &PrefillOutcome::Withdrawn);
    let chosen: Vec<u32> = (2..10).map(|number| sent(&mut routing, now, number, 600)).collect();
    assert!(chosen.contains(&1), "{chosen:?}");
}

#[test]
fn a_hand_over_that_was_hidden_once_is_measured_again() {
    // No member meets this target, so the soonest is chosen.
    let config = RoutingConfig { ttft_target: Duration::from_millis(1), ..RoutingConfig::default() };
    let (mut routing, now) = (router(2, config), Instant::now());
    routing.handed_over(1, 0);
    (0..50).for_each(|_| routing.handed_over(1, 100_000));
    for number in 1..8 {
        assert_eq!(sent(&mut routing, now, number, 32), 2, "100 ms later at member 1");
    }
}

#[test]
fn progress_on_the_placed_prompts_counts() {
    let (mut routing, now) = (router(2, RoutingConfig::default()), Instant::now());
    let placed = |routing: &mut Routing<u32>, number| {
        let placed = routing.place(now, &ask(&prompt(number, 500))).unwrap();
        (placed.prefill_on, placed.prefill_tokens)
    };
    let (first, second) = (placed(&mut routing, 1), placed(&mut routing, 2));
    assert_ne!(first.0, second.0, "each idle member gets one");
    // 400 tokens of the second prompt are computed, and 100 of the first.
    for (member, computed) in [(first.0, 100), (second.0, 400)] {
        routing.reported(now, member, &LoadReport { begun_tokens: computed, ..load(500 - computed) });
    }
    assert_eq!(placed(&mut routing, 3).0, second.0, "100 ms of queue, not 400 ms");
    // The prompt that was begun ends. Its progress does not count for the next one, which is not begun.
    let computed = PrefillOutcome::Computed { tokens: 500, micros: 500_000 };
    routing.prefilled(now, second.0, second.1, &computed);
    assert_eq!(placed(&mut routing, 4).0, first.0, "400 ms of queue, not 500 ms");
}

#[test]
fn a_node_hands_a_prompt_over_only_if_the_first_token_is_clearly_sooner() {
    let config = RoutingConfig { local_if_sooner_by: Duration::ZERO, ..RoutingConfig::default() };
    let (mut routing, now) = (router(1, config), Instant::now());
    let mut on = |number, here| {
        routing.reported(now, 0, &load(here));
        let placed = run(&mut routing, now, &ask(&prompt(number, 400)));
        placed.prefill_on
    };
    assert_eq!(on(1, 0), 0, "the peer is as fast and as idle");
    assert_eq!(on(2, 130), 0, "the first token comes after 530 ms here and after 400 ms there");
    assert_eq!(on(3, 140), 1, "540 and 400 ms");
}

#[test]
fn an_idle_node_among_many_prefills_what_it_received() {
    let config = RoutingConfig { local_if_sooner_by: Duration::ZERO, ..RoutingConfig::default() };
    let (mut routing, now) = (router(10, config), Instant::now());
    routing.reported(now, 0, &load(0));
    for number in 0..20 {
        assert_eq!(run(&mut routing, now, &ask(&prompt(number, 400))).prefill_on, 0);
    }
}

#[test]
fn a_refused_prompt_does_not_erase_the_progress_of_others() {
    let (mut routing, now) = (router(2, RoutingConfig::default()), Instant::now());
    let placed = |routing: &mut Routing<u32>, number| routing.place(now, &ask(&prompt(number, 500))).unwrap();
    // Member 1 has nearly computed a prompt of another node.
    routing.reported(now, 1, &LoadReport { begun_tokens: 460, ..load(40) });
    routing.reported(now, 2, &load(300));
    let refused = placed(&mut routing, 1);
    assert_eq!(refused.prefill_on, 1);
    routing.prefilled(now, 1, refused.prefill_tokens, &PrefillOutcome::Withdrawn);
    assert_eq!(placed(&mut routing, 2).prefill_on, 1, "40 ms of queue, not 300 ms");
}

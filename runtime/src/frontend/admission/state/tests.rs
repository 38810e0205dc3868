use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const LONG: Duration = Duration::from_secs(1_000_000);

fn state(concurrency: usize, queue: usize, queue_bytes: usize) -> State<Ticket> {
    State::new(Bounds { concurrency, queue, queue_bytes })
}

/// Enters a request that is woken with a number of the test's own.
fn enter(
    state: &mut State<Ticket>,
    request: (usize, usize),
    name: u64,
) -> Result<(Ticket, Granted<Ticket>), Refusal> {
    state.enter(request, LONG, Instant::now(), name)
}

#[derive(Clone, Debug)]
enum Event {
    Enter {
        answers: usize,
        bytes: usize,
    },
    /// One of those that wait leaves, counted from the front.
    Leave(usize),
    /// An answer ends.
    End,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (1usize..6, 0usize..40).prop_map(|(answers, bytes)| Event::Enter { answers, bytes }),
        1 => (0usize..8).prop_map(Event::Leave),
        2 => Just(Event::End),
    ]
}

proptest! {
    #[test]
    fn requests_run_in_order_within_the_bounds(
        events in vec(event(), 1..120),
        concurrency in 1usize..8,
        queue in 0usize..8,
        queue_bytes in 0usize..120,
    ) {
        let mut state = state(concurrency, queue, queue_bytes);
        // Name, ticket, answers and bytes of what waits, in order; kept here by the rules alone.
        let mut waiting: Vec<(u64, Ticket, usize, usize)> = Vec::new();
        let (mut running, mut name) = (0, 0);
        let now = Instant::now();
        for event in events {
            let granted = match event {
                Event::Enter { answers, bytes } => {
                    name += 1;
                    let fits = waiting.is_empty() && answers <= concurrency - running;
                    let held: usize = waiting.iter().map(|(.., bytes)| bytes).sum();
                    let has_room = waiting.len() < queue && held + bytes <= queue_bytes;
                    match enter(&mut state, (answers, bytes), name) {
                        Ok((ticket, granted)) => {
                            prop_assert!(answers <= concurrency && (fits || has_room));
                            waiting.push((name, ticket, answers, bytes));
                            granted
                        }
                        Err(Refusal::TooMany) => {
                            prop_assert!(answers > concurrency);
                            Vec::new()
                        }
                        Err(Refusal::Full { .. }) => {
                            prop_assert!(!fits && !has_room);
                            Vec::new()
                        }
                        Err(other) => panic!("{other:?}"),
                    }
                }
                Event::Leave(place) if place < waiting.len() => {
                    let (_, ticket, ..) = waiting.remove(place);
                    let granted = state.leave(ticket, now);
                    prop_assert!(state.leave(ticket, now).is_empty(), "it has left");
                    granted
                }
                Event::End if running > 0 => {
                    running -= 1;
                    state.give_back(None, now)
                }
                Event::Leave(_) | Event::End => Vec::new(),
            };
            for (name, permits) in granted {
                let (front, _, answers, _) = waiting.remove(0);
                prop_assert_eq!((name, permits), (front, answers), "the front runs first");
                running += permits;
            }
            prop_assert!(running <= concurrency);
            prop_assert!(waiting.first().is_none_or(|(_, _, answers, _)| *answers > concurrency - running), "nothing waits without need");
            prop_assert_eq!(state.running(), running);
            prop_assert_eq!(state.waiting(), waiting.iter().map(|(_, _, answers, _)| answers).sum::<usize>());
            prop_assert!(waiting.len() <= queue);
        }
        // Nothing is forgotten: as answers end, all that wait run.
        while running > 0 {
            running -= 1;
            for (name, permits) in state.give_back(None, now) {
                prop_assert_eq!(name, waiting.remove(0).0);
                running += permits;
            }
        }
        prop_assert!(waiting.is_empty());
    }

    /// Requests of one answer, all of which take the same time, arrive at once: each starts when it was told that it would, up to the
    /// time of an answer.
    #[test]
    fn the_predicted_wait_comes_true(concurrency in 1usize..20, requests in 1usize..100, seconds in 1u64..100) {
        let (began, took) = (Instant::now(), Duration::from_secs(seconds));
        let mut state = state(concurrency, usize::MAX, usize::MAX);
        let enter = |state: &mut State<Ticket>, left| state.enter((1, 0), left, began + took, 0);
        // The first answers are over, and as many run since then.
        for _ in 0..concurrency {
            state.enter((1, 0), LONG, began, 0).unwrap();
        }
        for _ in 0..concurrency {
            state.give_back(Some(took), began + took);
            enter(&mut state, LONG).unwrap();
        }
        let starts_after = |n: usize| took * (n / concurrency + 1) as u32;
        for n in 0..requests {
            let predicted = match enter(&mut state, Duration::ZERO) {
                Err(Refusal::TooLong { wait, retry }) => {
                    prop_assert_eq!(wait, retry, "after that it would not wait");
                    wait
                }
                other => panic!("{other:?}"),
            };
            let actual = starts_after(n);
            prop_assert!(predicted <= actual + Duration::from_millis(1) && predicted + took >= actual, "{:?} for {:?}", predicted, actual);
            enter(&mut state, LONG).unwrap();
        }
    }
}

#[test]
fn while_nothing_is_measured_every_wait_is_short_enough() {
    let mut state = state(1, 10, 100);
    let began = Instant::now();
    for n in 0..11 {
        state.enter((1, 0), Duration::ZERO, began + LONG * n, u64::from(n)).unwrap();
    }
    let refused = state.enter((1, 0), Duration::ZERO, began, 0);
    assert_eq!(refused.unwrap_err(), Refusal::Full { retry: Duration::ZERO });
}

#[test]
fn time_with_room_for_more_says_nothing_about_the_wait() {
    let mut state = state(2, 100, 100);
    let began = Instant::now();
    let second = Duration::from_secs(1);
    // One answer takes a second, and the next one runs alone for ten minutes.
    state.enter((1, 1), LONG, began, 1).unwrap();
    state.give_back(Some(second), began + second);
    state.enter((1, 1), LONG, began + second, 2).unwrap();
    let later = began + 600 * second;
    for name in 3..20 {
        state.enter((1, 1), 60 * second, later, name).unwrap();
    }
}

#[test]
fn a_full_queue_says_when_there_is_room() {
    let (began, took) = (Instant::now(), Duration::from_secs(8));
    let mut state = state(4, 2, 100);
    state.enter((4, 0), LONG, began, 0).unwrap();
    let now = began + took;
    for _ in 0..4 {
        state.give_back(Some(took), now);
    }
    for (name, request) in [(1, (4, 0)), (2, (3, 60)), (3, (1, 10))] {
        state.enter(request, LONG, now, name).unwrap();
    }
    // Four answers of 8 s: a permit comes back every 2 s, and the front needs three.
    let full = |state: &mut State<Ticket>, request| state.enter(request, LONG, now, 9).unwrap_err();
    assert_eq!(full(&mut state, (1, 0)), Refusal::Full { retry: Duration::from_secs(6) });
    // More bytes than the queue ever has: it must run at once, after both and with two permits of its own.
    assert_eq!(full(&mut state, (2, 101)), Refusal::Full { retry: Duration::from_secs(12) });
    // If none has come back for longer than an answer takes, the wait is longer.
    let late = state.enter((1, 0), LONG, now + 2 * took, 9);
    assert_eq!(late.unwrap_err(), Refusal::Full { retry: Duration::from_secs(12) });
    // By bytes alone.
    state.leave(2, now);
    assert_eq!(full(&mut state, (1, 91)), Refusal::Full { retry: Duration::from_secs(2) });
    state.enter((1, 90), LONG, now, 9).unwrap();
}

#[test]
fn a_closed_state_takes_nothing_and_runs_nothing_more() {
    let mut state = state(1, 2, 100);
    let now = Instant::now();
    for name in 0..3 {
        enter(&mut state, (1, 5), name).unwrap();
    }
    assert_eq!(state.close(), [1, 2]);
    assert_eq!((state.running(), state.waiting()), (1, 0));
    assert_eq!(enter(&mut state, (1, 5), 3).unwrap_err(), Refusal::Closed);
    assert!(state.give_back(None, now).is_empty());
}

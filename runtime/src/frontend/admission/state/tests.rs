use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const LONG: Duration = Duration::from_secs(1_000_000);

fn state(concurrency: usize, queue: usize, queue_bytes: usize) -> State<Ticket> {
    State::new(Bounds { concurrency, queue, queue_bytes })
}

/// Enters a request whose waker is a number chosen by the test.
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
    /// The waiting request at this place, counted from the front, leaves.
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
        // The test's model of the queue: name, ticket, answers and bytes of the waiting requests, in order.
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
                    prop_assert!(state.leave(ticket, now).is_empty(), "leaving twice does nothing");
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
            prop_assert!(waiting.first().is_none_or(|(_, _, answers, _)| *answers > concurrency - running), "the front does not wait while it fits");
            prop_assert_eq!(state.running(), running);
            prop_assert_eq!(state.waiting(), waiting.iter().map(|(_, _, answers, _)| answers).sum::<usize>());
            prop_assert!(waiting.len() <= queue);
        }
        // As answers end, all waiting requests run.
        while running > 0 {
            running -= 1;
            for (name, permits) in state.give_back(None, now) {
                prop_assert_eq!(name, waiting.remove(0).0);
                running += permits;
            }
        }
        prop_assert!(waiting.is_empty());
    }

    /// Requests of one answer each, whose answers take equally long, arrive at once. Each starts at the predicted time, or
    /// earlier by at most the duration of an answer.
    #[test]
    fn the_predicted_wait_is_right(concurrency in 1usize..20, requests in 1usize..100, seconds in 1u64..100) {
        let (began, took) = (Instant::now(), Duration::from_secs(seconds));
        let mut state = state(concurrency, usize::MAX, usize::MAX);
        let enter = |state: &mut State<Ticket>, left| state.enter((1, 0), left, began + took, 0);
        // The first answers have ended, and equally many have run since then.
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
                    prop_assert_eq!(wait, retry, "after `retry` the request would not wait");
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
fn no_wait_is_too_long_before_an_answer_is_measured() {
    let mut state = state(1, 10, 100);
    let began = Instant::now();
    for n in 0..11 {
        state.enter((1, 0), Duration::ZERO, began + LONG * n, u64::from(n)).unwrap();
    }
    let refused = state.enter((1, 0), Duration::ZERO, began, 0);
    assert_eq!(refused.unwrap_err(), Refusal::Full { retry: Duration::ZERO });
}

#[test]
fn time_with_free_permits_does_not_count_for_the_wait() {
    let mut state = state(2, 100, 100);
    let began = Instant::now();
    let second = Duration::from_secs(1);
    // One answer takes a second. The next answer runs alone for ten minutes.
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
    // Four answers of 8 s run, so a permit is returned every 2 s. The front of the queue needs three.
    let full = |state: &mut State<Ticket>, request| state.enter(request, LONG, now, 9).unwrap_err();
    assert_eq!(full(&mut state, (1, 0)), Refusal::Full { retry: Duration::from_secs(6) });
    // The request has more bytes than the queue can hold, so it must run at once: after both waiting requests, with two permits.
    assert_eq!(full(&mut state, (2, 101)), Refusal::Full { retry: Duration::from_secs(12) });
    // No answer has ended for longer than the mean duration, so the predicted wait is longer.
    let late = state.enter((1, 0), LONG, now + 2 * took, 9);
    assert_eq!(late.unwrap_err(), Refusal::Full { retry: Duration::from_secs(12) });
    // The queue has room for another request, but not for its bytes.
    state.leave(2, now);
    assert_eq!(full(&mut state, (1, 91)), Refusal::Full { retry: Duration::from_secs(2) });
    state.enter((1, 90), LONG, now, 9).unwrap();
}

#[test]
fn a_closed_state_admits_and_starts_no_requests() {
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

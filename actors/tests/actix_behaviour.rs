//! The behaviours of actix 0.13.5 that Baton relies on or works around. If an update changes one, its test fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use ::actors::kit::{Awake, Outbox, Undelivered, tick_every};
use actix::prelude::*;

/// A test fails after waiting this long.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Message)]
#[rtype(result = "u32")]
struct Count;

#[derive(Message)]
#[rtype(result = "()")]
struct Halt;

#[derive(Default)]
struct Counter {
    seen: Arc<AtomicU32>,
    capacity: usize,
    started: Arc<AtomicBool>,
}

impl Actor for Counter {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.capacity);
        self.started.store(true, Ordering::SeqCst);
    }
}

impl Handler<Count> for Counter {
    type Result = u32;

    fn handle(&mut self, _: Count, _: &mut Self::Context) -> u32 {
        self.seen.fetch_add(1, Ordering::SeqCst) + 1
    }
}

impl Handler<Halt> for Counter {
    type Result = ();

    fn handle(&mut self, _: Halt, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

/// A counter whose mailbox has `capacity`. It handles no message before the caller awaits.
async fn counter(capacity: usize) -> (Addr<Counter>, Arc<AtomicU32>) {
    let actor = Counter { capacity, ..Counter::default() };
    let (seen, started) = (actor.seen.clone(), actor.started.clone());
    let addr = actor.start();
    while !started.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    (addr, seen)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never happened: {what}"));
}

#[actix::test]
async fn try_send_on_a_kept_address_is_bounded_and_gives_the_message_back() {
    let (addr, seen) = counter(2).await;
    let outbox = Outbox::<Count>::new("a", "b", addr.clone().recipient());
    let taken = (0..100).take_while(|_| outbox.command(Count).is_ok()).count();
    assert!((1..=4).contains(&taken), "capacity 2 and one more message for each sender, not {taken}");
    assert!(matches!(outbox.command(Count), Err(Undelivered::Full(_))));
    until("the mailbox empties", || seen.load(Ordering::SeqCst) as usize == taken).await;
    assert!(outbox.command(Count).is_ok(), "the mailbox accepts messages again");
    assert_eq!(outbox.counts().0 as usize, taken + 1);
}

#[actix::test]
async fn each_clone_may_send_one_more_message() {
    let (addr, _) = counter(1).await;
    while addr.try_send(Count).is_ok() {}
    for _ in 0..10 {
        assert!(
            addr.clone().try_send(Count).is_ok(),
            "each clone may send one more message, so an outbox is never cloned"
        );
    }
}

#[actix::test]
async fn do_send_and_send_ignore_the_capacity() {
    let (addr, seen) = counter(1).await;
    while addr.try_send(Count).is_ok() {}
    let before = seen.load(Ordering::SeqCst);
    for _ in 0..50 {
        addr.do_send(Count);
    }
    let answer =
        tokio::time::timeout(PATIENCE, addr.send(Count)).await.expect("in time").expect("it is alive");
    assert!(answer >= before + 51, "all messages were accepted: {answer}");
}

#[actix::test]
async fn messages_of_one_sender_keep_their_order() {
    #[derive(Message)]
    #[rtype(result = "()")]
    struct Note(u32);
    struct Log(Vec<u32>, Arc<AtomicU32>);
    impl Actor for Log {
        type Context = Context<Self>;
    }
    impl Handler<Note> for Log {
        type Result = ();
        fn handle(&mut self, note: Note, _: &mut Self::Context) {
            assert_eq!(note.0 as usize, self.0.len(), "out of order");
            self.0.push(note.0);
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }
    let seen = Arc::new(AtomicU32::new(0));
    let outbox = Outbox::<Note>::new("edge", "edge", Log(Vec::new(), seen.clone()).start().recipient());
    for n in 0..500 {
        assert!(outbox.post(Note(n)).is_none(), "the actor lives");
    }
    until("all notes", || seen.load(Ordering::SeqCst) == 500).await;
}

#[actix::test]
async fn a_stopped_actor_closes_its_addresses_and_post_returns_the_message() {
    let (addr, seen) = counter(4).await;
    let outbox = Outbox::<Count>::new("a", "b", addr.clone().recipient());
    addr.do_send(Halt);
    until("it stops", || !addr.connected()).await;
    assert!(matches!(outbox.command(Count), Err(Undelivered::Closed(_))));
    assert!(outbox.post(Count).is_some(), "the message comes back");
    assert_eq!(outbox.counts(), (0, 2));
    assert_eq!(seen.load(Ordering::SeqCst), 0);
}

#[actix::test]
async fn a_dropped_send_future_withdraws_its_message() {
    let (addr, seen) = counter(16).await;
    drop(addr.send(Count));
    drop(Box::pin(addr.send(Count)));
    let answer =
        tokio::time::timeout(PATIENCE, addr.send(Count)).await.expect("in time").expect("it is alive");
    assert_eq!(answer, 1, "dropped futures have sent nothing, so cleanup never uses `send`");
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[actix::test]
async fn an_address_exists_before_its_actor_runs() {
    let context = Context::<Counter>::new();
    let addr = context.address();
    addr.do_send(Count);
    let actor = Counter { capacity: 4, ..Counter::default() };
    let seen = actor.seen.clone();
    context.run(actor);
    until("the early message arrives", || seen.load(Ordering::SeqCst) == 1).await;
}

#[actix::test]
async fn start_in_arbiter_runs_on_another_thread() {
    #[derive(Message)]
    #[rtype(result = "Result<std::thread::ThreadId, ()>")]
    struct Where;
    struct Here;
    impl Actor for Here {
        type Context = Context<Self>;
    }
    impl Handler<Where> for Here {
        type Result = Result<std::thread::ThreadId, ()>;
        fn handle(&mut self, _: Where, _: &mut Self::Context) -> Self::Result {
            Ok(std::thread::current().id())
        }
    }
    let arbiter = Arbiter::new();
    let addr = Here::start_in_arbiter(&arbiter.handle(), |_| Here);
    let thread =
        tokio::time::timeout(PATIENCE, addr.send(Where)).await.expect("in time").expect("it is alive");
    assert_ne!(thread, Ok(std::thread::current().id()));
    arbiter.stop();
    arbiter.join().expect("the thread did not panic");
}

#[actix::test]
async fn ticks_come_while_the_mailbox_is_never_empty() {
    #[derive(Message)]
    #[rtype(result = "()")]
    struct Again;
    #[derive(Message)]
    #[rtype(result = "()")]
    struct Tock;
    struct Busy(Arc<AtomicU32>);
    impl Actor for Busy {
        type Context = Context<Self>;
    }
    impl Handler<Again> for Busy {
        type Result = ();
        fn handle(&mut self, _: Again, ctx: &mut Self::Context) {
            let addr = ctx.address();
            actix::spawn(async move { addr.do_send(Again) });
        }
    }
    impl Handler<Tock> for Busy {
        type Result = ();
        fn handle(&mut self, _: Tock, _: &mut Self::Context) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let ticks = Arc::new(AtomicU32::new(0));
    let addr = Busy(ticks.clone()).start();
    addr.do_send(Again);
    tick_every(Duration::from_millis(1), addr.recipient(), || Tock);
    until("three ticks", || ticks.load(Ordering::SeqCst) >= 3).await;
}

#[test]
fn a_busy_polling_thread_does_not_park_and_runs_other_tasks() {
    let parks = Arc::new(AtomicU32::new(0));
    let counted = parks.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        })
        .build()
        .expect("the runtime starts");
    let parks_in_a_while = async || {
        let before = parks.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(1)).await;
        parks.load(Ordering::SeqCst) - before
    };
    let work = async {
        let never = Awake::new(Duration::ZERO);
        never.stay();
        assert!(parks_in_a_while().await > 0 && !never.is_awake());

        let awake = Awake::new(Duration::from_millis(1));
        awake.stay();
        until("it stops busy-polling", || !awake.is_awake()).await;
        awake.stay();
        assert!(awake.is_awake(), "it can busy-poll again");

        let awake = Awake::new(Duration::from_secs(3600));
        awake.stay();
        let (tell, told) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || tell.send(()))
            .join()
            .expect("the thread did not panic")
            .expect("the receiver exists");
        told.await.expect("a message from another thread arrives");
        assert_eq!(parks_in_a_while().await, 0, "timers run without a park");
    };
    tokio::task::LocalSet::new().block_on(&runtime, work);
}

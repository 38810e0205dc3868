//! Two actors that exchange typed messages: a client reserves pages of a pool. A reservation waits if too few pages are free.
//!
//! `cargo run -p examples --example two_actors` prints each message when an actor handles it, then `all pages are free again`, and
//! ends. The pool has 4 pages and each of 3 requests needs 2. So request 3 gets its pages after another one has released its own.
//!
//! As in Baton, a pure state returns effects and a shell delivers them. This file has its own shell, because `actors::shell` handles
//! Baton's messages only.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};

use actix::{Actor, AsyncContext, Context, Handler, Message, System};
use actors::kit::Outbox;

/// The pool's messages.
#[derive(Debug, Message)]
#[rtype(result = "()")]
enum ToPool {
    ReservePages { request: u32, pages: u32 },
    ReleasePages { request: u32 },
}

/// The client's message.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct PagesReserved {
    request: u32,
}

/// An action that a state returns and the shell carries out.
enum Effect<M> {
    Send(M),
    End,
}

/// The decisions of an actor. A state uses no actix, clock or I/O, so a test can call it directly.
trait State: Unpin + 'static {
    type Mail: Message<Result = ()> + std::fmt::Debug + Send;
    type Sends: Message<Result = ()> + Send;
    fn on(&mut self, mail: Self::Mail) -> Vec<Effect<Self::Sends>>;
}

/// The number of free pages, the pages held by each request, and the waiting requests in the order of their arrival.
#[derive(Default)]
struct Pool {
    free: u32,
    held: HashMap<u32, u32>,
    waiting: VecDeque<(u32, u32)>,
}

impl State for Pool {
    type Mail = ToPool;
    type Sends = PagesReserved;

    fn on(&mut self, mail: ToPool) -> Vec<Effect<PagesReserved>> {
        match mail {
            ToPool::ReservePages { request, pages } => self.waiting.push_back((request, pages)),
            ToPool::ReleasePages { request } => self.free += self.held.remove(&request).unwrap_or(0),
        }
        let mut effects = Vec::new();
        while let Some((request, pages)) = self.waiting.pop_front_if(|(_, pages)| *pages <= self.free) {
            self.free -= pages;
            self.held.insert(request, pages);
            effects.push(Effect::Send(PagesReserved { request }));
        }
        effects.extend(self.held.is_empty().then_some(Effect::End));
        effects
    }
}

/// Releases pages as soon as they are reserved.
struct Client;

impl State for Client {
    type Mail = PagesReserved;
    type Sends = ToPool;

    fn on(&mut self, PagesReserved { request }: PagesReserved) -> Vec<Effect<ToPool>> {
        vec![Effect::Send(ToPool::ReleasePages { request })]
    }
}

/// The actix actor: passes each message to its state, and sends the state's messages to the other actor.
struct Shell<S: State> {
    state: S,
    outbox: Outbox<S::Sends>,
}

impl<S: State> Actor for Shell<S> {
    type Context = Context<Self>;
}

impl<S: State> Handler<S::Mail> for Shell<S> {
    type Result = ();

    fn handle(&mut self, mail: S::Mail, _: &mut Self::Context) {
        println!("{mail:?}");
        for effect in self.state.on(mail) {
            match effect {
                Effect::Send(message) => _ = self.outbox.post(message),
                Effect::End => System::current().stop(),
            }
        }
    }
}

fn main() -> std::io::Result<()> {
    let system = System::new();
    system.block_on(async {
        // The contexts are created first, because each actor needs the other's address.
        let (pool, client) = (Context::<Shell<Pool>>::new(), Context::<Shell<Client>>::new());
        let to_pool = Outbox::new("client", "pool", pool.address().recipient());
        let to_client = Outbox::new("pool", "client", client.address().recipient());
        (1..=3).for_each(|request| _ = to_pool.post(ToPool::ReservePages { request, pages: 2 }));
        pool.run(Shell { state: Pool { free: 4, ..Pool::default() }, outbox: to_client });
        client.run(Shell { state: Client, outbox: to_pool });
    });
    system.run().inspect(|()| println!("all pages are free again"))
}

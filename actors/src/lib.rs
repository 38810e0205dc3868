//! Baton's actors: they bring the engine and the connector together by exchanging typed messages.
//!
//! ```text
//!  frontend ──► proxy ──► decoder ──► buffer manager            receiver (and, without the link, every node)
//!                            │  ▲            │  ▲
//!                            ▼  │            ▼  │
//!                         generator       peer link ◄═════ TCP frames ═════► peer link
//!                            ▲  │            │  ▲
//!                            │  ▼            ▼  │
//!                         prefiller ──► transfer ──► transport ═══ UCX puts ═══► the receiver's pages
//! ```
//!
//! Commands go down and along these arrows, events come back; nobody waits for an answer inside a handler. What an
//! actor decides stands in its pure `state`, which knows no actix, no clock and no I/O.
#![forbid(unsafe_code)]

pub mod buffer_manager;
pub mod counters;
pub mod decoder;
pub mod devices;
pub mod effect;
pub mod finish;
pub mod first_token;
pub mod generator;
pub mod kit;
pub mod log;
pub mod messages;
pub mod node;
pub mod pages;
pub mod peer_link;
pub mod prefiller;
pub mod proxy;
pub mod request;
pub mod router;
pub mod shell;
pub mod streams;
pub mod transfer;
pub mod watchdog;

//! Baton's actors: they connect the engine and the connector through typed messages.
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
//! Commands follow these arrows, and events come back. A handler never waits for an answer. The decisions of an actor are in its pure
//! `state`, which uses no actix, no clock and no I/O.
#![forbid(unsafe_code)]

pub mod buffer_manager;
pub mod constraint;
pub mod counters;
pub mod decoder;
pub mod devices;
pub mod effect;
pub mod finish;
pub mod first_token;
pub mod fleet;
pub mod generator;
pub mod grammar;
pub mod kit;
pub mod log;
pub mod membership;
pub mod messages;
pub mod node;
pub mod pages;
pub mod peer_link;
pub mod peer_metrics;
pub mod prefiller;
pub mod proxy;
pub mod request;
pub mod router;
pub mod routing;
pub mod shell;
pub mod streams;
pub mod transfer;
pub mod watchdog;

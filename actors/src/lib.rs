//! Baton's actors: they bring the engine and the connector together by exchanging typed messages.
#![forbid(unsafe_code)]

pub mod request;
pub mod streams;

//! Moves KV pages between processes: memory regions, page credits, wire frames, the link, transports.
//!
//! This crate depends neither on the engine nor on actors. [`ring`] and [`shards`] are pure. [`link`] uses tokio TCP. All access to remote memory
//! goes through [`transport::Transport`].

#[cfg(test)]
mod counting_allocator;
pub mod frame;
pub mod link;
pub mod loopback;
pub mod memory;
pub mod page_hash;
pub mod process;
pub mod ring;
pub mod shards;
pub mod transport;
pub mod ucx;
pub mod wire;

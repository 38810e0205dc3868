//! Moves KV pages between processes: memory regions, the ring of page credits, wire frames, the link, transports.
//!
//! Knows nothing of engines or actors. [`ring`] is pure; [`link`] speaks tokio TCP; everything that touches remote
//! memory is behind [`transport::Transport`].

#[cfg(test)]
mod counting_allocator;
pub mod frame;
pub mod link;
pub mod loopback;
pub mod memory;
pub mod page_hash;
pub mod process;
pub mod ring;
pub mod transport;
pub mod ucx;
pub mod wire;

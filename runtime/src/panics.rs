//! What a panic does to the process.
//!
//! A panic is a fault of the program, and the thread that panicked may own something that others wait for: an actor, the engine, the
//! transport. So a panic ends the process, and its peers and clients notice at once. A panic that unwinds into `catch_unwind` ends it too:
//! the engine's worker threads, tokio and actix catch panics, which is of use only in programs that do not install this hook, such as tests.
//!
//! The exception is the grammar library, whose input comes from clients. It runs under [`actors::grammar::guarded`] on threads that own
//! nothing else. A panic there costs its request. This needs a profile that unwinds.

use std::panic::{set_hook, take_hook};

use actors::grammar::is_guarded;

/// Installs a hook that prints each panic and ends the process with SIGABRT, unless the panicking thread runs guarded work. To be called
/// before other threads exist.
pub fn end_the_process() {
    // The library installs a hook when it first catches panics. It would be the outer hook then, and ours would not see the library's panics
    // on an unguarded thread.
    let _ = llguidance::panic_utils::catch_unwind(|| Ok(()));
    let print = take_hook();
    set_hook(Box::new(move |panic| {
        print(panic);
        if !is_guarded() {
            std::process::abort();
        }
    }));
}

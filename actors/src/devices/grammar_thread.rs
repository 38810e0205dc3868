//! The OS thread that compiles the grammars of receivers for the prefiller. A compilation may block for several seconds, so it must not run on an
//! arbiter. A panic of the grammar library ends the compilation and nothing else.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use actix::prelude::*;

use crate::effect::ToPrefiller;
use crate::grammar::{GrammarCompiler, guarded};
use crate::messages::{CompileGrammar, GrammarCompiled};

/// Bytes of the thread's stack. A source nests as deeply as its peer likes, and a compiler may recurse for each level. Memory is used only as
/// deep as the stack grows.
const STACK_BYTES: usize = 64 << 20;

/// The handle. After it was dropped, the thread ends when its current compilation has ended.
pub struct GrammarThread {
    sources: Sender<CompileGrammar>,
}

impl GrammarThread {
    /// Starts the thread. It answers every source with one [`GrammarCompiled`], in order.
    ///
    /// # Errors
    /// The operating system cannot start a thread.
    pub fn spawn(
        compiler: Arc<dyn GrammarCompiler>,
        results: Recipient<ToPrefiller>,
    ) -> std::io::Result<Self> {
        // The prefiller bounds the number of sources that wait.
        let (sources, queue) = channel();
        let thread = std::thread::Builder::new().name("baton-grammar".into()).stack_size(STACK_BYTES);
        // The thread is not joined, because a compilation would delay the end of the process.
        thread.spawn(move || run(&*compiler, &queue, &results))?;
        Ok(Self { sources })
    }

    /// Queues a source.
    pub fn post(&self, compile: CompileGrammar) {
        // The thread ends only with the handle: `guarded` catches the panics of the compiler.
        let _ = self.sources.send(compile);
    }
}

fn run(compiler: &dyn GrammarCompiler, queue: &Receiver<CompileGrammar>, results: &Recipient<ToPrefiller>) {
    while let Ok(CompileGrammar { session, hash, source }) = queue.recv() {
        if !results.connected() {
            return;
        }
        let outcome = guarded(|| compiler.compile(&source));
        results.do_send(GrammarCompiled { session, hash, outcome }.into());
    }
}

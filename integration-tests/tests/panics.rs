//! A panic ends the process, except in guarded work. Each case runs in a process of its own: this program, started for one test.

use std::os::unix::process::ExitStatusExt as _;
use std::panic::catch_unwind;
use std::process::Command;
use std::sync::Arc;

use actix::{Actor, Context, Handler, Message, System};
use actors::grammar::{GrammarCompiler as _, GrammarError, GrammarSource, guarded};
use anyhow::Result;
use runtime::grammar::{Compiler, ModelCompiler};

/// The variable that names the case of the child process.
const CASE: &str = "PANIC_CASE";
const ABORTED: i32 = 6;

/// Runs a case. Returns the signal that ended the process, and its output.
fn run(case: &str) -> Result<(Option<i32>, String)> {
    let child = Command::new(std::env::current_exe()?)
        .args(["--exact", "child", "--nocapture"])
        .env(CASE, case)
        .output()?;
    let output = [child.stdout, child.stderr].concat();
    Ok((child.status.signal(), String::from_utf8_lossy(&output).into_owned()))
}

struct Panics;

#[derive(Message)]
#[rtype(result = "()")]
struct Panic;

impl Actor for Panics {
    type Context = Context<Self>;
}

impl Handler<Panic> for Panics {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Context<Self>) {
        panic!("on purpose");
    }
}

/// A case of [`run`]; does nothing in other runs.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    runtime::panics::end_the_process();
    let source = GrammarSource::Regex("a".to_owned());
    match &*case {
        "actor" => System::new().block_on(async {
            let _ = Panics.start().send(Panic).await;
        }),
        "thread" => {
            let _ = std::thread::spawn(|| panic!("on purpose")).join();
        }
        "task" => System::new().block_on(async {
            let _ = actix::spawn(async { panic!("on purpose") }).await;
        }),
        "caught" => {
            let _ = catch_unwind(|| panic!("on purpose"));
        }
        "after guarded work" => {
            assert_eq!(guarded(|| Ok(1)), Ok(1));
            panic!("on purpose");
        }
        "guarded" => {
            let outcome = guarded(|| -> Result<(), _> { panic!("on purpose") });
            assert_eq!(outcome, Err(GrammarError::Panicked("on purpose".to_owned())));
        }
        "compiler" => {
            let compiler = Compiler::new(|_| panic!("on purpose"));
            let outcome = compiler.compile(&source).err();
            assert_eq!(outcome, Some(GrammarError::Panicked("on purpose".to_owned())));
        }
        // The library has hooks of its own.
        "thread after a compilation" => {
            let text = Arc::new(runtime::frontend::Tokenizer::none(8));
            assert!(ModelCompiler::new(text, 8, &[0]).compile(&source).is_err());
            let _ = std::thread::spawn(|| panic!("on purpose")).join();
        }
        other => unreachable!("no case {other}"),
    }
    println!("the process goes on");
}

#[test]
fn a_panic_ends_the_process() -> Result<()> {
    for case in ["actor", "thread", "task", "caught", "after guarded work", "thread after a compilation"] {
        let (signal, output) = run(case)?;
        assert_eq!(signal, Some(ABORTED), "{case}: {output}");
        assert!(output.contains("on purpose") && !output.contains("the process goes on"), "{case}: {output}");
    }
    Ok(())
}

#[test]
fn a_panic_of_guarded_work_costs_its_request_only() -> Result<()> {
    for case in ["guarded", "compiler"] {
        let (signal, output) = run(case)?;
        assert_eq!(signal, None, "{case}: {output}");
        assert!(output.contains("the process goes on"), "{case}: {output}");
    }
    Ok(())
}

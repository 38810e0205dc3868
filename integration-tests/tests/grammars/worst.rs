//! The 20 worst grammars that we know: each is compiled or refused within a second and 256 MiB. Each runs in a process of its own, which is
//! this program, started for one test.

use std::process::Command;
use std::time::{Duration, Instant};

use actors::grammar::{GrammarError, GrammarSource};
use serde_json::{Map, Value, json};

use super::*;

/// The variable that names the case of the child process.
const CASE: &str = "GRAMMAR_CASE";

/// Much more than the second that a compilation may take, for machines that run other tests too.
const SECONDS_MAX: f64 = 10.0;
/// Besides the memory of the vocabulary.
const MIB_MAX: u64 = 256;

fn json(schema: Value) -> GrammarSource {
    GrammarSource::JsonSchema(schema.to_string())
}

fn regex(text: impl Into<String>) -> GrammarSource {
    GrammarSource::Regex(text.into())
}

fn lark(text: impl Into<String>) -> GrammarSource {
    GrammarSource::Lark(text.into())
}

/// A schema with `count` definitions, of which each is made from a reference to the next one.
fn chain(count: usize, link: impl Fn(Value) -> Value) -> GrammarSource {
    let mut definitions: Map<String, Value> =
        (0..count).map(|n| (format!("d{n}"), link(json!({"$ref": format!("#/$defs/d{}", n + 1)})))).collect();
    definitions.insert(format!("d{count}"), json!({"type": "string"}));
    json(json!({"$ref": "#/$defs/d0", "$defs": definitions}))
}

fn object(count: usize, name: impl Fn(usize) -> String) -> Map<String, Value> {
    (0..count).map(|n| (name(n), json!({"type": "string"}))).collect()
}

/// Rules or terminals that each use the next one `times` times.
fn rules(letter: char, count: usize, times: usize) -> GrammarSource {
    let line = |n: usize| format!("{letter}{n}:{}\n", format!(" {letter}{}", n + 1).repeat(times));
    lark(format!("start: {letter}0\n{}{letter}{count}: \"b\"\n", (0..count).map(line).collect::<String>()))
}

/// All grammars.
fn cases() -> Vec<(&'static str, bool, GrammarSource)> {
    schemas().into_iter().chain(texts()).collect()
}

/// JSON schemas, and whether they compile (`true`) or are refused.
fn schemas() -> Vec<(&'static str, bool, GrammarSource)> {
    let unions = |count: usize| -> Vec<Value> {
        let options = |n: usize| {
            (0..count).map(|m| json!({"properties": object(1, |_| format!("p{n}_{m}"))})).collect::<Vec<_>>()
        };
        (0..count).map(|n| json!({"anyOf": options(n)})).collect()
    };
    let nested_lists = (0..6).fold(
        json!({}),
        |items, _| json!({"type": "array", "minItems": 1000, "maxItems": 2000, "items": items}),
    );
    vec![
        (
            "60 nested objects",
            true,
            json((0..60).fold(json!({}), |inner, _| json!({"properties": {"a": inner}}))),
        ),
        (
            "enum of 12,000 strings",
            true,
            json(json!({"enum": (0..12_000).map(|n| format!("value {n:08x}")).collect::<Vec<_>>()})),
        ),
        (
            "enum of long equal strings",
            true,
            json(json!({"enum": ["a".repeat(100_000) + "b", "a".repeat(100_000) + "c"]})),
        ),
        ("chain of 1,990 references", true, chain(1990, |next| next)),
        (
            "chain of 990 objects",
            true,
            chain(990, |next| json!({"type": "object", "properties": {"x": next}})),
        ),
        ("chain of 5,000 references", false, chain(5000, |next| next)),
        ("2^20 references by allOf", true, chain(20, |next| json!({"allOf": [next, next]}))),
        (
            "2^40 references by anyOf",
            true,
            chain(40, |next| json!({"anyOf": [{"items": next}, {"properties": {"a": next}}]})),
        ),
        ("allOf of 40 unions", false, json(json!({"allOf": unions(40)}))),
        (
            "2,000 optional properties",
            true,
            json(json!({"properties": object(2000, |n| format!("p{n}")), "type": "object"})),
        ),
        (
            "6,000 optional properties",
            false,
            json(json!({"properties": object(6000, |n| format!("p{n}")), "type": "object"})),
        ),
        (
            "64 pattern properties",
            true,
            json(
                json!({"patternProperties": object(64, |n| format!("^(a|b)*a(a|b){{12}}{}$", "c".repeat(n + 1)))}),
            ),
        ),
        (
            "strings and lists of any length",
            true,
            json(
                json!({"prefixItems": [{"type": "string", "minLength": 100_000, "maxLength": 1_000_000}, nested_lists]}),
            ),
        ),
        ("multiples of a prime", false, json(json!({"type": "integer", "multipleOf": 999_999_937}))),
    ]
}

/// As [`schemas`], in the other languages.
fn texts() -> Vec<(&'static str, bool, GrammarSource)> {
    vec![
        ("nested repetitions", true, regex("(((a{1,50}){1,50}){1,50}){1,50}")),
        ("overlapping repetitions", true, regex(format!("({}x)+y", "(.*)(.*)a".repeat(40)))),
        ("100,000 parentheses", false, regex("(".repeat(100_000) + &")".repeat(100_000))),
        ("2^40 uses of a terminal", false, rules('T', 40, 2)),
        ("chain of 950 rules", true, rules('r', 950, 1)),
        ("chain of 10,000 rules", false, rules('r', 10_000, 1)),
        (
            "intersection of terminals",
            false,
            lark(
                "start: T\nT: /.*a.*/ & /.*b.*/ & /.*c.*/ & /.*d.*/ & /.*e.*/ & /.*f.*/ & /.*g.*/ & /.*h.*/ & ~/.*(foo|bar).*/\n",
            ),
        ),
        (
            "parts of a long text",
            true,
            lark(format!("start: %regex {{\"substring_chars\": \"{}\"}}\n", "abcdefghij klm".repeat(9000))),
        ),
    ]
}

/// A value of this process's status in MiB.
fn status_mib(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("Linux has the key");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("it is a number") / 1024
}

/// A case of the other test; does nothing in other runs.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    let (_, _, source) = cases().swap_remove(case.parse().unwrap());
    compile(&regex("a"));
    let (began, before) = (Instant::now(), status_mib("VmRSS:"));
    let outcome = guarded(|| MODEL.compiler.compile(&source));
    let (took, grown) = (began.elapsed(), status_mib("VmHWM:").saturating_sub(before));
    let walked = match &outcome {
        Ok(grammar) => walk_randomly(grammar),
        Err(GrammarError::Invalid(_) | GrammarError::TooLarge(_)) => Duration::ZERO,
        Err(error) => panic!("{error}"),
    };
    let peak = status_mib("VmHWM:").saturating_sub(before);
    println!(
        "measured {} {:.4} {grown} {peak} {:.1} {}",
        outcome.is_ok(),
        took.as_secs_f64(),
        walked.as_secs_f64() * 1e3,
        outcome.err().map(|error| error.to_string().chars().take(90).collect::<String>()).unwrap_or_default()
    );
}

/// Follows a random answer for a while. Returns the longest time of a mask. The answer may fail at a limit of the library.
fn walk_randomly(grammar: &CompiledGrammar) -> Duration {
    let mut random = SplitMix64::new(3);
    let mut matcher = guarded(|| grammar.grammar().matcher()).expect("the grammar has a matcher");
    let mut longest = Duration::ZERO;
    for _ in 0..100 {
        let began = Instant::now();
        let Ok(mask) = guarded(|| matcher.mask()) else { break };
        longest = longest.max(began.elapsed());
        let allowed: Vec<u32> = (0..TOKENS).filter(|token| allows(&mask, *token)).collect();
        let token = allowed[(random.draw() % allowed.len() as u64) as usize];
        if guarded(|| matcher.consume(token)).is_err() || ENDS.contains(&token) {
            break;
        }
    }
    longest
}

#[test]
fn the_worst_grammars_are_compiled_or_refused_in_time() {
    assert!(cases().len() >= 20);
    let mut wrong = Vec::new();
    println!("{:32} compiles   time    memory  with answer  longest mask", "");
    for (index, (name, compiles, source)) in cases().into_iter().enumerate() {
        assert!(source.text().len() <= GrammarSource::BYTES_MAX, "{name}: {} bytes", source.text().len());
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", "worst::child", "--nocapture"]).env(CASE, index.to_string());
        let output = program.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let Some(measured) = text.lines().find_map(|line| line.split("measured ").nth(1)) else {
            wrong.push(format!(
                "{name}: {:?} {text} {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            ));
            continue;
        };
        let fields: Vec<&str> = measured.splitn(6, ' ').collect();
        let (seconds, peak): (f64, u64) = (fields[1].parse().unwrap(), fields[3].parse().unwrap());
        println!(
            "{name:32} {:8} {:5.0} ms {:4} MiB {peak:8} MiB {:>8} ms  {}",
            fields[0],
            seconds * 1e3,
            fields[2],
            fields[4],
            fields[5]
        );
        if fields[0] != compiles.to_string() || seconds > SECONDS_MAX || peak > MIB_MAX {
            wrong.push(format!("{name}: {measured}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

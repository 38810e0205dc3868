//! The 20 worst grammars that we know: each is compiled or refused within a second and 256 MiB. Each runs in a process of its own, which is
//! this program, started for one test.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::*;

/// The variable that names the case of the child process.
const CASE: &str = "GRAMMAR_CASE";

/// Much more than the second that a compilation may take, for machines that run other tests too.
const SECONDS_MAX: f64 = 10.0;
/// A thread is lost until its compilation returns.
const RETURNS_WITHIN: Duration = Duration::from_secs(60);
/// Besides the memory of the vocabulary.
const MIB_MAX: f64 = 256.0;

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

/// Such a chain of references with escapes, to names that only a reader without escapes finds.
fn escaped_chain(count: usize) -> GrammarSource {
    let chain = chain(count, |next| next);
    GrammarSource::JsonSchema(chain.text().replace("/d", "/~1").replace("\"d", "\"~1"))
}

/// Schemas of strings with these names.
fn strings(count: usize, name: impl Fn(usize) -> String) -> Map<String, Value> {
    (0..count).map(|n| (name(n), json!({"type": "string"}))).collect()
}

/// Rules or terminals that each use the next one `times` times. The last one is `end`.
fn rules(letter: char, count: usize, times: usize, end: &str) -> GrammarSource {
    let line = |n: usize| format!("{letter}{n}:{}\n", format!(" {letter}{}", n + 1).repeat(times));
    let lines: String = (0..count).map(line).collect();
    lark(format!("start: {letter}0\n{lines}{letter}{count}: {end}\n"))
}

/// What happens to a grammar. On a slow machine, one that takes long is refused at the deadline.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Compiles,
    Refused,
    Either,
}
use Outcome::{Compiles, Either, Refused};

type Case = (&'static str, Outcome, GrammarSource);

/// All grammars.
fn cases() -> Vec<Case> {
    [references(), unions(), objects(), values(), regexes(), larks()].concat()
}

fn references() -> Vec<Case> {
    let object = |inner: Value| json!({"type": "object", "properties": {"a": inner}});
    let sibling = |inner: Value| {
        let mut inner = inner;
        inner["type"] = json!("object");
        object(object(inner))
    };
    vec![
        ("60 nested objects", Compiles, json((0..60).fold(json!({}), |inner, _| object(inner)))),
        ("chain of 990 references", Compiles, chain(990, |next| next)),
        ("chain of 490 objects", Compiles, chain(490, object)),
        ("chain of 5,000 references", Refused, chain(5000, |next| next)),
        ("chain of 5,000 escaped references", Refused, escaped_chain(5000)),
        ("chain of 320 copied objects", Either, chain(320, sibling)),
        ("chain of 900 copied objects", Refused, chain(900, sibling)),
        ("2^20 references by allOf", Compiles, chain(20, |next| json!({"allOf": [next, next]}))),
        (
            "2^40 references by anyOf",
            Compiles,
            chain(
                40,
                |next| json!({"anyOf": [{"items": next}, {"not_a_keyword": 1, "properties": {"a": next}}]}),
            ),
        ),
    ]
}

fn unions() -> Vec<Case> {
    let union = |n: usize, count: usize| {
        let options: Vec<Value> =
            (0..count).map(|m| json!({"properties": strings(1, |_| format!("p{n}_{m}"))})).collect();
        json!({"anyOf": options})
    };
    let tagged = |n: usize| json!({"type": "object", "properties": {"kind": {"const": n.to_string()}}, "required": ["kind"]});
    let words = |letter: char| json!({"enum": (0..220).map(|n| format!("{letter}{n}")).collect::<Vec<_>>()});
    vec![
        (
            "allOf of 40 unions",
            Refused,
            json(json!({"allOf": (0..40).map(|n| union(n, 40)).collect::<Vec<_>>()})),
        ),
        ("oneOf of 2,500 objects", Either, json(json!({"oneOf": (0..2500).map(tagged).collect::<Vec<_>>()}))),
        ("allOf of two enums", Refused, json(json!({"allOf": [words('a'), words('b')]}))),
        (
            "enum of 12,000 strings",
            Compiles,
            json(json!({"enum": (0..12_000).map(|n| format!("value {n:08x}")).collect::<Vec<_>>()})),
        ),
        (
            "enum of long equal strings",
            Compiles,
            json(json!({"enum": ["a".repeat(100_000) + "b", "a".repeat(100_000) + "c"]})),
        ),
    ]
}

fn objects() -> Vec<Case> {
    let object = |count: usize, schema: &dyn Fn(usize) -> Value| {
        let properties: Map<String, Value> = (0..count).map(|n| (format!("p{n}"), schema(n))).collect();
        json(json!({"type": "object", "properties": properties}))
    };
    let pattern = |n: usize| format!("^(a|b)*a(a|b){{12}}{}$", "c".repeat(n + 1));
    vec![
        ("2,000 optional properties", Either, object(2000, &|_| json!({"type": "string"}))),
        ("6,000 optional properties", Refused, object(6000, &|_| json!({"type": "string"}))),
        (
            "1,500 patterns",
            Either,
            object(1500, &|n| json!({"type": "string", "pattern": format!("^(a|b)*a(a|b){{8}}x{n}$")})),
        ),
        (
            "1,900 ranges",
            Refused,
            object(
                1900,
                &|n| json!({"type": "number", "minimum": 0.001 * n as f64, "maximum": 123_456_789.125, "multipleOf": 0.125}),
            ),
        ),
        ("64 pattern properties", Compiles, json(json!({"patternProperties": strings(64, pattern)}))),
        ("300 pattern properties", Refused, json(json!({"patternProperties": strings(300, pattern)}))),
    ]
}

fn values() -> Vec<Case> {
    let lists = (0..6).fold(
        json!({}),
        |items, _| json!({"type": "array", "minItems": 1000, "maxItems": 2000, "items": items}),
    );
    let text = json!({"type": "string", "minLength": 100_000, "maxLength": 1_000_000});
    vec![
        ("strings and lists of any length", Compiles, json(json!({"prefixItems": [text, lists]}))),
        ("multiples of a prime", Refused, json(json!({"type": "integer", "multipleOf": 999_999_937}))),
        (
            "multiples of two primes",
            Refused,
            json(json!({"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]})),
        ),
    ]
}

fn regexes() -> Vec<Case> {
    let words: Vec<String> = (0..30_000).map(|n| format!("v{n}")).collect();
    vec![
        ("nested repetitions", Compiles, regex("(((a{1,50}){1,50}){1,50}){1,50}")),
        ("overlapping repetitions", Compiles, regex(format!("({}x)+y", "(.*)(.*)a".repeat(40)))),
        ("100,000 parentheses", Refused, regex("(".repeat(100_000) + &")".repeat(100_000))),
        ("30,000 alternatives", Compiles, regex(words.join("|"))),
    ]
}

fn larks() -> Vec<Case> {
    let start = |text: String| lark(format!("start: {text}\nx: \"a\" | \"b\"\n"));
    let parentheses = |n: usize| format!("T{n}: {}T{}{}\n", "(\"x\" | ".repeat(27), n + 1, ")".repeat(27));
    let containing = |letter: char| format!("/.*{letter}.*/ & ");
    vec![
        ("2^40 uses of a terminal", Refused, rules('T', 40, 2, "\"b\"")),
        ("chain of 950 rules", Compiles, rules('r', 950, 1, "\"b\"")),
        ("chain of 950 rules, wrong", Refused, rules('r', 950, 1, "nowhere")),
        ("chain of 10,000 rules", Refused, rules('r', 10_000, 1, "\"b\"")),
        (
            "nested terminals, wrong",
            Refused,
            lark(format!("start: T0\n{}T600: NOWHERE\n", (0..600).map(parentheses).collect::<String>())),
        ),
        (
            "intersection of terminals",
            Refused,
            lark(format!(
                "start: T\nT: {}~/.*(foo|bar).*/\n",
                ('a'..'i').map(containing).collect::<String>()
            )),
        ),
        (
            "5,000 regexes",
            Refused,
            start((0..5000).map(|n| format!("/.*v{n}.*/ | ")).collect::<String>() + "x"),
        ),
        ("30,000 optional strings", Refused, start("\"ab\"? ".repeat(30_000))),
        ("30,000 repetitions", Refused, start("x* ".repeat(30_000))),
        ("20,000 ranges", Either, start("x{1,1000} ".repeat(20_000))),
        (
            "parts of a long text",
            Either,
            start(format!("%regex {{\"substring_chars\": \"{}\"}}", "abcdefghij klm".repeat(9000))),
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
    let took = began.elapsed();
    // A compilation that was refused at its deadline still runs.
    while MODEL.compiler.running() > 0 {
        assert!(began.elapsed() < RETURNS_WITHIN, "the compilation does not return");
        std::thread::sleep(Duration::from_millis(1));
    }
    let returned = began.elapsed();
    let walked = match &outcome {
        Ok(grammar) => walk_randomly(grammar),
        Err(GrammarError::Invalid(_) | GrammarError::TooLarge(_) | GrammarError::Busy(_)) => Duration::ZERO,
        Err(error) => panic!("{error}"),
    };
    let peak = status_mib("VmHWM:").saturating_sub(before);
    println!(
        "measured {} {:.4} {:.4} {peak} {:.1} {}",
        outcome.is_ok(),
        took.as_secs_f64(),
        returned.as_secs_f64(),
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
    println!("{:32} compiles    time  returns   memory  longest mask", "");
    for (index, (name, expect, source)) in cases().into_iter().enumerate() {
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
        let number = |index: usize| fields[index].parse::<f64>().unwrap();
        let (seconds, returned, peak) = (number(1), number(2), number(3));
        println!(
            "{name:32} {:8} {:4.0} ms {:5.0} ms {peak:4} MiB {:>10} ms  {}",
            fields[0],
            seconds * 1e3,
            returned * 1e3,
            fields[4],
            fields[5]
        );
        let outcome = if fields[0] == "true" { Compiles } else { Refused };
        if ![outcome, Either].contains(&expect) || seconds > SECONDS_MAX || peak > MIB_MAX {
            wrong.push(format!("{name}: {measured}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

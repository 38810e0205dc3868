//! Fuzzes the decoders and the link with invalid bytes, and prints the memory that they allocated.
//!
//! ```text
//! cargo run --release -p connector --example fuzz_frames -- --minutes 10 [--seed 1]
//! ```
//! Four rules are checked: no panic; no allocation above the limits below; a decoded value encodes to the same bytes; a link ends when
//! its peer hangs up. A violation ends the program and prints the input in hex. The same seed gives the same inputs.

#[path = "../src/counting_allocator.rs"]
mod counting_allocator;
#[path = "fuzz_frames/inputs.rs"]
mod inputs;
#[path = "fuzz_frames/links.rs"]
mod links;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use connector::frame::{Answer, Challenge, Frame, Hello};
use connector::wire::{self, FRAME_BYTES_MAX};
use serde::Serialize;
use serde::de::DeserializeOwned;

use counting_allocator::{Allocated, allocated};
use inputs::Random;

/// Bytes that decoding a value may allocate beyond the multiples of its input: a boxed [`Welcome`](connector::frame::Welcome) or an error
/// message. All lists together take at most twice their encoded length, and texts as much again.
const VALUE_BYTES_SLACK: usize = 1024;
/// Limits for one connection: the largest allocation, and the peak. A connection holds a buffer of the length that the next frame's
/// header claims, and the value that it has decoded.
const LINK_BYTES_MAX: (usize, usize) = (2 * FRAME_BYTES_MAX, 4 * FRAME_BYTES_MAX);
/// Decoders and links are fuzzed in turn, each for this long.
const TURN: Duration = Duration::from_millis(200);

/// One line of the printed table.
#[derive(Default)]
pub(crate) struct Line {
    pub(crate) inputs: u64,
    pub(crate) decoded: u64,
    pub(crate) worst: Allocated,
    pub(crate) took: Duration,
}

impl Line {
    pub(crate) fn cost(&mut self, allocated: Allocated) {
        self.worst.largest = self.worst.largest.max(allocated.largest);
        self.worst.total = self.worst.total.max(allocated.total);
        self.worst.peak = self.worst.peak.max(allocated.peak);
    }
}

/// The current target and its input, printed after a panic.
static FED: Mutex<(&str, Vec<u8>)> = Mutex::new(("", Vec::new()));

/// Stores the next target and its input.
pub(crate) fn feed(target: &'static str, input: &[u8]) {
    let mut fed = FED.lock().unwrap_or_else(PoisonError::into_inner);
    fed.0 = target;
    fed.1.clear();
    fed.1.extend_from_slice(input);
}

/// Ends the program, because the current input has violated a rule.
pub(crate) fn violation(what: &str) -> ! {
    let fed = FED.lock().unwrap_or_else(PoisonError::into_inner);
    let hex: String = fed.1.iter().map(|byte| format!("{byte:02x}")).collect();
    eprintln!("{}: {what}\ninput of {} bytes: {hex}", fed.0, fed.1.len());
    std::process::exit(1);
}

fn decode<T: Serialize + DeserializeOwned>(target: &'static str, input: &[u8], line: &mut Line) {
    feed(target, input);
    let (result, cost) = allocated(|| wire::decode::<T>(input));
    line.inputs += 1;
    line.cost(cost);
    if cost.largest > 2 * input.len() + VALUE_BYTES_SLACK || cost.total > 4 * input.len() + VALUE_BYTES_SLACK
    {
        violation(&format!("{cost:?} for {} bytes", input.len()));
    }
    if let Ok(value) = result {
        line.decoded += 1;
        match wire::encode(&value) {
            Ok(bytes) if bytes == input => {}
            other => violation(&format!("the decoded value encodes to {other:02x?}")),
        }
    }
}

/// The next input: random bytes, a valid value, or a damaged one.
fn input(random: &mut Random) -> Vec<u8> {
    if random.one_in(10) {
        return inputs::noise(random);
    }
    let mut bytes = inputs::valid(random);
    if !random.one_in(10) {
        let other = inputs::valid(random);
        inputs::damage(random, &mut bytes, &other);
    }
    bytes
}

fn decode_for(turn: Duration, random: &mut Random, lines: &mut [Line; 4]) {
    let end = Instant::now() + turn;
    while Instant::now() < end {
        let inputs: Vec<Vec<u8>> = (0..64).map(|_| input(random)).collect();
        let mut each = |n: usize, decode: fn(&[u8], &mut Line)| {
            let began = Instant::now();
            inputs.iter().for_each(|input| decode(input, &mut lines[n]));
            lines[n].took += began.elapsed();
        };
        each(0, |input, line| decode::<Challenge>("Challenge", input, line));
        each(1, |input, line| decode::<Hello>("Hello", input, line));
        each(2, |input, line| decode::<Answer>("Answer", input, line));
        each(3, |input, line| decode::<Frame>("Frame", input, line));
    }
}

fn option(name: &str, default: u64) -> u64 {
    let mut words = std::env::args().skip_while(|word| word != name).skip(1);
    words.next().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} takes a number")))
}

fn main() {
    let (minutes, seed) = (option("--minutes", 1), option("--seed", 1));
    std::panic::set_hook(Box::new(|panic| violation(&panic.to_string())));
    let mut random = Random::new(seed);
    let mut lines: [Line; 4] = Default::default();
    let mut links: [Line; 2] = Default::default();
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    while Instant::now() < end {
        decode_for(TURN, &mut random, &mut lines);
        links::fuzz_links_for(TURN, &mut random, &mut links);
    }
    println!("{minutes} min, seed {seed}: no panic, no limit exceeded, all links ended");
    println!(
        "{:<14} {:>12} {:>10} {:>12} {:>16} {:>16} {:>14}",
        "", "inputs", "inputs/s", "decoded", "largest bytes", "total bytes", "peak bytes"
    );
    let names = ["Challenge", "Hello", "Answer", "Frame", "link accepts", "link dials"];
    for (name, line) in names.iter().zip(lines.iter().chain(&links)) {
        println!(
            "{name:<14} {:>12} {:>10.0} {:>12} {:>16} {:>16} {:>14}",
            line.inputs,
            line.inputs as f64 / line.took.as_secs_f64(),
            line.decoded,
            line.worst.largest,
            line.worst.total,
            line.worst.peak
        );
    }
}

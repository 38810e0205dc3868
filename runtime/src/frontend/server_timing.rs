//! The header `Server-Timing`: how long the parts of a request took, for the developer tools of browsers and for clients.
//!
//! A streamed answer has only the parts that have ended when its head is sent.

use actors::request::Timings;

use super::begin::Begin;

/// The name of the header.
pub(super) const SERVER_TIMING: &str = "server-timing";

/// The parts of a streamed answer whose first token has come: reading the request, the queue, and the time from its arrival to that token.
pub(super) fn of_stream(begin: &Begin) -> String {
    let mut text = of_begin(begin);
    push(&mut text, "ttft", begin.arrived.elapsed().as_micros() as u64);
    text
}

/// The parts of a whole answer. `decode` ends with the last token, `total` now. If the decoder has not reported its times, only those before.
pub(super) fn of_answer(begin: &Begin, timings: &Timings) -> String {
    let mut text = of_begin(begin);
    if timings.prompt_tokens == 0 {
        return text;
    }
    let Timings { routed_ms, placed_ms, prefilled_ms, exposed_ms, first_token_ms, decode_ms, .. } = *timings;
    let hand_over = if timings.disaggregated { exposed_ms } else { 0.0 };
    for (name, ms) in [
        ("route", routed_ms),
        ("pages", placed_ms - routed_ms),
        ("prefill", prefilled_ms - placed_ms),
        ("handover", hand_over),
        ("decode", first_token_ms + decode_ms - prefilled_ms - hand_over),
    ] {
        // The conversion saturates, so less than no time becomes 0.
        push(&mut text, name, (ms * 1e3).round() as u64);
    }
    push(&mut text, "total", begin.arrived.elapsed().as_micros() as u64);
    text
}

fn of_begin(begin: &Begin) -> String {
    let read = begin.read.saturating_duration_since(begin.arrived);
    let queue = begin.began.saturating_duration_since(begin.read);
    let mut text = String::with_capacity(200);
    push(&mut text, "read", read.as_micros() as u64);
    push(&mut text, "queue", queue.as_micros() as u64);
    text
}

/// Adds a part with its duration in milliseconds. A request has eight parts, and `write!` takes four times as long.
fn push(text: &mut String, name: &str, micros: u64) {
    if !text.is_empty() {
        text.push_str(", ");
    }
    text.push_str(name);
    text.push_str(";dur=");
    text.push_str(itoa::Buffer::new().format(micros / 1000));
    let thousandths = micros % 1000;
    if thousandths > 0 {
        text.push('.');
        let digits = [thousandths / 100, thousandths / 10 % 10, thousandths % 10];
        text.extend(digits.map(|digit| char::from(b'0' + digit as u8)));
        text.truncate(text.trim_end_matches('0').len());
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_parts_of_an_answer_follow_each_other() {
        let arrived = Instant::now();
        let after = |ms| arrived + Duration::from_millis(ms);
        let begin = Begin { arrived, read: after(2), began: after(5), trace: None };
        let timings = Timings {
            disaggregated: true,
            prompt_tokens: 5,
            routed_ms: 0.5,
            placed_ms: 1.0,
            prefilled_ms: 20.25,
            exposed_ms: 3.0,
            first_token_ms: 20.25,
            decode_ms: 40.0,
            ..Timings::default()
        };
        let text = of_answer(&begin, &timings);
        let expect = "read;dur=2, queue;dur=3, route;dur=0.5, pages;dur=0.5, prefill;dur=19.25, handover;dur=3, decode;dur=37, total;dur=";
        assert!(text.starts_with(expect), "{text}");
        assert!(of_stream(&begin).starts_with("read;dur=2, queue;dur=3, ttft;dur="));
    }
}

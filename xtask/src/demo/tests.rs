//! Which answers the demo accepts, and the line that it prints for curl.

use super::*;

fn timeline(disaggregated: bool, prefill: u32, decode: u32) -> Timeline {
    let timings = json!({
        "disaggregated": disaggregated, "prefill_pid": prefill, "decode_pid": decode, "prompt_tokens": 1,
        "completion_tokens": 1, "prefill_ms": 1.0, "pages": 1, "bytes": 1, "transfer_ms": 1.0,
        "exposed_ms": 0.0, "first_token_ms": 1.0, "decode_ms": 1.0,
    });
    Timeline::from_json(Some(&timings)).unwrap()
}

#[test]
fn an_answer_needs_text_and_two_processes() {
    let (receiver, sender) = (11, 12);
    for (text, timeline, expect) in [
        ("Paris.", timeline(true, sender, receiver), None),
        (" \n", timeline(true, sender, receiver), Some("answer is empty")),
        ("Paris.", timeline(false, sender, receiver), Some("not disaggregated")),
        ("Paris.", timeline(true, receiver, receiver), Some("prefilled and decoded")),
        (
            "Paris.",
            timeline(true, 13, receiver),
            Some("but the sender (12) must prefill and the receiver (11) must decode"),
        ),
    ] {
        let answer = Answer { text: text.into(), timings: None };
        match (judge(&answer, &timeline, (receiver, sender)), expect) {
            (Ok(()), None) => {}
            (Err(error), Some(words)) => assert!(error.to_string().contains(words), "{error}"),
            (result, expect) => panic!("{result:?}, expected {expect:?}"),
        }
    }
}

#[test]
fn the_curl_line_names_the_frontend() {
    assert!(curl_line(4).contains("http://127.0.0.1:4/v1/chat/completions"));
}

//! The frontend over real sockets.

mod answers;
mod clients;
mod endpoints;
mod harness;
mod http;
mod live;
mod queue;
mod refusals;
mod responses;
mod scores;
mod structured;
mod tools;

use serde_json::Value;

/// `text` with the time `created`, which differs from run to run.
fn dated(text: &str, created: &Value) -> String {
    text.replace("CREATED", &created.to_string())
}

//! Makes `docs/messages.md` from the table of messages: `cargo run -p integration-tests --example message_table > docs/messages.md`.

use std::fmt::Write as _;

use actors::effect::{Delivery, Endpoint, TABLE};

const HEAD: &str = "\
# Messages

Every message inside one process, from the table in `actors/src/effect.rs`. A test compares this page with the table;
`cargo run -p integration-tests --example message_table > docs/messages.md` writes it.

A *post* is always taken: the bound says what limits how many of them wait. A *command* is refused when its queue is full, and the
sender is told. Messages of one sender to one recipient arrive in the order in which they were sent; nothing else is promised.
";

/// The whole page.
pub fn render() -> String {
    let mut page = HEAD.to_owned();
    let mut recipients: Vec<Endpoint> = TABLE.iter().map(|row| row.to).collect();
    recipients.dedup();
    for recipient in recipients {
        // Writing to a string cannot fail.
        let _ = write!(
            page,
            "\n## To the {}\n\n| message | from | delivery | bound |\n|---|---|---|---|\n",
            name(recipient)
        );
        for row in TABLE.iter().filter(|row| row.to == recipient) {
            let from: Vec<String> = row.from.iter().map(|from| name(*from)).collect();
            let delivery = match row.delivery {
                Delivery::Command => "command",
                Delivery::Post => "post",
            };
            let (message, bound) = (row.message, row.bound);
            let _ = writeln!(page, "| `{message}` | {} | {delivery} | {bound} |", from.join(", "));
        }
    }
    page
}

/// `BufferManager` → `buffer manager`.
fn name(endpoint: Endpoint) -> String {
    let mut words = String::new();
    for letter in format!("{endpoint:?}").chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(letter.to_ascii_lowercase());
    }
    words
}

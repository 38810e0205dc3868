//! `docs/messages.md` equals the table of messages.

use std::fs;
use std::path::Path;

#[test]
fn the_page_equals_the_table() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/messages.md");
    let page = fs::read_to_string(page).expect("docs/messages.md");
    assert_eq!(
        page,
        integration_tests::message_table::render(),
        "write the page again: cargo run -p integration-tests --example message_table > docs/messages.md"
    );
}

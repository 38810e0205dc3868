//! `docs/messages.md` says what the table of messages says.

use std::fs;
use std::path::Path;

#[test]
fn the_page_is_the_table() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/messages.md");
    let page = fs::read_to_string(page).expect("docs/messages.md");
    assert_eq!(
        page,
        integration_tests::message_table::render(),
        "write it anew: cargo run -p integration-tests --example message_table > docs/messages.md"
    );
}

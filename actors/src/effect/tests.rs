use super::*;
use crate::request::RequestId;

#[test]
fn an_effect_is_small() {
    // Effects are moved through vectors and mailboxes, so large messages are boxed.
    assert!(size_of::<Effect>() <= 160, "{} bytes", size_of::<Effect>());
}

#[test]
fn a_message_finds_its_row() {
    let effect = to::decoder(PageRejected { request: RequestId(1) });
    let row = effect.row();
    assert_eq!((row.message, row.to), ("PageRejected", Endpoint::Decoder));
    assert_eq!(TABLE.iter().filter(|other| **other == *row).count(), 1);
}

#[test]
fn every_row_names_a_bound() {
    for row in TABLE {
        assert!(!row.bound.is_empty() && !row.from.contains(&row.to), "{row:?}");
    }
}

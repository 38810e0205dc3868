//! The prefix index on its own.

use super::super::index::PrefixIndex;
use super::super::prefix::PrefixHash;

fn index(members: u32) -> PrefixIndex {
    let mut index = PrefixIndex::new(1 << 30);
    (0..members).for_each(|key| index.set_pool(key, 1000));
    index
}

fn hashes<const N: usize>(hashes: [u64; N]) -> [PrefixHash; N] {
    hashes.map(PrefixHash)
}

#[test]
fn a_segment_with_the_hash_of_another_one_replaces_it() {
    let mut index = index(3);
    // The hash 3 stands for two prefixes.
    index.insert(0, &hashes([3, 9]));
    index.insert(1, &hashes([1, 2, 3]));
    index.insert(2, &hashes([1, 2, 4]));
    index.check().unwrap();
    assert_eq!([0, 1, 2].map(|key| index.pages_of(key)), [0, 3, 3]);
    // The same within one prompt.
    index.insert(0, &hashes([5, 6, 5]));
    index.insert(1, &hashes([5, 6, 7]));
    index.check().unwrap();
    (0..3).for_each(|key| index.remove(key));
    index.check().unwrap();
    assert_eq!(index.bytes(), 0);
}

#[test]
fn a_list_of_holders_shrinks_with_the_members() {
    let mut index = index(1000);
    let prompt = hashes([1, 2, 3]);
    (0..1000).for_each(|key| index.insert(key, &prompt));
    (10..1000).for_each(|key| index.remove(key));
    assert!(index.capacity(prompt[0]) <= 40, "10 holders, {}", index.capacity(prompt[0]));
    index.check().unwrap();
}

/// Two of ten members hold a prefix. Each draw is as likely as another, although their keys are neighbours.
#[test]
fn the_order_of_equal_holders_does_not_depend_on_their_keys() {
    let mut index = index(10);
    let prompt = hashes([1, 2, 3]);
    [4, 5].into_iter().for_each(|key| index.insert(key, &prompt));
    let first = |draw| index.path(&prompt).longest(1, draw, |_| true)[0].0;
    let on_4 = (0..1000).filter(|draw| first(*draw) == 4).count();
    assert!((400..=600).contains(&on_4), "{on_4}");
}

//! Tests of the layout offsets against a naive count, and of the pool's memory.

use proptest::prelude::*;

use super::*;

fn layout(layers: u32, kv_heads: u32, head_dim: u32, page_tokens: u32) -> KvLayout {
    KvLayout { layers, kv_heads, head_dim, page_tokens, dtype: KvDtype::F32 }
}

#[test]
fn page_bytes_of_known_models() {
    let check = |layout: KvLayout, expect: u64| assert_eq!(layout.page_bytes(), expect, "{layout:?}");
    check(layout(30, 3, 64, 16), 720 << 10);
    check(layout(30, 3, 64, 1), 45 << 10);
    check(layout(32, 8, 128, 64), 16 << 20);
}

#[test]
fn formats_keep_their_names() {
    assert_eq!([KvDtype::F32, KvDtype::Bf16, KvDtype::Fp8].map(KvDtype::name), ["f32", "bf16", "fp8"]);
}

#[test]
fn offsets_count_head_then_layer_then_part_then_token() {
    let layout = layout(3, 2, 32, 5);
    let mut expect = 0;
    for head in 0..2 {
        assert_eq!(expect, u64::from(head) * layout.head_bytes());
        for layer in 0..3 {
            for part in [KeyOrValue::Key, KeyOrValue::Value] {
                for token in 0..5 {
                    assert_eq!(layout.offset_bytes(head, layer, part, token), expect);
                    expect += 32 * 4;
                }
            }
        }
    }
    assert_eq!(layout.page_bytes(), expect);
}

#[test]
fn pool_starts_zero_and_aligned() {
    let pool = KvPool::new(layout(2, 1, 32, 3), 50).unwrap();
    assert_eq!(pool.bytes() as u64, 50 * pool.layout().page_bytes());
    assert_eq!(pool.base().as_ptr() as usize % 4096, 0);
    // SAFETY: inside the mapping, which no other code uses.
    let zero = (0..pool.bytes()).all(|at| unsafe { pool.base().add(at).read() } == 0);
    assert!(zero);
}

#[test]
fn pool_refuses_zero_and_too_many_bytes() {
    let check = |layout: KvLayout, pages: u32| {
        assert_eq!(KvPool::new(layout, pages).unwrap_err().kind(), "pool_size")
    };
    check(layout(2, 1, 32, 16), 0);
    check(layout(0, 1, 32, 16), 9);
    check(layout(u32::MAX, u32::MAX, u32::MAX, u32::MAX), 1);
    check(layout(1 << 20, 1 << 10, 1 << 10, 1 << 10), u32::MAX);
}

proptest! {
    #[test]
    fn addresses_stay_in_their_page(layers in 1u32..4, heads in 1u32..4, tokens in 1u32..9, pages in 1u32..6) {
        let pool = KvPool::new(layout(layers, heads, 32, tokens), pages).unwrap();
        let page_bytes = pool.layout().page_bytes() as usize;
        for page in 0..pages {
            let first = pool.address(PageId(page), 0, 0, KeyOrValue::Key, 0).as_ptr() as usize;
            let last = pool.address(PageId(page), heads - 1, layers - 1, KeyOrValue::Value, tokens - 1);
            let last = last.as_ptr() as usize;
            prop_assert_eq!(first, pool.base().as_ptr() as usize + page as usize * page_bytes);
            prop_assert_eq!(last + 32 * 4, first + page_bytes);
        }
    }
}

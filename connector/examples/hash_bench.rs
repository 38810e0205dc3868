//! Measures page hashing on one core: `cargo run --release -p connector --example hash_bench -- [PAGE_BYTES]`.

use std::hint::black_box;
use std::time::Instant;

use connector::memory::Region;
use connector::page_hash::{PageSeed, page_hash};

fn main() {
    let page_bytes: u64 =
        std::env::args().nth(1).map_or(737_280, |text| text.parse().expect("PAGE_BYTES is a number"));
    for (name, pages) in [("one page, in the cache", 1), ("64 pages, from memory", 64)] {
        let region = Region::host((page_bytes * pages) as usize);
        let rounds = (1u64 << 31) / (page_bytes * pages) + 1;
        let began = Instant::now();
        for round in 0..rounds {
            for page in 0..pages {
                let seed = PageSeed { session: round, credit: page, request: 1, place: 1 };
                black_box(page_hash(&region, page * page_bytes, page_bytes, seed));
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let hashed = (rounds * pages) as f64;
        println!(
            "{name}: {:.1} GB/s, {:.0} µs a page",
            hashed * page_bytes as f64 / seconds / 1e9,
            seconds / hashed * 1e6
        );
    }
}

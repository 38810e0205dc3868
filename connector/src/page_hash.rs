//! The hash that proves that a page arrived whole, and that it is the page it is said to be.
//!
//! Not cryptographic: it guards against lost, torn, stale and misplaced bytes, not against a peer that lies about what it
//! computed. A page is cut into segments of 4 KiB that are hashed independently, so threads of a GPU can share a page;
//! their hashes are mixed with their place and summed, and the seed comes last:
//!
//! ```text
//! segment  eight lanes of 64 bits; word w at place p adds lo32(w ^ key[p]) * hi32(w ^ key[p]) to its lane and w to its neighbour
//! content  Σ mix(segment hash + index * K)
//! page     mix(content ^ mix(seed))
//! ```
//!
//! The accumulation is that of XXH3 (Yann Collet), whose analysis it shares, without the scrambling between blocks:
//! a segment is short enough not to need it.

use common::splitmix::{STEP as K, mix};

use crate::memory::Region;

/// Bytes hashed independently of the rest.
const SEGMENT: usize = 4096;
const LANES: usize = 8;
const STRIPE: usize = LANES * 8;
const STRIPES: usize = SEGMENT / STRIPE;

/// One key a word of a segment: splitmix64 of its place.
static KEYS: [[u64; LANES]; STRIPES] = keys();

const fn keys() -> [[u64; LANES]; STRIPES] {
    let mut keys = [[0; LANES]; STRIPES];
    let mut n = 0;
    while n < STRIPES * LANES {
        keys[n / LANES][n % LANES] = mix((n as u64 + 1).wrapping_mul(K));
        n += 1;
    }
    keys
}

/// What a page is: mixed into its hash, so that right bytes in a wrong place do not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSeed {
    /// The session's, drawn by both sides' nonces: [`Nonces::session_seed`](crate::link::Nonces::session_seed).
    pub session: u64,
    /// Number of the credit that was spent.
    pub credit: u64,
    /// The receiver's number for the request.
    pub request: u64,
    /// Place in the request's page table.
    pub place: u32,
}

impl PageSeed {
    fn word(self) -> u64 {
        [self.credit, self.request, u64::from(self.place)]
            .into_iter()
            .fold(mix(self.session), |seed, part| mix(seed.wrapping_add(K) ^ part))
    }
}

/// The hash of `bytes` bytes of `region` at `offset`, as the page that `seed` says; `None` if they leave the region, or if that
/// is not the host's.
///
/// Reads the memory as it is: the caller knows that nobody writes it now, or that what it reads is thrown away.
/// Some 25 µs for 720 KiB from memory on one core with AVX-512: `cargo run --release -p connector --example hash_bench`.
pub fn page_hash(region: &Region, offset: u64, bytes: u64, seed: PageSeed) -> Option<u64> {
    let base = region.at(offset, bytes)?;
    // SAFETY: `at` has checked that the range lies in the region, which is the host's and alive for this call.
    let content = unsafe { content(base.as_ptr(), bytes as usize) };
    Some(finished(content, bytes, seed))
}

/// The hash of a page of `bytes` bytes whose segments sum up to `content`, wherever they were summed.
pub fn finished(content: u64, bytes: u64, seed: PageSeed) -> u64 {
    mix(content ^ mix(seed.word() ^ bytes))
}

/// # Safety
/// `bytes` bytes at `base` are readable.
unsafe fn content(base: *const u8, bytes: usize) -> u64 {
    let (whole, rest) = (bytes / SEGMENT, bytes % SEGMENT);
    let mut sum = 0u64;
    for index in 0..whole {
        // SAFETY: segment `index` lies before `bytes`.
        let hash = unsafe { segment(base.add(index * SEGMENT)) };
        sum = sum.wrapping_add(mix(hash.wrapping_add((index as u64).wrapping_mul(K))));
    }
    if rest > 0 {
        let mut last = [0u8; SEGMENT];
        // SAFETY: the last `rest` bytes of the range, into a buffer that holds a whole segment.
        unsafe { std::ptr::copy_nonoverlapping(base.add(whole * SEGMENT), last.as_mut_ptr(), rest) };
        // SAFETY: the buffer is a whole segment.
        let hash = unsafe { segment(last.as_ptr()) };
        sum = sum.wrapping_add(mix(hash.wrapping_add((whole as u64).wrapping_mul(K))));
    }
    sum
}

/// # Safety
/// `SEGMENT` bytes at `base` are readable.
unsafe fn segment(base: *const u8) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has what the function is compiled for; the range is the caller's promise.
            return unsafe { segment_avx512(base) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { segment_avx2(base) };
        }
    }
    // SAFETY: the caller's promise.
    unsafe { segment_plain(base) }
}

/// # Safety
/// As [`segment`], on a processor with AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn segment_avx512(base: *const u8) -> u64 {
    use std::arch::x86_64::*;
    let mut lanes = [0u64; LANES];
    // SAFETY: every load is of a stripe of the segment or of the keys, and unaligned loads are used; the store is of a
    // stripe's size.
    unsafe {
        let mut sum = _mm512_loadu_si512(KEYS[0].as_ptr().cast());
        for (stripe, keys) in KEYS.iter().enumerate() {
            let words = _mm512_loadu_si512(base.add(stripe * STRIPE).cast());
            let keyed = _mm512_xor_si512(words, _mm512_loadu_si512(keys.as_ptr().cast()));
            let product = _mm512_mul_epu32(keyed, _mm512_srli_epi64::<32>(keyed));
            let neighbours = _mm512_shuffle_epi32::<0b01_00_11_10>(words);
            sum = _mm512_add_epi64(sum, _mm512_add_epi64(product, neighbours));
        }
        _mm512_storeu_si512(lanes.as_mut_ptr().cast(), sum);
    }
    merge(lanes)
}

/// # Safety
/// As [`segment`], on a processor with AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn segment_avx2(base: *const u8) -> u64 {
    use std::arch::x86_64::*;
    let mut lanes = [0u64; LANES];
    // SAFETY: as in `segment_avx512`, half a stripe at a time.
    unsafe {
        let half = |from: *const u64, n: usize| _mm256_loadu_si256(from.add(n * 4).cast());
        let mut sums = [half(KEYS[0].as_ptr(), 0), half(KEYS[0].as_ptr(), 1)];
        for (stripe, keys) in KEYS.iter().enumerate() {
            for (n, sum) in sums.iter_mut().enumerate() {
                let words = half(base.add(stripe * STRIPE).cast(), n);
                let keyed = _mm256_xor_si256(words, half(keys.as_ptr(), n));
                let product = _mm256_mul_epu32(keyed, _mm256_srli_epi64::<32>(keyed));
                let neighbours = _mm256_shuffle_epi32::<0b01_00_11_10>(words);
                *sum = _mm256_add_epi64(*sum, _mm256_add_epi64(product, neighbours));
            }
        }
        for (n, sum) in sums.into_iter().enumerate() {
            _mm256_storeu_si256(lanes.as_mut_ptr().add(n * 4).cast(), sum);
        }
    }
    merge(lanes)
}

/// The definition; every other implementation gives the same.
///
/// # Safety
/// As [`segment`].
unsafe fn segment_plain(base: *const u8) -> u64 {
    let mut lanes = KEYS[0];
    for (stripe, keys) in KEYS.iter().enumerate() {
        // SAFETY: stripe `stripe` of the segment; unaligned reads of plain bytes.
        let words: [u64; LANES] =
            unsafe { base.add(stripe * STRIPE).cast::<[u64; LANES]>().read_unaligned() };
        for lane in 0..LANES {
            let keyed = words[lane] ^ keys[lane];
            let product = (keyed & 0xFFFF_FFFF).wrapping_mul(keyed >> 32);
            lanes[lane] = lanes[lane].wrapping_add(product).wrapping_add(words[lane ^ 1]);
        }
    }
    merge(lanes)
}

/// Lanes are mixed side by side, not one after the other: that would take as long as all the rest.
#[inline]
fn merge(lanes: [u64; LANES]) -> u64 {
    (1u64..)
        .zip(lanes)
        .fold(0, |hash, (lane, sum)| hash.wrapping_add(mix(sum.wrapping_add(lane.wrapping_mul(K)))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEED: PageSeed = PageSeed { session: 1, credit: 2, request: 3, place: 4 };

    fn region(bytes: &[u8]) -> Region {
        let region = Region::host(bytes.len());
        // SAFETY: a fresh region of that length that nobody else knows.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), region.base().as_ptr(), bytes.len()) };
        region
    }

    fn hash(bytes: &[u8], seed: PageSeed) -> u64 {
        page_hash(&region(bytes), 0, bytes.len() as u64, seed).expect("the whole region")
    }

    #[test]
    fn golden() {
        // Both sides of a link must agree: a change here changes PROTOCOL_VERSION.
        let bytes: Vec<u8> = (0..10_000u32).map(|n| ((n * n) >> 3) as u8).collect();
        let got = [hash(&[], SEED), hash(&bytes[..64], SEED), hash(&bytes, SEED)];
        assert_eq!(
            got,
            [0x0980_c2cd_ed49_a630, 0x391c_6852_4390_f2f0, 0xa2a8_5db3_3fb4_6f11],
            "{got:#018x?}"
        );
    }

    #[test]
    fn every_implementation_agrees() {
        let bytes: Vec<u8> = (0..SEGMENT as u32).map(|n| (n * 7 + n / 3) as u8).collect();
        let base = bytes.as_ptr();
        // SAFETY: a whole segment is readable, here and below.
        let plain = unsafe { segment_plain(base) };
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: the processor has it.
                assert_eq!(plain, unsafe { segment_avx512(base) });
            }
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has it.
                assert_eq!(plain, unsafe { segment_avx2(base) });
            }
        }
        // SAFETY: as above.
        assert_eq!(plain, unsafe { segment(base) });
    }

    #[test]
    fn what_the_page_is_counts() {
        let bytes = [7u8; 5000];
        let seeds = [
            SEED,
            PageSeed { session: 2, ..SEED },
            PageSeed { credit: 3, ..SEED },
            PageSeed { request: 4, ..SEED },
            PageSeed { place: 5, ..SEED },
        ];
        let hashes: std::collections::HashSet<u64> = seeds.iter().map(|seed| hash(&bytes, *seed)).collect();
        assert_eq!(hashes.len(), seeds.len());
        assert_eq!(page_hash(&region(&bytes), 1, 5000, SEED), None, "it leaves the region");
    }

    proptest! {
        /// Any flipped bit, any two swapped pieces and any cut show.
        #[test]
        fn damage_shows(
            bytes in proptest::collection::vec(any::<u8>(), 1..20_000),
            at in any::<prop::sample::Index>(),
            bit in 0..8u8,
            other in any::<prop::sample::Index>(),
        ) {
            let whole = hash(&bytes, SEED);
            let mut flipped = bytes.clone();
            flipped[at.index(bytes.len())] ^= 1 << bit;
            prop_assert_ne!(hash(&flipped, SEED), whole);
            let mut swapped = bytes.clone();
            swapped.swap(at.index(bytes.len()), other.index(bytes.len()));
            prop_assert_eq!(hash(&swapped, SEED) == whole, swapped == bytes);
            prop_assert_ne!(hash(&bytes[..bytes.len() - 1], SEED), whole);
        }
    }
}

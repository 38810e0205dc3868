//! The hash of a KV page: shows that the bytes arrived complete and that the page is in its place.
//!
//! The hash is not cryptographic. It detects lost, torn, stale and misplaced bytes. It does not detect a peer that sends wrong values
//! with a matching hash. A page is divided into segments of 4 KiB, which are hashed independently, so the threads of a GPU can share
//! a page. Each segment's hash is mixed with the segment's index, the results are summed, and the seed is mixed in last:
//!
//! ```text
//! segment  Σ mix(lane + (lane index + 1) * K), over eight lanes of 64 bits. The initial value of a lane is its key of the first stripe.
//!          Word w at place p adds lo32(w ^ key[p]) * hi32(w ^ key[p]) to lane p mod 8, and adds w to the adjacent lane, (p mod 8) ^ 1
//! content  Σ mix(segment hash + index * K)
//! page     mix(content ^ mix(seed ^ length))
//! ```
//!
//! If a page is divided into [shards](crate::shards), each rank sums the segments of its shard, and the sums are added. So a page matches only if
//! all of its shards are complete and in their places.
//!
//! Words are accumulated as in XXH3 (Yann Collet), so the published analysis of XXH3's accumulation applies. XXH3's scrambling between
//! blocks is left out, because a segment is too short to need it. `docs/protocol.md` has the exact definition and check values.

use common::splitmix::{STEP as K, mix};

use crate::memory::Region;

/// Bytes in a segment.
pub(crate) const SEGMENT: usize = 4096;
const LANES: usize = 8;
const STRIPE: usize = LANES * 8;
const STRIPES: usize = SEGMENT / STRIPE;

/// One key for each word of a segment: SplitMix64 of the word's place.
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

/// Identifies a page. The seed is mixed into the page's hash, so correct bytes in the wrong place have a wrong hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSeed {
    /// The session's seed, from both sides' nonces: [`Nonces::session_seed`](crate::link::Nonces::session_seed).
    pub session: u64,
    /// Number of the credit (the permission to write one page once) that the page used.
    pub credit: u64,
    /// The receiver's number for the request.
    pub request: u64,
    /// Index in the request's page table.
    pub place: u32,
}

impl PageSeed {
    fn word(self) -> u64 {
        [self.credit, self.request, u64::from(self.place)]
            .into_iter()
            .fold(mix(self.session), |seed, part| mix(seed.wrapping_add(K) ^ part))
    }
}

/// The hash of the `bytes` bytes of `region` at `offset`, with `seed`. `None` if the range leaves the region or if the region is not
/// host memory.
///
/// The hash is meaningful only if nothing writes the range during the call; otherwise the caller must discard it. Hashing 720 KiB from
/// memory takes about 25 µs on one core with AVX-512 (`cargo run --release -p connector --example hash_bench`).
///
/// ```
/// use connector::memory::Region;
/// use connector::page_hash::{PageSeed, page_hash};
///
/// let pool = Region::host(8192);
/// let seed = PageSeed { session: 1, credit: 2, request: 3, place: 4 };
/// let hash = page_hash(&pool, 0, 4096, seed);
/// assert!(hash.is_some());
/// assert_eq!(page_hash(&pool, 4096, 4096, seed), hash, "equal bytes, equal seed");
/// assert_ne!(page_hash(&pool, 0, 4096, PageSeed { place: 5, ..seed }), hash);
/// assert_eq!(page_hash(&pool, 1, 8192, seed), None, "the range leaves the region");
/// ```
pub fn page_hash(region: &Region, offset: u64, bytes: u64, seed: PageSeed) -> Option<u64> {
    Some(finished(content(region, offset, bytes, 0)?, bytes, seed))
}

/// The sum over the segments of a shard of a page: of the `bytes` bytes of `region` at `offset`, which are at `place` in the page. `None` as for
/// [`page_hash`], and if `place` is not the start of a segment.
///
/// Each segment is mixed with its index in the whole page. So [`total`] of all shards' sums is the sum of the page, however the page is divided:
///
/// ```
/// use connector::memory::Region;
/// use connector::page_hash::{PageSeed, content, finished, page_hash, total};
///
/// let page = Region::host(8192);
/// let seed = PageSeed { session: 1, credit: 2, request: 3, place: 4 };
/// let halves = [content(&page, 0, 4096, 0), content(&page, 4096, 4096, 4096)];
/// let sum = total(halves.into_iter().flatten());
/// assert_eq!(Some(finished(sum, 8192, seed)), page_hash(&page, 0, 8192, seed));
/// ```
pub fn content(region: &Region, offset: u64, bytes: u64, place: u64) -> Option<u64> {
    let base = region.at(offset, bytes).filter(|_| place.is_multiple_of(SEGMENT as u64))?;
    // SAFETY: `at` has checked that the range lies in the region and that the region is host memory. `region` keeps the memory mapped
    // for this call.
    Some(unsafe { segments(base.as_ptr(), bytes as usize, place / SEGMENT as u64) })
}

/// The sum over all segments of a page, from the sums of its shards.
pub fn total(contents: impl IntoIterator<Item = u64>) -> u64 {
    contents.into_iter().fold(0, u64::wrapping_add)
}

/// Computes the hash of a page. `content` is the sum over the page's segments, which a GPU kernel can compute. `bytes` is the page's length.
pub fn finished(content: u64, bytes: u64, seed: PageSeed) -> u64 {
    mix(content ^ mix(seed.word() ^ bytes))
}

/// The sum over the segments' hashes. `first` is the index of the first segment in the page.
///
/// # Safety
/// `bytes` bytes at `base` are readable.
unsafe fn segments(base: *const u8, bytes: usize, first: u64) -> u64 {
    let (whole, rest) = (bytes / SEGMENT, bytes % SEGMENT);
    let at_place = |hash: u64, index: usize| {
        let place = first.wrapping_add(index as u64);
        mix(hash.wrapping_add(place.wrapping_mul(K)))
    };
    let mut sum = 0u64;
    for index in 0..whole {
        // SAFETY: segment `index` is whole, so it ends at or before the end of the caller's range, which is readable.
        let hash = unsafe { segment(base.add(index * SEGMENT)) };
        sum = sum.wrapping_add(at_place(hash, index));
    }
    if rest > 0 {
        let mut last = [0u8; SEGMENT];
        // SAFETY: reads the last `rest` bytes of the caller's range; `rest < SEGMENT`, the size of the buffer.
        unsafe { std::ptr::copy_nonoverlapping(base.add(whole * SEGMENT), last.as_mut_ptr(), rest) };
        // SAFETY: `last` has `SEGMENT` bytes.
        let hash = unsafe { segment(last.as_ptr()) };
        sum = sum.wrapping_add(at_place(hash, whole));
    }
    sum
}

/// The hash of one segment, with the widest vector instructions that the processor has.
///
/// # Safety
/// `SEGMENT` bytes at `base` are readable.
unsafe fn segment(base: *const u8) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F; the caller promises the readable range.
            return unsafe { segment_avx512(base) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2; the caller promises the readable range.
            return unsafe { segment_avx2(base) };
        }
    }
    // SAFETY: the caller promises the readable range.
    unsafe { segment_plain(base) }
}

/// # Safety
/// As for [`segment`]; the processor has AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn segment_avx512(base: *const u8) -> u64 {
    use std::arch::x86_64::*;
    let mut lanes = [0u64; LANES];
    // SAFETY: each load reads one stripe, either of `KEYS` or of the segment. The caller keeps the segment readable. The store writes
    // one stripe into `lanes`, which has that size. Loads and stores need no alignment.
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
/// As for [`segment`]; the processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn segment_avx2(base: *const u8) -> u64 {
    use std::arch::x86_64::*;
    let mut lanes = [0u64; LANES];
    // SAFETY: as in `segment_avx512`; each load and store is half a stripe.
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

/// The reference implementation; the others give the same result.
///
/// # Safety
/// As for [`segment`].
unsafe fn segment_plain(base: *const u8) -> u64 {
    let mut lanes = KEYS[0];
    for (stripe, keys) in KEYS.iter().enumerate() {
        // SAFETY: stripe `stripe` lies in the segment, which the caller keeps readable. The read needs no alignment.
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

/// Mixes the lanes independently and sums them. Mixing each lane into the next one would take as long as the accumulation.
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
        // SAFETY: the region was just made with `bytes.len()` bytes and nothing else refers to it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), region.base().as_ptr(), bytes.len()) };
        region
    }

    fn hash(bytes: &[u8], seed: PageSeed) -> u64 {
        page_hash(&region(bytes), 0, bytes.len() as u64, seed).expect("the whole region")
    }

    #[test]
    fn golden() {
        // Both sides of a link must agree, so a change here needs a new protocol version (`Versions::OURS`).
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
        // SAFETY: `bytes` has `SEGMENT` bytes.
        let plain = unsafe { segment_plain(base) };
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: `bytes` has `SEGMENT` bytes, and the processor has AVX-512F.
                assert_eq!(plain, unsafe { segment_avx512(base) });
            }
            if is_x86_feature_detected!("avx2") {
                // SAFETY: `bytes` has `SEGMENT` bytes, and the processor has AVX2.
                assert_eq!(plain, unsafe { segment_avx2(base) });
            }
        }
        // SAFETY: `bytes` has `SEGMENT` bytes.
        assert_eq!(plain, unsafe { segment(base) });
    }

    #[test]
    fn each_part_of_the_seed_changes_the_hash() {
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
        assert_eq!(page_hash(&region(&bytes), 1, 5000, SEED), None, "the range leaves the region");
    }

    /// The hash of a page whose shards lie in regions of their own.
    fn hash_of_shards(shards: &[&[u8]]) -> u64 {
        let mut place = 0;
        let contents = shards.iter().map(|shard| {
            let bytes = shard.len() as u64;
            let content = content(&region(shard), 0, bytes, place).expect("shards are whole segments");
            place += bytes;
            content
        });
        let sum = total(contents.collect::<Vec<_>>());
        finished(sum, place, SEED)
    }

    #[test]
    fn a_shard_begins_at_a_segment_and_lies_in_its_region() {
        let pool = region(&[1; 2 * SEGMENT]);
        assert!(content(&pool, SEGMENT as u64, SEGMENT as u64, 3 * SEGMENT as u64).is_some());
        assert_eq!(content(&pool, 0, SEGMENT as u64, 100), None, "not at a segment");
        assert_eq!(content(&pool, 1, 2 * SEGMENT as u64, 0), None, "leaves the region");
    }

    proptest! {
        /// The sums of any shards give the hash of the page. If a shard is damaged, missing, stale or swapped with another one, the hash differs.
        #[test]
        fn shards_have_the_hash_of_their_page(
            counts in proptest::collection::vec(1..4usize, 1..6),
            rest in 0..SEGMENT,
            seed in any::<u64>(),
            at in any::<prop::sample::Index>(),
            other in any::<prop::sample::Index>(),
            bit in 0..8u8,
        ) {
            let segments: usize = counts.iter().sum();
            let mut random = common::splitmix::SplitMix64::new(seed);
            let page: Vec<u8> = (0..segments * SEGMENT - rest).map(|_| random.draw() as u8).collect();
            let mut shards: Vec<&[u8]> = Vec::new();
            let mut left = page.as_slice();
            for count in &counts {
                let (shard, rest) = left.split_at((count * SEGMENT).min(left.len()));
                shards.push(shard);
                left = rest;
            }
            let whole = hash(&page, SEED);
            prop_assert_eq!(hash_of_shards(&shards), whole);

            let victim = at.index(shards.len());
            let mut damaged = shards[victim].to_vec();
            let place = other.index(damaged.len());
            damaged[place] ^= 1 << bit;
            let stale = vec![0; shards[victim].len()];
            for wrong in [&damaged, &stale] {
                let mut shards = shards.clone();
                shards[victim] = wrong;
                prop_assert_ne!(hash_of_shards(&shards), whole);
            }
            let mut missing = shards.clone();
            missing.remove(victim);
            prop_assert_ne!(hash_of_shards(&missing), whole);
            // The last shard may end with a part of a segment, so it stays in its place.
            let (one, two) = (victim, other.index(shards.len()));
            if one != two && one.max(two) + 1 < shards.len() {
                shards.swap(one, two);
                prop_assert_ne!(hash_of_shards(&shards), whole);
            }
        }

        /// A flipped bit, two swapped bytes and a missing last byte change the hash.
        #[test]
        fn damage_changes_the_hash(
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

//! Inputs of the fuzzer: valid values of each type, damaged values, and random bytes.

use common::splitmix::SplitMix64;
use connector::frame::{
    Answer, Capabilities, Challenge, FirstToken, Frame, GrammarKind, Hello, Incarnation, KvShape, PageOwner,
    PrefillFault, TokenLogprobs, Versions, Welcome,
};
use connector::ring::{CreditNumber, PageIndex};
use connector::transport::{Descriptor, ShardDescriptor};
use connector::wire::{self, FRAME_BYTES_MAX};

/// A random generator; the same seed gives the same inputs.
pub(crate) struct Random(SplitMix64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0.draw()
    }

    /// A number below `end`, or 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() % end as u64) as usize }
    }

    pub(crate) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }

    /// A length: below 20 in most cases, up to `large` in 5 %, and up to `max` in 0.05 %.
    fn length(&mut self, large: usize, max: usize) -> usize {
        match self.below(2000) {
            0 => self.below(max + 1),
            1..100 => self.below(large + 1),
            _ => self.below(20),
        }
    }

    fn list<T>(&mut self, max: usize, item: impl Fn(u64) -> T) -> Vec<T> {
        (0..self.length(2000, max)).map(|_| item(self.next())).collect()
    }

    fn text(&mut self) -> String {
        (0..self.length(300, 10_000)).map(|_| ['a', '\n', 'é', '漢', '\u{202e}'][self.below(5)]).collect()
    }
}

pub(crate) fn shape() -> KvShape {
    KvShape {
        model: "m".into(),
        fingerprint: [7; 32],
        layers: 30,
        kv_heads: 3,
        head_dim: 64,
        page_tokens: 16,
        dtype: "f32".into(),
        scale: "1".into(),
        page_bytes: 737_280,
        page_hash: true,
        shards: 1,
    }
}

fn any_shape(random: &mut Random) -> KvShape {
    if random.one_in(2) {
        return shape();
    }
    KvShape {
        model: random.text(),
        fingerprint: random.array(),
        dtype: random.text(),
        scale: random.text(),
        shards: random.next() as u32,
        ..shape()
    }
}

fn incarnation(random: &mut Random) -> Incarnation {
    Incarnation {
        pid: random.next() as u32,
        start_ticks: random.next(),
        boot: u128::from(random.next()) << 64 | u128::from(random.next()),
        pid_namespace: random.next(),
        random: u128::from(random.next()),
    }
}

/// The versions of a peer: those of this build, or also an older one.
fn versions(random: &mut Random) -> Versions {
    let Versions { lowest, highest, .. } = Versions::OURS;
    Versions::new(if random.one_in(2) { lowest } else { lowest - 1 }, highest)
}

pub(crate) fn challenge(random: &mut Random) -> Challenge {
    Challenge { versions: versions(random), nonce: random.array(), incarnation: incarnation(random) }
}

pub(crate) fn hello(random: &mut Random) -> Hello {
    let versions = versions(random);
    Hello {
        versions,
        version: versions.highest,
        incarnation: incarnation(random),
        capabilities: Capabilities { prefill: random.one_in(2), decode: random.one_in(2) },
        http: random.text(),
        session: random.next(),
        previous: random.next(),
        previous_drained: random.one_in(2),
        shape: any_shape(random),
        nonce: random.array(),
        proof: random.one_in(2).then(|| random.array()),
    }
}

/// A node with regions of one size.
pub(crate) fn descriptor(random: &mut Random, shards: usize) -> Descriptor {
    let bytes = random.next();
    let shard = |random: &mut Random| ShardDescriptor {
        worker_address: random.list(ShardDescriptor::BLOB_BYTES_MAX, |word| word as u8),
        rkey: random.list(ShardDescriptor::BLOB_BYTES_MAX, |word| word as u8),
        base: random.next(),
        bytes,
    };
    Descriptor { transport: random.text(), shards: (0..shards).map(|_| shard(random)).collect() }
}

pub(crate) fn welcome(random: &mut Random) -> Welcome {
    let shards = random.length(4, 16);
    Welcome {
        incarnation: incarnation(random),
        shape: any_shape(random),
        descriptor: descriptor(random, shards),
        ring_pages: random.next() as u32,
        proof: random.one_in(2).then(|| random.array()),
    }
}

pub(crate) fn answer(random: &mut Random) -> Answer {
    match random.below(4) {
        0 => Answer::Refused(random.text()),
        1 => Answer::Busy(random.text()),
        _ => Answer::Welcome(Box::new(welcome(random))),
    }
}

fn logprobs(random: &mut Random) -> Option<TokenLogprobs> {
    random.one_in(2).then(|| TokenLogprobs {
        sampled: random.next() as f32,
        rank: random.next() as u32,
        top: random.list(20, |word| (word as u32, word as f32)),
    })
}

pub(crate) fn frame(random: &mut Random) -> Frame {
    let request = random.next();
    match random.below(15) {
        0 => Frame::Heartbeat,
        1 => Frame::Goodbye,
        2 => Frame::Grant {
            first: CreditNumber(random.next()),
            pages: random.list(65_536, |word| PageIndex(word as u32)),
        },
        12 => Frame::PromptLogprobs {
            request,
            first: random.next() as u32,
            tokens: random.list(1024, |word| TokenLogprobs {
                sampled: word as f32,
                rank: 1,
                top: vec![(word as u32, 0.5)],
            }),
        },
        3 => Frame::Prefill {
            request,
            prompt: random.list(250_000, |word| word as u32),
            resident: random.next() as u32,
            sampling: Box::new(FirstToken {
                temperature: random.next() as f32,
                logit_bias: random.list(1024, |word| (word as u32, word as f32)),
                seed: random.next(),
                top_p: random.next() as f32,
                top_k: random.next() as u32,
                min_p: random.next() as f32,
                repetition_penalty: random.next() as f32,
                logprobs: random.one_in(2).then(|| random.next() as u32),
                prompt_logprobs: random.one_in(2).then(|| random.next() as u32),
            }),
            salt: random.one_in(2).then(|| random.array()),
            grammar: random.one_in(2).then(|| Box::new(random.array())),
            remaining_ms: random.next(),
        },
        4 => Frame::CancelPrefill { request },
        5 => Frame::LinkProbed { lane: random.text(), bytes: random.next(), micros: random.next() },
        6 => Frame::PageFilled {
            first: CreditNumber(random.next()),
            count: random.next() as u32,
            owner: random.one_in(2).then(|| PageOwner { request, first_page: random.next() as u32 }),
            hashes: random.list(65_536, |word| word),
            transfer_micros: random.next(),
        },
        7 => Frame::PrefillFinished {
            request,
            token: random.next() as u32,
            logprobs: logprobs(random),
            cached: random.next() as u32,
            prefill_micros: random.next(),
        },
        8 => {
            let faults = [PrefillFault::Refused, PrefillFault::Failed, PrefillFault::Busy];
            let fault = faults[random.below(3)];
            Frame::PrefillFailed { request, fault, reason: random.text() }
        }
        9 => Frame::RingShare { pages: random.next() as u32 },
        10 => {
            let kinds = [GrammarKind::JsonSchema, GrammarKind::Regex, GrammarKind::Lark];
            let (index, kind) = (random.next() as u32, kinds[random.below(3)]);
            Frame::Grammar { index, kind, text: random.text() }
        }
        11 => Frame::Load {
            waiting_tokens: random.next(),
            begun_tokens: random.next(),
            nanos_per_token: random.one_in(2).then(|| random.next() as u32),
            cache_pages: random.next() as u32,
        },
        13 => Frame::LaneConnected { lane: random.text() },
        _ => Frame::Leaving,
    }
}

/// A valid encoding of one of the four types.
pub(crate) fn valid(random: &mut Random) -> Vec<u8> {
    match random.below(8) {
        0 => encoded(&challenge(random)),
        1 => encoded(&hello(random)),
        2 | 3 => encoded(&answer(random)),
        _ => encoded(&frame(random)),
    }
}

/// The encoding of a value that is short enough.
pub(crate) fn encoded<T: serde::Serialize>(value: &T) -> Vec<u8> {
    wire::encode(value).expect("every length is below the limit of the wire")
}

/// Random bytes. Half of them begin with a plausible variant number.
pub(crate) fn noise(random: &mut Random) -> Vec<u8> {
    let length = random.length(4096, FRAME_BYTES_MAX + 64);
    let mut bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
    if let (Some(head), true) = (bytes.first_chunk_mut::<4>(), random.one_in(2)) {
        *head = (random.below(15) as u32).to_le_bytes();
    }
    bytes
}

/// Damages `bytes` in one to four ways. Parts of `other` are inserted.
pub(crate) fn damage(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => bytes.extend((0..random.length(64, 4096)).map(|_| random.next() as u8)),
            2 => {
                bytes.truncate(at);
                bytes.extend(&other[random.below(other.len())..]);
            }
            3 => {
                let end = at + random.below(bytes.len() - at);
                bytes.drain(at..end);
            }
            4 if at < bytes.len() => bytes[at] = random.next() as u8,
            5 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            _ => corrupt_length(random, bytes),
        }
    }
}

/// Overwrites eight bytes that may be a length with a wrong one. Lengths of nested lists are found too, because any offset may be
/// chosen.
fn corrupt_length(random: &mut Random, bytes: &mut [u8]) {
    let word = |at: usize| bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word));
    let from = random.below(bytes.len());
    // The next eight bytes that could be a length; in a quarter of the cases any eight bytes.
    let likely = (from..bytes.len().min(from + 256))
        .find(|at| word(*at).is_some_and(|length| length != 0 && length <= (bytes.len() - at - 8) as u64));
    let at = if random.one_in(4) { from } else { likely.unwrap_or(from) };
    let Some(length) = word(at) else { return };
    let left = (bytes.len() - at - 8) as u64;
    let limit = FRAME_BYTES_MAX as u64;
    let wrong = [
        0,
        length.wrapping_sub(1),
        length.wrapping_add(1),
        left,
        left + 1,
        left / 4 + 1,
        limit - 8,
        limit / 4,
        limit / 8,
        limit,
        limit + 1,
        1 << 32,
        1 << 61,
        1 << 63,
        u64::MAX,
    ];
    bytes[at..at + 8].copy_from_slice(&wrong[random.below(wrong.len())].to_le_bytes());
}

use proptest::prelude::*;

use super::*;
use crate::counting_allocator::allocated;
use crate::shards::SHARDS_MAX;
use crate::transport::ShardDescriptor;
use crate::wire::FRAME_BYTES_MAX;

fn shape() -> KvShape {
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

#[test]
fn versions_agree_on_the_highest_that_both_support() {
    let check = |ours: (u32, u32), theirs: (u32, u32), expect: Option<u32>| {
        let (ours, theirs) = (Versions::new(ours.0, ours.1), Versions::new(theirs.0, theirs.1));
        assert_eq!(Versions::agree(ours, theirs).ok(), expect);
        assert_eq!(Versions::agree(theirs, ours).ok(), expect, "either side may dial");
    };
    check((7, 7), (7, 7), Some(7));
    check((7, 9), (5, 8), Some(8));
    check((7, 9), (5, 6), None);
    check((7, 9), (10, 12), None);
    let stranger = Versions { magic: *b"HTTP", ..Versions::OURS };
    assert_eq!(Versions::agree(Versions::OURS, stranger), Err(Incompatible::Stranger));
    assert_eq!(Versions::agree(stranger, Versions::OURS), Err(Incompatible::Stranger));
}

/// The first bytes of Challenge and Hello are the same in all versions.
#[test]
fn the_version_prefix_never_changes() {
    let bytes = wire::encode(&Versions::new(7, 0x0102)).expect("the frame is small");
    assert_eq!(bytes, [b'B', b'T', b'O', b'N', 7, 0, 0, 0, 2, 1, 0, 0]);
    assert!(wire::encode(&hello()).expect("the frame is small").starts_with(b"BTON"));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks that a value is encoded as `expect`, and decoded again.
fn check_golden<T>(value: T, expect: &str)
where
    T: Serialize + serde::de::DeserializeOwned + PartialEq + fmt::Debug,
{
    let bytes = wire::encode(&value).expect("the frame is small");
    assert_eq!(hex(&bytes), expect, "{value:?}: the encoding has changed and needs a new protocol version");
    assert_eq!(wire::decode::<T>(&bytes).expect("encoded above"), value);
}

#[test]
fn golden_bytes_of_the_shape_of_pages() {
    check_golden(
        shape(),
        concat!(
            "01000000000000006d",
            "0707070707070707070707070707070707070707070707070707070707070707",
            "1e000000030000004000000010000000",
            "0300000000000000663332",
            "010000000000000031",
            "00400b00000000000101000000",
        ),
    );
}

#[test]
fn golden_bytes() {
    check_golden(
        Incarnation { pid: 1, start_ticks: 2, boot: 3, pid_namespace: 4, random: 5 },
        concat!(
            "01000000",
            "0200000000000000",
            "03000000000000000000000000000000",
            "0400000000000000",
            "05000000000000000000000000000000",
        ),
    );
    check_golden(Frame::Heartbeat, "00000000");
    check_golden(
        Frame::Load { waiting_tokens: 1, begun_tokens: 4, nanos_per_token: Some(2), cache_pages: 3 },
        "0d00000001000000000000000400000000000000010200000003000000",
    );
    check_golden(
        Frame::Grant { first: CreditNumber(2), pages: vec![PageIndex(9)] },
        "020000000200000000000000010000000000000009000000",
    );
    check_golden(
        Frame::PageFilled {
            first: CreditNumber(1),
            count: 3,
            owner: Some(PageOwner { request: 5, first_page: 4 }),
            hashes: vec![7],
            transfer_micros: 6,
        },
        "0600000001000000000000000300000001050000000000000004000000010000000000000007000000000000000600000000000000",
    );
    check_golden(
        Frame::PrefillFinished { request: 1, token: 2, logprobs: None, cached: 4, prefill_micros: 3 },
        "0700000001000000000000000200000000040000000300000000000000",
    );
    check_golden(
        Frame::PrefillFailed { request: 1, fault: PrefillFault::Failed, reason: "no".into() },
        "0800000001000000000000000100000002000000000000006e6f",
    );
    check_golden(
        Frame::PrefillFailed { request: 1, fault: PrefillFault::Busy, reason: "no".into() },
        "0800000001000000000000000200000002000000000000006e6f",
    );
    check_golden(Frame::LaneConnected { lane: "tcp/lo".into() }, "0e00000006000000000000007463702f6c6f");
    let context = ["01".repeat(16), "02".repeat(8), "01".to_owned()].concat();
    check_golden(trace(), &format!("0f0000000100000000000000{context}"));
    check_golden(Frame::RingShare { pages: 5 }, "0900000005000000");
    check_golden(Frame::Leaving, "0a000000");
    check_golden(
        Frame::Grammar { index: 2, kind: GrammarKind::Lark, text: "ab".into() },
        "0b000000020000000200000002000000000000006162",
    );
    let scored = TokenLogprobs { sampled: -0.5, rank: 1, top: vec![] };
    check_golden(
        Frame::PromptLogprobs { request: 2, first: 3, tokens: vec![scored] },
        "0c0000000200000000000000030000000100000000000000000000bf010000000000000000000000",
    );
    check_golden(
        Frame::Prefill {
            request: 1,
            prompt: vec![2],
            resident: 3,
            sampling: greedy().into(),
            salt: None,
            grammar: Some([4; 32].into()),
            remaining_ms: 5,
        },
        concat!(
            "03000000",
            "0100000000000000",
            "010000000000000002000000",
            "03000000",
            "000000000000803f00000000000000000000803f000000000000000007000000000000000000",
            "00",
            "010404040404040404040404040404040404040404040404040404040404040404",
            "0500000000000000",
        ),
    );
}

#[test]
fn the_error_names_the_property_that_differs() {
    let check = |change: fn(&mut KvShape), expect: &str| {
        let mut theirs = shape();
        change(&mut theirs);
        let error = shape().accepts(&theirs).expect_err("the shapes differ").to_string();
        assert!(error.contains(expect), "{error:?} does not contain {expect:?}");
    };
    assert_eq!(shape().accepts(&shape()), Ok(()));
    check(|shape| shape.fingerprint[0] = 8, "same --model");
    check(|shape| shape.page_tokens = 32, "peer's page length in tokens is 32 and ours is 16");
    check(
        |shape| (shape.dtype, shape.page_tokens) = ("bf16".into(), 32),
        "peer's KV element type is bf16 and ours is f32; give both sides the same engine.kv_dtype and the same engine.device",
    );
    check(
        |shape| shape.scale = "0.5".into(),
        "peer's KV scale is 0.5 and ours is 1; give both sides the same build",
    );
    check(|shape| shape.page_bytes = 1, "page size in bytes");
    check(|shape| shape.page_hash = false, "same transport.page_hash");
}

/// A page may be divided differently on the two sides, as long as both divisions are possible and one refines the other.
#[test]
fn shapes_accept_other_numbers_of_shards() {
    let check = |ours, theirs, expect: Result<(), &str>| {
        let of = |shards| KvShape { kv_heads: 6, shards, ..shape() };
        let told = of(ours).accepts(&of(theirs)).map_err(|error| error.to_string());
        match (told, expect) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(expect)) => {
                assert!(error.contains(expect), "{error:?} does not contain {expect:?}")
            }
            (told, _) => panic!("{ours} and {theirs} shards: {told:?}"),
        }
    };
    [(1, 1), (3, 3), (1, 2), (2, 1), (6, 3)].iter().for_each(|(ours, theirs)| check(*ours, *theirs, Ok(())));
    check(2, 3, Err("one side has 2 shards of a page and the other side 3; run one side on"));
    check(1, 4, Err("6 KV heads cannot be divided among 4 shards of a page; run the side with 4 shards on"));
    check(4, 1, Err("6 KV heads cannot be divided among 4 shards"));
    check(1, 0, Err("a page cannot have 0 shards; run each side on 1 to 16 GPUs"));
    let small = KvShape { page_bytes: 8192, kv_heads: 4, shards: 4, ..shape() };
    let error = small.accepts(&small).expect_err("a shard is half a segment").to_string();
    assert!(error.contains("a shard would have 2048 bytes, which is no multiple of 4096; raise"), "{error}");
}

#[test]
fn a_listener_has_one_region_for_each_shard() {
    let [shard] = descriptor().shards.try_into().expect("one region");
    let of = |shards: Vec<ShardDescriptor>| Descriptor { shards, ..descriptor() };
    let two = KvShape { shards: 2, kv_heads: 2, ..shape() };
    assert_eq!(two.has_regions(&of(vec![shard.clone(), shard.clone()])), Ok(()));
    let larger = ShardDescriptor { bytes: 2 * shard.bytes, ..shard.clone() };
    let wrong = [vec![], vec![shard.clone()], vec![shard.clone(), shard.clone(), larger.clone()]];
    for (shards, regions) in wrong.into_iter().zip([0, 1, 3]) {
        assert_eq!(two.has_regions(&of(shards)), Err(Incompatible::Regions { regions, shards: 2 }));
    }
    assert_eq!(two.has_regions(&of(vec![shard, larger])), Err(Incompatible::RegionSizes));
}

/// The bound on shards leaves room for the largest addresses and keys.
#[test]
fn the_largest_welcome_fits_into_a_message() {
    let blob = || vec![1; ShardDescriptor::BLOB_BYTES_MAX];
    let shard = ShardDescriptor { worker_address: blob(), rkey: blob(), base: 0, bytes: 0 };
    let descriptor = Descriptor { transport: "ucx".into(), shards: vec![shard; SHARDS_MAX as usize] };
    let Some(Answer::Welcome(welcome)) = answers().into_iter().next() else {
        panic!("it is the first answer")
    };
    let bytes = wire::encode(&Welcome { descriptor, ..*welcome }).expect("it fits");
    assert!(bytes.len() < FRAME_BYTES_MAX * 6 / 10, "{} bytes", bytes.len());
}

fn greedy() -> FirstToken {
    FirstToken {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        logit_bias: vec![],
        seed: 7,
        logprobs: None,
        prompt_logprobs: None,
    }
}

fn prefill(prompt: Vec<u32>, remaining_ms: u64) -> Frame {
    Frame::Prefill {
        request: 1,
        prompt,
        resident: 0,
        sampling: greedy().into(),
        salt: Some([6; 32]),
        grammar: Some([8; 32].into()),
        remaining_ms,
    }
}

fn trace() -> Frame {
    Frame::Trace { request: 1, context: TraceContext { trace: [1; 16], span: [2; 8], flags: 1 } }
}

/// One frame of each variant, in the order of their numbers on the wire.
fn frames() -> Vec<Frame> {
    let owner = Some(PageOwner { request: 5, first_page: 4 });
    let (first, hashes) = (CreditNumber(1), vec![7, 8, 9]);
    let logprobs = Some(TokenLogprobs { sampled: -0.5, rank: 1, top: vec![(2, -0.5), (7, -2.0)] });
    let frames = vec![
        Frame::Heartbeat,
        Frame::Goodbye,
        Frame::Grant { first, pages: vec![PageIndex(9), PageIndex(10)] },
        prefill(vec![1, 2, 3], 5),
        Frame::CancelPrefill { request: 1 },
        Frame::LinkProbed { lane: "tcp/lo".into(), bytes: 1, micros: 1 },
        Frame::PageFilled { first, count: 3, owner, hashes, transfer_micros: 6 },
        Frame::PrefillFinished {
            request: 1,
            token: 2,
            logprobs: logprobs.clone(),
            cached: 4,
            prefill_micros: 3,
        },
        Frame::PrefillFailed { request: 1, fault: PrefillFault::Refused, reason: "no room".into() },
        Frame::RingShare { pages: 5 },
        Frame::Leaving,
        Frame::Grammar { index: 1, kind: GrammarKind::Regex, text: "[ab]*".into() },
        Frame::PromptLogprobs { request: 1, first: 7, tokens: logprobs.into_iter().collect() },
        Frame::Load { waiting_tokens: 1, begun_tokens: 4, nanos_per_token: Some(2), cache_pages: 3 },
        Frame::LaneConnected { lane: "rc_mlx5/mlx5_0:1".into() },
        trace(),
    ];
    let error =
        wire::decode::<Frame>(&[frames.len() as u8, 0, 0, 0]).expect_err("no variant has this number");
    assert!(error.to_string().contains("variant index"), "this list lacks a variant of Frame: {error}");
    frames
}

fn descriptor() -> Descriptor {
    let shard = ShardDescriptor { worker_address: vec![1; 60], rkey: vec![2; 30], base: 4096, bytes: 8192 };
    Descriptor { transport: "ucx".into(), shards: vec![shard] }
}

fn answers() -> Vec<Answer> {
    let welcome = Welcome {
        incarnation: Incarnation { pid: 1, start_ticks: 2, boot: 3, pid_namespace: 4, random: 5 },
        shape: shape(),
        descriptor: descriptor(),
        ring_pages: 2,
        proof: Some([1; 32]),
    };
    vec![
        Answer::Welcome(Box::new(welcome)),
        Answer::Refused("another model".into()),
        Answer::Busy("later".into()),
    ]
}

fn hello() -> Hello {
    Hello {
        versions: Versions::OURS,
        version: Versions::OURS.highest,
        incarnation: Incarnation { pid: 1, start_ticks: 2, boot: 3, pid_namespace: 4, random: 5 },
        capabilities: Capabilities { prefill: true, decode: false },
        http: "127.0.0.1:8100".into(),
        session: 1,
        previous: 0,
        previous_drained: true,
        shape: shape(),
        nonce: [3; 32],
        proof: None,
    }
}

/// Decodes arbitrary bytes. The result must be an error, or a value that encodes to the same bytes. The memory must be in proportion.
fn check_decode<T: Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) {
    let (result, cost) = allocated(|| wire::decode::<T>(bytes));
    let fits = cost.largest <= 2 * bytes.len() + 1024 && cost.total <= 4 * bytes.len() + 1024;
    assert!(fits, "{cost:?} for {} bytes: {bytes:02x?}", bytes.len());
    if let Ok(value) = result {
        assert_eq!(wire::encode(&value).expect("as long as before"), bytes);
    }
}

/// Such a token takes twice as many bytes in memory as on the wire.
#[test]
fn long_lists_allocate_in_proportion_to_their_bytes() {
    for (tokens, alternatives) in [(129, 0), (129, 1), (1025, 0), (1025, 1), (1606, 20)] {
        let token = TokenLogprobs { sampled: -0.5, rank: 1, top: vec![(2, -0.5); alternatives] };
        let frame = Frame::PromptLogprobs { request: 1, first: 0, tokens: vec![token; tokens] };
        check_decode::<Frame>(&wire::encode(&frame).expect("the frame is short enough"));
    }
}

#[test]
fn a_wrong_length_allocates_no_more_than_the_bytes() {
    /// Overwrites each run of eight bytes with wrong lengths.
    fn corrupt<T: Serialize + serde::de::DeserializeOwned>(value: &T) {
        let valid = wire::encode(value).expect("the frame is small");
        check_decode::<T>(&valid);
        for at in 0..valid.len().saturating_sub(7) {
            for length in
                [1 << 10, (FRAME_BYTES_MAX / 8) as u64, (FRAME_BYTES_MAX - 400) as u64, 1 << 32, u64::MAX]
            {
                let mut bytes = valid.clone();
                bytes[at..at + 8].copy_from_slice(&length.to_le_bytes());
                check_decode::<T>(&bytes);
            }
        }
    }
    frames().iter().for_each(corrupt);
    answers().iter().for_each(corrupt);
    corrupt(&hello());
    corrupt(&Challenge { versions: Versions::OURS, nonce: [1; 32], incarnation: hello().incarnation });
}

proptest! {
    /// Random bytes decode to an error or a value, without a panic or a large allocation.
    #[test]
    fn random_bytes_cause_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512), kind in 0..15u8) {
        let mut bytes = bytes;
        if bytes.len() >= 4 {
            bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        }
        check_decode::<Frame>(&bytes);
        check_decode::<Hello>(&bytes);
        check_decode::<Answer>(&bytes);
    }

    #[test]
    fn prompts_survive_encoding(prompt in proptest::collection::vec(any::<u32>(), 0..2000), remaining_ms: u64) {
        let frame = prefill(prompt, remaining_ms);
        let bytes = wire::encode(&frame).expect("within the bound");
        prop_assert_eq!(wire::decode::<Frame>(&bytes).expect("encoded above"), frame);
    }
}

#[test]
fn a_frame_above_the_limit_is_neither_encoded_nor_decoded() {
    let prompt = vec![0u32; PROMPT_TOKENS_MAX];
    let mut longest = prefill(prompt, 0);
    if let Frame::Prefill { sampling, .. } = &mut longest {
        sampling.logit_bias = vec![(0, 0.0); LOGIT_BIAS_MAX];
    }
    wire::encode(&longest).expect("the longest prompt fits");
    let text = "a".repeat(GRAMMAR_BYTES_MAX);
    wire::encode(&Frame::Grammar { index: 0, kind: GrammarKind::Lark, text })
        .expect("the longest grammar fits");
    let pages = vec![PageIndex(0); GRANT_PAGES_MAX];
    wire::encode(&Frame::Grant { first: CreditNumber(0), pages }).expect("the longest grant fits");
    let prompt = vec![0u32; FRAME_BYTES_MAX / 4];
    let error = wire::encode(&prefill(prompt, 0)).expect_err("too long");
    assert_eq!(error.kind(), "encode");
    // A prompt with a length that is far larger than the number of bytes after it.
    let mut bytes = vec![3, 0, 0, 0];
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(u64::MAX.to_le_bytes());
    assert_eq!(wire::decode::<Frame>(&bytes).expect_err("wrong length").kind(), "decode");
    // A grammar that is not UTF-8.
    let grammar = Frame::Grammar { index: 0, kind: GrammarKind::Lark, text: "a".into() };
    let mut bytes = wire::encode(&grammar).expect("it is short");
    *bytes.last_mut().expect("it has a text") = 0xff;
    assert_eq!(wire::decode::<Frame>(&bytes).expect_err("not UTF-8").kind(), "decode");
}

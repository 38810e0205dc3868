//! Tests of the GGUF reader: round trips, truncated files and random bytes.

use std::io::Cursor;

use proptest::prelude::*;

use super::*;
use crate::testing::GgufWriter;

fn parse(bytes: &[u8]) -> Result<Header, GgufError> {
    Header::parse(&mut Cursor::new(bytes), bytes.len() as u64)
}

fn sample() -> Vec<u8> {
    let mut writer = GgufWriter::default();
    writer.text("general.architecture", "llama").u32("a.u32", 7).f32("a.f32", 0.5).flag("a.bool", true);
    writer.texts("a.texts", &["x", "", "déjà"]).i32s("a.i32s", &[3, -1]);
    writer.tensor("one", &[64, 2], 3, vec![1; 80]).tensor("two", &[3], 0, vec![2; 12]);
    writer.finish()
}

#[test]
fn round_trip() {
    let file = crate::testing::TempFile::new("round-trip.gguf", &sample());
    let gguf = Gguf::open(file.path()).unwrap();
    assert_eq!(gguf.str("general.architecture"), Some("llama"));
    assert_eq!(gguf.u64("a.u32"), Some(7));
    assert_eq!(gguf.f32("a.f32"), Some(0.5));
    assert_eq!(gguf.bool("a.bool"), Some(true));
    assert_eq!(gguf.strings("a.texts"), Some(vec!["x", "", "déjà"]));
    assert_eq!(gguf.i32s("a.i32s"), Some(vec![3, -1]));
    assert_eq!((gguf.u64("a.f32"), gguf.str("none"), gguf.f32s("a.i32s")), (None, None, None));
    assert_eq!(gguf.tensors()["one"].elements(), 128);
    assert_eq!(gguf.tensors()["one"].kind, TensorType::Q4_1);
    assert_eq!(gguf.read("one").unwrap(), vec![1; 80]);
    assert_eq!(gguf.read("two").unwrap(), vec![2; 12]);
    assert_eq!(gguf.read("three").unwrap_err().kind(), "no_tensor");
}

#[test]
fn errors_have_the_expected_kind() {
    let check = |bytes: &[u8], expect: &str| {
        assert_eq!(parse(bytes).unwrap_err().kind(), expect);
    };
    let good = sample();
    check(b"", "not_gguf");
    check(b"GG", "not_gguf");
    check(b"GGML and more", "not_gguf");
    check(b"GGUF\x09\0\0\0", "gguf_version");
    check(&good[..40], "model_truncated");
    check(&good[..good.len() - 21], "model_truncated");
    let missing = Gguf::open(Path::new("/nonexistent/model.gguf")).unwrap_err();
    assert_eq!(missing.kind(), "model_unreadable");
}

#[test]
fn truncation_names_the_tensor_and_both_sizes() {
    let good = sample();
    let short = &good[..good.len() - 1];
    let text = parse(&short[..short.len() - 30]).unwrap_err().to_string();
    assert!(text.contains("tensor two") && text.contains(&(short.len() - 30).to_string()), "{text}");
}

#[test]
fn every_truncation_is_refused() {
    let good = sample();
    // The padding after the last tensor may be missing.
    let end = good.len() - 20;
    for bytes in 0..end {
        assert!(parse(&good[..bytes]).is_err(), "{bytes} of {end}");
    }
    assert!(parse(&good).is_ok());
}

#[test]
fn a_huge_count_allocates_nothing() {
    for (kind, array) in [(8u32, None), (9, Some(8u32)), (9, Some(4)), (9, Some(12))] {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.push(b'k');
        bytes.extend(kind.to_le_bytes());
        bytes.extend(array.into_iter().flat_map(u32::to_le_bytes));
        bytes.extend(u64::MAX.to_le_bytes());
        assert_eq!(parse(&bytes).unwrap_err().kind(), "model_truncated");
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), magic: bool) {
        if magic && bytes.len() >= 24 {
            bytes[..8].copy_from_slice(b"GGUF\x03\0\0\0");
            bytes[8..24].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        }
        let _ = parse(&bytes);
    }

    #[test]
    fn flipped_bytes_never_panic(flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = sample();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(header) = parse(&bytes) {
            for tensor in header.tensors.values() {
                prop_assert!(header.data_offset + tensor.offset + tensor.bytes <= bytes.len() as u64);
            }
            for value in header.metadata.values() {
                let _ = (value.as_u64(), value.as_f32(), value.as_bool(), value.as_strings(), value.as_i32s());
            }
        }
    }
}

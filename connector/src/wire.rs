//! The one file that knows how values become bytes: bincode 2, little-endian, fixed-width integers, bounded.
//!
//! Memory is taken for what has come, never for what a length claims: fields of variable length are read by `list`,
//! `blob` and `text`.

use std::fmt;
use std::marker::PhantomData;

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Longest encoded value in bytes. A prompt of 250,000 tokens fits; a length that a hostile peer invents does not.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<FRAME_BYTES_MAX>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<FRAME_BYTES_MAX>();

/// A value could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The value does not fit [`FRAME_BYTES_MAX`].
    #[error("frame cannot be encoded in {FRAME_BYTES_MAX} bytes: {0}")]
    Encode(String),
    /// The bytes are no such value.
    #[error("frame of {bytes} bytes cannot be decoded: {reason}")]
    Decode {
        /// How many bytes came.
        bytes: usize,
        /// What is wrong with them.
        reason: String,
    },
}

impl WireError {
    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Encode(_) => "encode",
            Self::Decode { .. } => "decode",
        }
    }
}

/// Encodes a value.
///
/// # Errors
/// [`WireError::Encode`] if it is longer than [`FRAME_BYTES_MAX`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, WireError> {
    let bytes =
        bincode::serde::encode_to_vec(value, CONFIG).map_err(|error| WireError::Encode(error.to_string()))?;
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(WireError::Encode(format!("it has {} bytes", bytes.len())));
    }
    Ok(bytes)
}

/// Decodes a value that fills `bytes` to the last one. No allocation is longer than twice `bytes`, and all together are
/// at most four times as long, a constant aside.
///
/// # Errors
/// [`WireError::Decode`] on anything else, random bytes included.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let fail = |reason: String| WireError::Decode { bytes: bytes.len(), reason };
    let (value, read) =
        bincode::serde::decode_from_slice(bytes, CONFIG).map_err(|error| fail(error.to_string()))?;
    if read != bytes.len() {
        return Err(fail(format!("{} bytes are left over", bytes.len() - read)));
    }
    Ok(value)
}

/// Decodes a value from the front of `bytes`; what follows it may be of a later version. Allocations are bounded as in [`decode`].
///
/// # Errors
/// [`WireError::Decode`].
pub fn decode_front<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let decoded = bincode::serde::decode_from_slice(bytes, CONFIG);
    let fail = |reason: String| WireError::Decode { bytes: bytes.len(), reason };
    decoded.map(|(value, _)| value).map_err(|error| fail(error.to_string()))
}

/// Reads a list that grows with its items. Serde's own reservation is for as many as the length claims, up to 1 MiB.
pub(crate) fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    struct Items<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                list.push(item);
            }
            Ok(list)
        }
    }

    from.deserialize_seq(Items(PhantomData))
}

/// Reads bytes, and copies them when all are there.
pub(crate) fn blob<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    <&[u8]>::deserialize(from).map(<[u8]>::to_vec)
}

/// Reads text, and copies it when all is there.
pub(crate) fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    <&str>::deserialize(from).map(str::to_owned)
}

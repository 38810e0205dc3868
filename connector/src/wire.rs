//! The one file that knows how values become bytes: bincode 2, little-endian, fixed-width integers, bounded.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

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

/// Decodes a value that fills `bytes` to the last one. Allocates no more than [`FRAME_BYTES_MAX`].
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

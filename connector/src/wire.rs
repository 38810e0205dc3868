//! The encoding of messages: bincode 2, little-endian, fixed-width integers, at most [`FRAME_BYTES_MAX`] bytes.
//!
//! No other file uses bincode. A decoder allocates for the bytes that have arrived, not for the length that a peer claims. Fields of
//! variable length therefore use the functions `list`, `blob` and `text`. An item of a list may take at most twice as many bytes in memory as
//! on the wire, so all lists of a message together take at most twice its bytes.
//!
//! # Example
//!
//! ```
//! use connector::frame::Frame;
//! use connector::ring::{CreditNumber, PageIndex};
//! use connector::wire;
//!
//! # fn main() -> Result<(), wire::WireError> {
//! let grant = Frame::Grant { first: CreditNumber(2), pages: vec![PageIndex(9)] };
//! let bytes = wire::encode(&grant)?;
//! assert_eq!(bytes.len(), 24);
//! assert_eq!(bytes[..4], [2, 0, 0, 0], "Grant is variant 2");
//! assert_eq!(wire::decode::<Frame>(&bytes)?, grant);
//!
//! // A frame that is cut short is an error. So is a frame with bytes behind it.
//! let error = wire::decode::<Frame>(&bytes[..20]).expect_err("4 bytes are missing");
//! assert_eq!(error.kind(), "decode");
//! let longer = [bytes.as_slice(), &[0]].concat();
//! assert!(wire::decode::<Frame>(&longer).is_err());
//! # Ok(())
//! # }
//! ```

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Maximum number of bytes of one encoded value: 1 MiB. A prompt of 250,000 tokens fits.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<FRAME_BYTES_MAX>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<FRAME_BYTES_MAX>();

/// A value could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The encoded value is longer than [`FRAME_BYTES_MAX`].
    #[error("frame cannot be encoded in {FRAME_BYTES_MAX} bytes: {0}")]
    Encode(String),
    /// The bytes do not encode a value of the expected type.
    #[error("frame of {bytes} bytes cannot be decoded: {reason}")]
    Decode {
        /// Number of bytes.
        bytes: usize,
        /// The decoder's reason.
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
        return Err(WireError::Encode(format!("its encoding has {} bytes", bytes.len())));
    }
    Ok(bytes)
}

thread_local! {
    /// Bytes that the lists of the value that this thread decodes may still take in memory.
    static LIST_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Decodes a value from the front of `bytes`. Also returns its length.
fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), WireError> {
    LIST_BYTES.set(2 * bytes.len());
    let fail = |reason: String| WireError::Decode { bytes: bytes.len(), reason };
    bincode::serde::decode_from_slice(bytes, CONFIG).map_err(|error| fail(error.to_string()))
}

/// Decodes a value that takes all of `bytes`.
///
/// No allocation is longer than twice `bytes`, and all allocations together are at most four times as long, plus a constant.
///
/// # Errors
/// [`WireError::Decode`] if the bytes do not encode a `T`, or if there are more bytes after it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let (value, read) = decode_prefix(bytes)?;
    if read != bytes.len() {
        let reason = format!("{} bytes are left over", bytes.len() - read);
        return Err(WireError::Decode { bytes: bytes.len(), reason });
    }
    Ok(value)
}

/// Decodes a value from the front of `bytes` and ignores the rest, which a later version may have appended.
///
/// Allocations are bounded as in [`decode`].
///
/// # Errors
/// [`WireError::Decode`] if the bytes do not begin with a `T`.
pub fn decode_front<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    decode_prefix(bytes).map(|(value, _)| value)
}

/// Reads a list. A list that claims more items than the bytes of the message can hold is refused before memory is allocated for it. Serde's own
/// `Vec` would reserve memory for the claimed length, up to 1 MiB.
pub(crate) fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    struct Items<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let claimed = items.size_hint().unwrap_or_default();
            let left = claimed.checked_mul(size_of::<T>()).and_then(|all| LIST_BYTES.get().checked_sub(all));
            let Some(left) = left else {
                return Err(A::Error::custom(format!("a list claims {claimed} items, more than its bytes")));
            };
            LIST_BYTES.set(left);
            let mut list = Vec::with_capacity(claimed);
            while let Some(item) = items.next_element()? {
                list.push(item);
            }
            Ok(list)
        }
    }

    from.deserialize_seq(Items(PhantomData))
}

/// Reads a byte string. The bytes are copied only if all of them have arrived.
pub(crate) fn blob<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    <&[u8]>::deserialize(from).map(<[u8]>::to_vec)
}

/// Reads a text. It is copied only if all of its bytes have arrived.
pub(crate) fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    <&str>::deserialize(from).map(str::to_owned)
}

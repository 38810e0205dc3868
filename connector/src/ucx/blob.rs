//! The envelope around what UCX packs: UCX reads an address or key without knowing its length and asserts on some
//! garbage, so nothing reaches it that does not carry the right magic, length and checksum.
//!
//! This guards against corruption, truncation and mixed-up fields, not against a peer that means harm: such a peer
//! is kept out by the link's challenge.

use crate::transport::Descriptor;
use sha2::{Digest, Sha256};

const MAGIC: [u8; 4] = *b"BTNx";
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 4 + 1 + 1 + 2;
const SUM_BYTES: usize = 8;

/// Which field of a descriptor a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Address = 1,
    Key = 2,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Address => "worker address",
            Self::Key => "remote key",
        }
    }
}

/// The span of the region is part of the checksum, so a descriptor whose base was damaged is refused too.
fn sum(kind: Kind, base: u64, bytes: u64, body: &[u8]) -> [u8; SUM_BYTES] {
    let mut hash = Sha256::new();
    hash.update([VERSION, kind as u8]);
    hash.update(base.to_le_bytes());
    hash.update(bytes.to_le_bytes());
    hash.update(body);
    let mut short = [0; SUM_BYTES];
    short.copy_from_slice(&hash.finalize()[..SUM_BYTES]);
    short
}

/// Wraps `body`; nothing comes back if it is too long for a descriptor.
pub(super) fn seal(kind: Kind, base: u64, bytes: u64, body: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(body.len()).ok()?;
    let mut blob = Vec::with_capacity(HEAD_BYTES + SUM_BYTES + body.len());
    blob.extend(MAGIC);
    blob.extend([VERSION, kind as u8]);
    blob.extend(length.to_le_bytes());
    blob.extend(sum(kind, base, bytes, body));
    blob.extend(body);
    (blob.len() <= Descriptor::BLOB_BYTES_MAX).then_some(blob)
}

/// Unwraps what a peer sent, or says what is wrong with it.
pub(super) fn open(kind: Kind, base: u64, bytes: u64, blob: &[u8]) -> Result<&[u8], String> {
    let name = kind.name();
    if blob.len() > Descriptor::BLOB_BYTES_MAX {
        return Err(format!("{name} of {} bytes is longer than {}", blob.len(), Descriptor::BLOB_BYTES_MAX));
    }
    let Some((head, rest)) = blob.split_at_checked(HEAD_BYTES) else {
        return Err(format!("{name} of {} bytes is too short", blob.len()));
    };
    if head[..4] != MAGIC || head[4] != VERSION || head[5] != kind as u8 {
        return Err(format!("{name} does not begin as one of version {VERSION} does"));
    }
    let length = usize::from(u16::from_le_bytes([head[6], head[7]]));
    match rest.split_at_checked(SUM_BYTES) {
        Some((given, body)) if body.len() == length => {
            if given == sum(kind, base, bytes, body) {
                Ok(body)
            } else {
                Err(format!("{name} does not match its checksum"))
            }
        }
        _ => Err(format!("{name} is not as long as it says")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_sealed_opens_and_a_changed_span_or_kind_does_not() {
        let blob = seal(Kind::Key, 4096, 1 << 20, b"key").expect("short");
        assert_eq!(open(Kind::Key, 4096, 1 << 20, &blob), Ok(b"key".as_slice()));
        assert!(open(Kind::Key, 4097, 1 << 20, &blob).is_err());
        assert!(open(Kind::Key, 4096, 1 << 21, &blob).is_err());
        assert!(open(Kind::Address, 4096, 1 << 20, &blob).is_err());
        assert_eq!(seal(Kind::Key, 0, 0, &vec![0; Descriptor::BLOB_BYTES_MAX]), None);
    }

    proptest! {
        #[test]
        fn any_change_is_refused(body in prop::collection::vec(any::<u8>(), 0..300), at in any::<usize>(), flip in 1u8..) {
            let mut blob = seal(Kind::Address, 1, 2, &body).expect("short");
            let at = at % blob.len();
            blob[at] ^= flip;
            prop_assert!(open(Kind::Address, 1, 2, &blob).is_err());
            blob[at] ^= flip;
            prop_assert!(open(Kind::Address, 1, 2, &blob[..at]).is_err());
            prop_assert_eq!(open(Kind::Address, 1, 2, &blob), Ok(body.as_slice()));
        }

        #[test]
        fn garbage_is_refused(blob in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(open(Kind::Key, 1, 2, &blob).is_err());
        }
    }
}

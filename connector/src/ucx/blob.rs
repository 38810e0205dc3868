//! The envelope around UCX's packed addresses and keys.
//!
//! UCX parses an address or key without knowing its length, and fails assertions on some invalid ones. So a blob from a peer must
//! have the right magic bytes, length and checksum before UCX sees it. This detects corrupt, truncated and exchanged fields. It does
//! not stop a malicious peer; the link's secret does.

use crate::transport::ShardDescriptor;
use sha2::{Digest, Sha256};

const MAGIC: [u8; 4] = *b"BTNx";
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 4 + 1 + 1 + 2;
const SUM_BYTES: usize = 8;

/// The field of a descriptor that a blob belongs to.
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

/// The checksum. It covers the region's base and length, so a descriptor with a corrupt base is rejected too.
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

/// Wraps `body`. `None` if the result is too long for a descriptor.
pub(super) fn seal(kind: Kind, base: u64, bytes: u64, body: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(body.len()).ok()?;
    let mut blob = Vec::with_capacity(HEAD_BYTES + SUM_BYTES + body.len());
    blob.extend(MAGIC);
    blob.extend([VERSION, kind as u8]);
    blob.extend(length.to_le_bytes());
    blob.extend(sum(kind, base, bytes, body));
    blob.extend(body);
    (blob.len() <= ShardDescriptor::BLOB_BYTES_MAX).then_some(blob)
}

/// Unwraps a peer's blob. The error says what is wrong with it.
pub(super) fn open(kind: Kind, base: u64, bytes: u64, blob: &[u8]) -> Result<&[u8], String> {
    let name = kind.name();
    if blob.len() > ShardDescriptor::BLOB_BYTES_MAX {
        return Err(format!(
            "{name} of {} bytes exceeds {} bytes",
            blob.len(),
            ShardDescriptor::BLOB_BYTES_MAX
        ));
    }
    let Some((head, rest)) = blob.split_at_checked(HEAD_BYTES) else {
        return Err(format!("{name} of {} bytes is too short", blob.len()));
    };
    if head[..4] != MAGIC || head[4] != VERSION || head[5] != kind as u8 {
        return Err(format!("{name} does not have the header of version {VERSION}"));
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
        _ => Err(format!("{name} is not as long as its header says")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_sealed_blob_opens_only_for_its_region_and_kind() {
        let blob = seal(Kind::Key, 4096, 1 << 20, b"key").expect("the body is short");
        assert_eq!(open(Kind::Key, 4096, 1 << 20, &blob), Ok(b"key".as_slice()));
        assert!(open(Kind::Key, 4097, 1 << 20, &blob).is_err());
        assert!(open(Kind::Key, 4096, 1 << 21, &blob).is_err());
        assert!(open(Kind::Address, 4096, 1 << 20, &blob).is_err());
        assert_eq!(seal(Kind::Key, 0, 0, &vec![0; ShardDescriptor::BLOB_BYTES_MAX]), None);
    }

    proptest! {
        #[test]
        fn any_change_is_refused(body in prop::collection::vec(any::<u8>(), 0..300), at in any::<usize>(), flip in 1u8..) {
            let mut blob = seal(Kind::Address, 1, 2, &body).expect("the body is short");
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

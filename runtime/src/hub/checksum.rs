//! The checksums by which the hub and the cache name files.

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The checksum in the name of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChecksumKind {
    /// SHA-256 of the bytes, of large files.
    Sha256,
    /// git's SHA-1, of small files: of `blob <length>`, a zero byte and the bytes.
    Git,
}

impl ChecksumKind {
    /// The kind of a checksum in hexadecimal digits; `None` if the text is no checksum.
    pub(super) fn of(etag: &str) -> Option<Self> {
        let is_hex = etag.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        match etag.len() {
            64 if is_hex => Some(Self::Sha256),
            40 if is_hex => Some(Self::Git),
            _ => None,
        }
    }
}

/// Computes a checksum while bytes arrive.
#[derive(Clone)]
pub(super) enum Checksum {
    /// A large file.
    Sha256(Sha256),
    /// A small file. git hashes the length first.
    Git(Sha1),
}

impl Checksum {
    /// The checksum of no bytes of a file that has `length` in the end.
    pub(super) fn new(kind: ChecksumKind, length: u64) -> Self {
        match kind {
            ChecksumKind::Sha256 => Self::Sha256(Sha256::new()),
            ChecksumKind::Git => Self::Git(Sha1::new_with_prefix(format!("blob {length}\0"))),
        }
    }

    /// Adds bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
        }
    }

    /// The checksum in hexadecimal digits.
    pub(super) fn finish(self) -> String {
        match self {
            Self::Sha256(hasher) => hex(&hasher.finalize()),
            Self::Git(hasher) => hex(&hasher.finalize()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are those of `sha256sum` and `git hash-object`.
    #[test]
    fn checksums_are_those_of_git() {
        fn check(kind: ChecksumKind, expect: &str) {
            let mut checksum = Checksum::new(kind, 12);
            checksum.update(b"hello ");
            checksum.update(b"world\n");
            assert_eq!(checksum.finish(), expect);
            assert_eq!(ChecksumKind::of(expect), Some(kind));
        }
        check(ChecksumKind::Git, "3b18e512dba79e4c8300dd08aeb37f8e728b8dad");
        check(ChecksumKind::Sha256, "a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447");
    }

    #[test]
    fn other_tags_are_no_checksums() {
        for tag in ["", "abc", "../../etc/passwd", &"g".repeat(40), &"A".repeat(64)] {
            assert_eq!(ChecksumKind::of(tag), None, "{tag}");
        }
    }
}

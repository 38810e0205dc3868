//! The versions of the protocol that this build supports.
//!
//! - **14**: a Welcome has one address of memory for each shard of a page, and a shape has the number of shards. A Welcome of version 13 has another
//!   form, so this build does not support version 13.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Incompatible;

/// The range of protocol versions that a process supports: the first 12 bytes of a [`Challenge`](super::Challenge) and of a
/// [`Hello`](super::Hello).
///
/// The encoding is the same in every version: the bytes `BTON`, then the lowest and the highest version as little-endian `u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    pub(super) magic: [u8; 4],
    /// The oldest supported version.
    pub lowest: u32,
    /// The newest supported version.
    pub highest: u32,
}

impl Versions {
    /// The versions that this build supports.
    pub const OURS: Self = Self::new(14, 14);

    /// The versions from `lowest` to `highest`, both included.
    pub const fn new(lowest: u32, highest: u32) -> Self {
        Self { magic: *b"BTON", lowest, highest }
    }

    /// The highest version that a sender, which dials, and a receiver, which listens, both support.
    ///
    /// ```
    /// use connector::frame::Versions;
    ///
    /// assert_eq!(Versions::agree(Versions::new(7, 9), Versions::new(5, 8)), Ok(8));
    /// let error = Versions::agree(Versions::new(7, 9), Versions::new(5, 6)).unwrap_err();
    /// assert!(error.to_string().ends_with("upgrade the receiver"));
    /// ```
    ///
    /// # Errors
    /// [`Incompatible::Stranger`] if the bytes of a side do not begin with `BTON`; [`Incompatible::Protocol`] if the ranges do not overlap.
    pub fn agree(sender: Self, receiver: Self) -> Result<u32, Incompatible> {
        if [sender, receiver].iter().any(|side| side.magic != Self::OURS.magic) {
            return Err(Incompatible::Stranger);
        }
        let version = sender.highest.min(receiver.highest);
        if version < sender.lowest.max(receiver.lowest) {
            return Err(Incompatible::Protocol { sender, receiver });
        }
        Ok(version)
    }

    /// The name of the older one of a sender with these versions and a receiver with those.
    pub(super) fn older_than(&self, receiver: &Self) -> &'static str {
        if self.highest < receiver.highest { "sender" } else { "receiver" }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { lowest, highest, .. } if lowest == highest => write!(f, "version {lowest}"),
            Self { lowest, highest, .. } => write!(f, "versions {lowest} to {highest}"),
        }
    }
}

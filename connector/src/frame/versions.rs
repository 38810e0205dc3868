//! The versions of the protocol that this build supports, and the differences between them.
//!
//! [`Frame`] is the newest version. A session of an older version gets frames in the older form: [`Frame::encode`] replaces what the older
//! version does not have, and [`Frame::decode`] refuses it.
//!
//! - **12**:
//!   - A sender says [`PrefillFault::Busy`] if it has no room for a prefill now. In version 11 it says [`PrefillFault::Refused`].
//!   - A sender names its transports in [`Frame::LaneConnected`]. In version 11 it sends [`Frame::Heartbeat`] instead.
//!     A receiver grants credits only after this frame.
//!   - A receiver names the trace of a request in [`Frame::Trace`]. In version 11 it sends [`Frame::Heartbeat`] instead, so the prefill is not recorded.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Frame, Incompatible, PrefillFault};
use crate::wire::{self, WireError};

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
    pub const OURS: Self = Self::new(11, 12);

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

/// The first version with [`PrefillFault::Busy`].
const BUSY: u32 = 12;
/// The first version with [`Frame::Trace`].
const TRACE: u32 = 12;
/// The first version with [`Frame::LaneConnected`]. Since this version, a receiver grants no credits before this frame.
pub const LANE_CONNECTED: u32 = 12;

impl Frame {
    /// Encodes the frame for a session of this version.
    ///
    /// # Errors
    /// [`WireError::Encode`] if it is too long.
    pub fn encode(&self, version: u32) -> Result<Vec<u8>, WireError> {
        wire::encode(&*self.in_version(version))
    }

    /// Decodes a frame of a session of this version.
    ///
    /// # Errors
    /// [`WireError::Decode`] if the bytes do not encode a frame that this version has.
    pub fn decode(bytes: &[u8], version: u32) -> Result<Self, WireError> {
        let frame: Self = wire::decode(bytes)?;
        if let Cow::Owned(_) = frame.in_version(version) {
            let reason = format!("a {} frame has a value that version {version} does not have", frame.name());
            return Err(WireError::Decode { bytes: bytes.len(), reason });
        }
        Ok(frame)
    }

    /// The frame as this version has it: itself, or an older frame that says less.
    fn in_version(&self, version: u32) -> Cow<'_, Self> {
        match self {
            Self::PrefillFailed { request, fault: PrefillFault::Busy, reason } if version < BUSY => {
                let (fault, reason) = (PrefillFault::Refused, reason.clone());
                Cow::Owned(Self::PrefillFailed { request: *request, fault, reason })
            }
            Self::LaneConnected { .. } if version < LANE_CONNECTED => Cow::Owned(Self::Heartbeat),
            Self::Trace { .. } if version < TRACE => Cow::Owned(Self::Heartbeat),
            same => Cow::Borrowed(same),
        }
    }
}

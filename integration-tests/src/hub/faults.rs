//! The ways in which a hub fails.

use super::HubRequest;

/// A way in which requests fail.
#[derive(Clone, Debug)]
pub enum Fault {
    /// GET: the connection closes after `after` bytes. It happens `times` times.
    Cut {
        /// Bytes of a file that are sent before.
        after: usize,
        /// Number of requests that fail.
        times: usize,
    },
    /// An answer with this status, headers and no body. It happens `times` times.
    Status {
        /// The status.
        status: u16,
        /// Further headers, such as `Retry-After: 1`.
        headers: &'static str,
        /// Number of requests that fail.
        times: usize,
    },
    /// GET with a range: status 416. It happens `times` times.
    RangeRefused {
        /// Number of requests that fail.
        times: usize,
    },
    /// GET with a range: the whole file comes.
    RangeIgnored,
    /// GET: other bytes of the same number come. It happens `times` times.
    OtherBytes {
        /// Number of requests that fail.
        times: usize,
    },
    /// GET: bytes follow the file.
    TooLong,
    /// GET: the answer ends before the file does, and says that this is all.
    TooShort,
    /// GET: nothing comes after `after` bytes, and the connection stays. It happens `times` times.
    Stall {
        /// Bytes of a file that are sent before.
        after: usize,
        /// Number of requests that fail.
        times: usize,
    },
    /// HEAD: the file is said to have this size.
    SaidSize(u64),
    /// HEAD: the file is said to have this checksum.
    SaidEtag(&'static str),
    /// HEAD: the answer has no checksum.
    NoEtag,
    /// The answer about a model is not that of a hub.
    NoHub,
    /// The connection is closed without an answer.
    Closed,
}

impl Fault {
    /// Whether the request fails in this way.
    pub(super) fn applies(&self, request: &HubRequest) -> bool {
        let is_get = request.method == "GET";
        match self {
            Self::Cut { times, .. } | Self::OtherBytes { times } | Self::Stall { times, .. } => {
                is_get && *times > 0
            }
            Self::Status { times, .. } => *times > 0,
            Self::RangeRefused { times } => is_get && request.start > 0 && *times > 0,
            Self::RangeIgnored => is_get && request.start > 0,
            Self::TooLong | Self::TooShort | Self::NoHub => is_get,
            Self::SaidSize(_) | Self::SaidEtag(_) | Self::NoEtag => !is_get,
            Self::Closed => true,
        }
    }

    /// The fault for one request. It happens once less after that.
    pub(super) fn take(&mut self) -> Self {
        let taken = self.clone();
        match self {
            Self::Cut { times, .. }
            | Self::OtherBytes { times }
            | Self::Stall { times, .. }
            | Self::Status { times, .. }
            | Self::RangeRefused { times } => *times -= 1,
            _ => {}
        }
        taken
    }
}

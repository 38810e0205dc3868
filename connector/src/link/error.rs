//! Why a link could not be established, or why it ended.

use std::io;
use std::time::Duration;

use super::tls_error::{self, LinkTlsError};
use crate::frame::Incompatible;
use crate::wire::WireError;

/// The reason why a link could not be established, or why it ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The socket failed.
    #[error("the link's socket failed: {0}")]
    Io(io::Error),
    /// The peer closed the connection.
    #[error("peer closed the link")]
    Closed,
    /// The peer ended the session cleanly.
    #[error("peer said goodbye")]
    Goodbye,
    /// The peer sent nothing, or accepted no bytes, within this time.
    #[error("peer was silent for {} ms", .0.as_millis())]
    Silent(Duration),
    /// A message could not be encoded or decoded.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The two sides cannot work together.
    #[error(transparent)]
    Incompatible(#[from] Incompatible),
    /// The listener refuses the session until a setting is changed.
    #[error("peer refused the session: {0}")]
    Refused(String),
    /// The listener refuses the session for now.
    #[error("peer is busy: {0}")]
    Busy(String),
    /// The two sides do not agree on TLS, or one refuses the certificate of the other.
    #[error(transparent)]
    Tls(#[from] LinkTlsError),
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        match tls_error::inner(&error) {
            Some(tls) => Self::Tls(tls.into()),
            None => Self::Io(error),
        }
    }
}

impl LinkError {
    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::Closed => "closed",
            Self::Goodbye => "goodbye",
            Self::Silent(_) => "silent",
            Self::Wire(error) => error.kind(),
            Self::Incompatible(error) => error.kind(),
            Self::Refused(_) => "refused",
            Self::Busy(_) => "busy",
            Self::Tls(error) => error.kind(),
        }
    }

    /// True if dialling again fails until a setting is changed.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Incompatible(_) | Self::Refused(_) => true,
            Self::Tls(error) => error.is_permanent(),
            _ => false,
        }
    }
}

//! The role of a process.

use std::fmt;

/// The role of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Decodes and serves clients; senders connect to it.
    Receiver,
    /// Prefills prompts for the receivers that it connects to.
    Sender,
    /// Prefills and decodes in one process, without a transport.
    Local,
}

impl Role {
    /// The name of the role on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Receiver => "receiver",
            Self::Sender => "sender",
            Self::Local => "local",
        }
    }

    /// Whether a process of this role uses the key.
    pub(super) fn uses(self, key: &str) -> bool {
        match self {
            Self::Receiver => key != "link.peers",
            Self::Sender => !key.starts_with("frontend."),
            Self::Local => {
                !["http.", "link.", "ring.", "transport."].iter().any(|section| key.starts_with(section))
            }
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

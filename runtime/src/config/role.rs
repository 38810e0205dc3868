//! What a process is.

use std::fmt;

/// What a process is; chosen on the command line, never by a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Decodes, and runs the frontend; senders dial it.
    Receiver,
    /// Prefills prompts for receivers, which it dials.
    Sender,
    /// One engine behind the frontend, and no transport.
    Local,
}

impl Role {
    /// The role in one word, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Receiver => "receiver",
            Self::Sender => "sender",
            Self::Local => "local",
        }
    }

    /// Whether a process of this role looks at the key.
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

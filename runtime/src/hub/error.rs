//! The errors of the hub. Each is one sentence with advice.

use std::io;
use std::path::{Path, PathBuf};

/// Why a model of the hub cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The text of a key is no path that exists, and the hub does not have the model or did not say so.
    #[error("{text} is neither a file or folder here nor a model that can be used: {error}")]
    NeitherPathNorModel {
        /// The value of the key.
        text: String,
        /// The answer of the hub.
        error: Box<Self>,
    },
    /// The text cannot be the name of a model.
    #[error(
        "{text:?} is no name of a model; write organisation/name, optionally with @revision and :file.gguf"
    )]
    NoName {
        /// The text.
        text: String,
    },
    /// The hub shows no model of this name.
    #[error("{endpoint} shows no model {repo}{}; check the name{}", with(*.has_token), advice(*.has_token))]
    Missing {
        /// The hub.
        endpoint: String,
        /// The id.
        repo: String,
        /// Whether a token was sent.
        has_token: bool,
    },
    /// The model has no such revision.
    #[error("{repo} has no revision {revision}; check the text after the @")]
    NoRevision {
        /// The id.
        repo: String,
        /// The revision.
        revision: String,
    },
    /// The account of the token, or no account, may not read the model.
    #[error(
        "{repo} is gated: accept its terms at {endpoint}/{repo}, and set HF_TOKEN to a token of the account that did"
    )]
    Gated {
        /// The hub.
        endpoint: String,
        /// The id.
        repo: String,
    },
    /// The hub does not accept the token.
    #[error(
        "{endpoint} refuses the token for {repo}; set HF_TOKEN to a valid one, or remove it if the model is public"
    )]
    TokenRefused {
        /// The hub.
        endpoint: String,
        /// The id.
        repo: String,
    },
    /// The hub forbids access for another reason.
    #[error("{endpoint} refuses access to {repo}: {message}; set HF_TOKEN to a token that may read it")]
    Refused {
        /// The hub.
        endpoint: String,
        /// The id.
        repo: String,
        /// The reason of the hub.
        message: String,
    },
    /// The repository does not have the files of a model that Baton can serve, or not the named file.
    #[error("{repo} {reason}")]
    Unsuitable {
        /// The id.
        repo: String,
        /// The rest of the sentence.
        reason: String,
    },
    /// The hub cannot be reached, or does not answer.
    #[error("cannot reach {url}: {reason}; check the network, HF_ENDPOINT and HTTPS_PROXY")]
    Unreachable {
        /// The URL of the request.
        url: String,
        /// The last failure.
        reason: String,
    },
    /// The connection broke again and again while a file was sent.
    #[error(
        "the download of {file} from {repo} was interrupted at {done} bytes: {reason}; start again to continue there"
    )]
    Interrupted {
        /// The id.
        repo: String,
        /// The path in the repository.
        file: String,
        /// Bytes of the file on disk.
        done: u64,
        /// The last failure.
        reason: String,
    },
    /// The hub asks to wait for longer than Baton does.
    #[error(
        "{endpoint} allows no more requests for {seconds} s; try again after that, or set HF_TOKEN for a higher limit"
    )]
    TooManyRequests {
        /// The hub.
        endpoint: String,
        /// Seconds to wait.
        seconds: u64,
    },
    /// An answer that does not follow the protocol.
    #[error("{url} answered {what}; check that HF_ENDPOINT is a hub of models")]
    Unexpected {
        /// The URL of the request.
        url: String,
        /// The answer.
        what: String,
    },
    /// The bytes are not those of the file, twice.
    #[error(
        "{file} of {repo} arrived with {what} twice and was discarded; try again later, or without HTTPS_PROXY and HF_ENDPOINT"
    )]
    Damaged {
        /// The id.
        repo: String,
        /// The path in the repository.
        file: String,
        /// What differs.
        what: String,
    },
    /// Nothing may be downloaded, and the cache does not have everything.
    #[error(
        "HF_HUB_OFFLINE is set, but {cache} does not have {what}; unset it once, or copy the model there"
    )]
    Offline {
        /// The cache folder.
        cache: PathBuf,
        /// The missing model or file.
        what: String,
    },
    /// The file system has no room.
    #[error(
        "the disk of {folder} is full: the model needs another {needed} and {available} are free; free some space, or set HF_HUB_CACHE"
    )]
    DiskFull {
        /// The folder of the model in the cache.
        folder: PathBuf,
        /// The missing bytes.
        needed: String,
        /// The free bytes.
        available: String,
    },
    /// A file of the cache cannot be read or written.
    #[error("cannot {what} {path}: {error}; check the permissions, or set HF_HUB_CACHE to another folder")]
    Cache {
        /// What was attempted.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
    /// The connection cannot be set up at all.
    #[error("{0}")]
    Settings(String),
    /// A model that is to be removed is not there.
    #[error("{name} is not in {cache}; `runtime models` lists the models that are")]
    NotCached {
        /// The name.
        name: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// Another process downloads the model that is to be removed.
    #[error("{repo} is being downloaded by another process; stop that process first")]
    InUse {
        /// The id.
        repo: String,
    },
}

impl HubError {
    /// The kind of the error in one word, for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NeitherPathNorModel { .. } => "neither_path_nor_model",
            Self::NoName { .. } => "no_name",
            Self::Missing { .. } => "missing",
            Self::NoRevision { .. } => "no_revision",
            Self::Gated { .. } => "gated",
            Self::TokenRefused { .. } => "token_refused",
            Self::Refused { .. } => "refused",
            Self::Unsuitable { .. } => "unsuitable",
            Self::Unreachable { .. } => "unreachable",
            Self::Interrupted { .. } => "interrupted",
            Self::TooManyRequests { .. } => "too_many_requests",
            Self::Unexpected { .. } => "unexpected",
            Self::Damaged { .. } => "damaged",
            Self::Offline { .. } => "offline",
            Self::DiskFull { .. } => "disk_full",
            Self::Cache { .. } => "cache",
            Self::Settings(_) => "settings",
            Self::NotCached { .. } => "not_cached",
            Self::InUse { .. } => "in_use",
        }
    }

    /// An error of the system with a file of the cache.
    pub(super) fn cache(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Cache { what, path: path.to_owned(), error }
    }

    /// Whether a complete model in the cache is used in spite of the error. It is not if the hub says that the revision does not exist.
    pub(super) fn leaves_the_cache(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::TooManyRequests { .. }
                | Self::Gated { .. }
                | Self::TokenRefused { .. }
                | Self::Refused { .. }
                | Self::Missing { .. }
                | Self::Unexpected { .. }
        )
    }

    /// Whether the model may be a path that was mistyped.
    pub(super) fn may_be_a_path(&self) -> bool {
        matches!(
            self,
            Self::Missing { .. } | Self::Unreachable { .. } | Self::Offline { .. } | Self::Unexpected { .. }
        )
    }
}

/// The account that a hub shows its models to.
fn with(has_token: bool) -> &'static str {
    if has_token { " to the account of the token" } else { " without a token" }
}

/// What else to do if a model is not shown.
fn advice(has_token: bool) -> &'static str {
    if has_token { ", and that the token may read it" } else { ", or set HF_TOKEN if the model is private" }
}

/// A number of bytes in a unit that people read.
pub(super) fn size_text(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit() {
        let sizes = [0, 999, 1_500, 2_000_000, 16_060_000_000];
        assert_eq!(sizes.map(size_text), ["0 B", "999 B", "1.5 kB", "2.0 MB", "16.1 GB"]);
    }

    #[test]
    fn a_missing_model_has_advice_about_the_token() {
        let missing = |has_token| {
            HubError::Missing { endpoint: "https://h".to_owned(), repo: "a/b".to_owned(), has_token }
                .to_string()
        };
        assert_eq!(
            missing(false),
            "https://h shows no model a/b without a token; check the name, or set HF_TOKEN if the model is private"
        );
        assert!(missing(true).ends_with("check the name, and that the token may read it"));
    }
}

//! Why a GGUF file cannot be used.

/// Why a file is not a usable GGUF.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The operating system refused to read.
    #[error("cannot be read: {0}")]
    Io(std::io::Error),
    /// The file does not start with the magic bytes.
    #[error("not a GGUF file: it does not start with \"GGUF\"")]
    NotGguf,
    /// A version that the reader does not know.
    #[error("GGUF version {version} is not supported, only 2 and 3 are")]
    Version {
        /// The file's version.
        version: u32,
    },
    /// The file ends before its header does.
    #[error(
        "truncated: the header goes on past the file's {actual} bytes; delete the file and fetch it again"
    )]
    TruncatedHeader {
        /// Bytes of the file.
        actual: u64,
    },
    /// The file ends before its tensors do.
    #[error(
        "truncated: tensor {tensor} ends at byte {expected} but the file has {actual} bytes; delete the file and fetch it again"
    )]
    TruncatedTensors {
        /// The tensor that reaches furthest.
        tensor: String,
        /// Bytes that the file should have at least.
        expected: u64,
        /// Bytes that it has.
        actual: u64,
    },
    /// The header contradicts itself.
    #[error("malformed GGUF header: {0}")]
    Malformed(String),
    /// No tensor of that name.
    #[error("there is no tensor {0}")]
    NoTensor(String),
}

impl From<std::io::Error> for GgufError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl GgufError {
    /// A short constant name for metrics, logs and JSON.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io(_) => "model_unreadable",
            Self::NotGguf => "not_gguf",
            Self::Version { .. } => "gguf_version",
            Self::TruncatedHeader { .. } | Self::TruncatedTensors { .. } => "model_truncated",
            Self::Malformed(_) => "gguf_malformed",
            Self::NoTensor(_) => "no_tensor",
        }
    }
}

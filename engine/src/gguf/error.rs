//! The error of reading a GGUF file.

/// The error of reading a GGUF file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The operating system cannot read the file.
    #[error("cannot be read: {0}")]
    Io(std::io::Error),
    /// The file does not start with the magic bytes.
    #[error("not a GGUF file: it does not start with \"GGUF\"")]
    NotGguf,
    /// The reader does not support the file's version.
    #[error("GGUF version {version} is not supported, only versions 2 and 3")]
    Version {
        /// The file's version.
        version: u32,
    },
    /// The file ends within its header.
    #[error(
        "truncated: the header extends past the file's {actual} bytes; delete the file and fetch it again"
    )]
    TruncatedHeader {
        /// Bytes of the file.
        actual: u64,
    },
    /// The file ends within its tensor data.
    #[error(
        "truncated: tensor {tensor} ends at byte {expected} but the file has {actual} bytes; delete the file and fetch it again"
    )]
    TruncatedTensors {
        /// The tensor that ends last.
        tensor: String,
        /// Minimum number of bytes of a complete file.
        expected: u64,
        /// Bytes of the file.
        actual: u64,
    },
    /// The header contradicts itself.
    #[error("malformed GGUF header: {0}")]
    Malformed(String),
    /// The file has no tensor with this name.
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

//! Reads GGUF files (versions 2 and 3, little-endian): metadata at once, tensor bytes on request.
//!
//! The format is that of <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. A file is read, never
//! mapped, so one that shrinks while it is open gives an error. Random bytes give errors too, and no count in a
//! file makes the reader allocate more than the bytes that are really there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

mod parse;
#[cfg(test)]
mod tests;

use parse::{Header, Value};

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

/// How a tensor's numbers are stored. `d` and `m` are f16; K-quants are blocks of 256 whose scales are themselves quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// The upper half of 32-bit floats.
    BF16,
    /// Blocks of 32: value = d·(q - 8).
    Q4_0,
    /// Blocks of 32: value = d·q + m, the low nibbles first.
    Q4_1,
    /// Blocks of 32: value = d·(q - 16), the fifth bits by themselves.
    Q5_0,
    /// Blocks of 32: value = d·q + m, the fifth bits by themselves.
    Q5_1,
    /// Blocks of 32 signed bytes: value = d·q.
    Q8_0,
    /// K-quants of two bits.
    Q2K,
    /// K-quants of three bits.
    Q3K,
    /// K-quants of four bits.
    Q4K,
    /// K-quants of five bits.
    Q5K,
    /// K-quants of six bits.
    Q6K,
    /// A type that the engine does not read, by its number in the format.
    Other(u32),
}

/// The types that are read: number in the format, name, numbers in a block, bytes of a block.
const READ: &[(TensorType, u32, &str, u64, u64)] = &[
    (TensorType::F32, 0, "F32", 1, 4),
    (TensorType::F16, 1, "F16", 1, 2),
    (TensorType::Q4_0, 2, "Q4_0", 32, 18),
    (TensorType::Q4_1, 3, "Q4_1", 32, 20),
    (TensorType::Q5_0, 6, "Q5_0", 32, 22),
    (TensorType::Q5_1, 7, "Q5_1", 32, 24),
    (TensorType::Q8_0, 8, "Q8_0", 32, 34),
    (TensorType::Q2K, 10, "Q2_K", 256, 84),
    (TensorType::Q3K, 11, "Q3_K", 256, 110),
    (TensorType::Q4K, 12, "Q4_K", 256, 144),
    (TensorType::Q5K, 13, "Q5_K", 256, 176),
    (TensorType::Q6K, 14, "Q6_K", 256, 210),
    (TensorType::BF16, 30, "BF16", 1, 2),
];

impl TensorType {
    fn from_number(number: u32) -> Self {
        READ.iter().find(|read| read.1 == number).map_or(Self::Other(number), |read| read.0)
    }

    /// Numbers in one block and its bytes; `None` for a type that is not read.
    fn block(self) -> Option<(u64, u64)> {
        READ.iter().find(|read| read.0 == self).map(|read| (read.3, read.4))
    }

    /// The names of the types that are read.
    pub(crate) fn names() -> String {
        READ.iter().map(|read| read.2).collect::<Vec<_>>().join(", ")
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (READ.iter().find(|read| read.0 == *self), self) {
            (Some(read), _) => f.write_str(read.2),
            (None, Self::Other(number)) => write!(f, "type {number}"),
            (None, _) => f.write_str("unknown"),
        }
    }
}

/// A tensor's entry in the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Sizes, the contiguous dimension first: a weight of `y = W·x` is `[inputs, outputs]`.
    pub dimensions: Vec<u64>,
    /// The storage type.
    pub kind: TensorType,
    /// Bytes from the start of the tensor data.
    offset: u64,
    /// Bytes of the tensor; 0 for a type that is not read.
    bytes: u64,
}

impl Tensor {
    /// Numbers in the tensor.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.dimensions.iter().product()
    }
}

/// An open GGUF file. Usable from any thread.
#[derive(Debug)]
pub struct Gguf {
    file: File,
    header: Header,
}

impl Gguf {
    /// Opens a file, reads its header and checks that every tensor lies inside the file.
    ///
    /// # Errors
    /// [`GgufError`]; a file that is missing is [`GgufError::Io`].
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let header = Header::parse(&mut BufReader::with_capacity(1 << 16, (&file).take(bytes)), bytes)?;
        Ok(Self { file, header })
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.header.metadata.get(key)
    }

    /// The string at `key`; `None` when it is missing or something else.
    #[must_use]
    pub fn str(&self, key: &str) -> Option<&str> {
        self.value(key)?.as_str()
    }

    /// The integer at `key`, of any width; `None` when it is missing, negative or something else.
    #[must_use]
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.value(key)?.as_u64()
    }

    /// The float at `key`; `None` when it is missing or something else.
    #[must_use]
    pub fn f32(&self, key: &str) -> Option<f32> {
        self.value(key)?.as_f32()
    }

    /// The boolean at `key`; `None` when it is missing or something else.
    #[must_use]
    pub fn bool(&self, key: &str) -> Option<bool> {
        self.value(key)?.as_bool()
    }

    /// The array of strings at `key`; `None` when it is missing or something else.
    #[must_use]
    pub fn strings(&self, key: &str) -> Option<Vec<&str>> {
        self.value(key)?.as_strings()
    }

    /// The array of 32-bit integers at `key`; `None` when it is missing or something else.
    #[must_use]
    pub fn i32s(&self, key: &str) -> Option<Vec<i32>> {
        self.value(key)?.as_i32s()
    }

    /// The array of 32-bit floats at `key` (token scores); `None` when it is missing or something else.
    #[must_use]
    pub fn f32s(&self, key: &str) -> Option<Vec<f32>> {
        self.value(key)?.as_f32s()
    }

    /// Every tensor by name.
    #[must_use]
    pub fn tensors(&self) -> &HashMap<String, Tensor> {
        &self.header.tensors
    }

    /// Reads the bytes of a tensor, as the file stores them.
    ///
    /// # Errors
    /// [`GgufError::NoTensor`], or [`GgufError::Io`] when the file has become shorter or unreadable.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, GgufError> {
        let tensor = self.header.tensors.get(name).ok_or_else(|| GgufError::NoTensor(name.to_owned()))?;
        // The header's check bounds this by the file's size.
        let mut bytes = vec![0; tensor.bytes as usize];
        self.file.read_exact_at(&mut bytes, self.header.data_offset + tensor.offset)?;
        Ok(bytes)
    }
}

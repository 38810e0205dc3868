//! Reads a Hugging Face folder of safetensors: one file, or several files with an index.
//!
//! The format is defined in <https://huggingface.co/docs/safetensors>: eight bytes of header length, a JSON header, then
//! the tensors. Files are read and never mapped. Every count is checked against the file's size before it is used.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::gguf::TensorType;

/// Maximum length of an accepted header, in bytes. A model of a thousand layers has a header of about one megabyte.
const HEADER_BYTES_MAX: u64 = 64 << 20;

/// The error of reading a folder's tensors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// The operating system cannot read a file.
    #[error("{file} cannot be read: {error}")]
    Io {
        /// The file's name in the folder.
        file: String,
        /// The system's error.
        error: std::io::Error,
    },
    /// A file violates the format.
    #[error("{file} is malformed: {reason}; fetch it again")]
    Malformed {
        /// The file's name in the folder.
        file: String,
        /// The violation.
        reason: String,
    },
    /// No file has the tensor.
    #[error("no file has a tensor {tensor}")]
    Absent {
        /// The tensor's name.
        tensor: String,
    },
    /// A file is shorter than its header says.
    #[error("{file} is truncated: it has {actual} bytes, but should have {expected}; fetch it again")]
    Truncated {
        /// The file's name in the folder.
        file: String,
        /// Minimum number of bytes of a complete file.
        expected: u64,
        /// Bytes of the file.
        actual: u64,
    },
}

impl SafetensorsError {
    /// A short constant name for metrics, logs and JSON.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io { .. } => "model_unreadable",
            Self::Malformed { .. } => "safetensors_malformed",
            Self::Absent { .. } => "no_tensor",
            Self::Truncated { .. } => "model_truncated",
        }
    }
}

/// The type of a tensor's numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoredType {
    /// F32, F16 or BF16.
    Float(TensorType),
    /// `F8_E4M3`: one byte per number. Such a tensor needs scales, which other tensors hold.
    E4M3,
    /// A type that the engine does not read, by its name in the format.
    Other(String),
}

impl StoredType {
    fn of(name: String) -> Self {
        match &*name {
            "F32" => Self::Float(TensorType::F32),
            "F16" => Self::Float(TensorType::F16),
            "BF16" => Self::Float(TensorType::BF16),
            "F8_E4M3" => Self::E4M3,
            _ => Self::Other(name),
        }
    }

    /// Bytes per number. `None` for a type that the engine does not read.
    fn size(&self) -> Option<u64> {
        match self {
            Self::Float(TensorType::F32) => Some(4),
            Self::Float(_) => Some(2),
            Self::E4M3 => Some(1),
            Self::Other(_) => None,
        }
    }
}

impl std::fmt::Display for StoredType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Float(kind) => kind.fmt(f),
            Self::E4M3 => f.write_str("F8_E4M3"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// The storage type and location of a tensor.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) kind: StoredType,
    /// The row dimension comes first.
    pub(crate) dimensions: Vec<u64>,
    file: usize,
    offset: u64,
    bytes: u64,
}

/// The open files of a folder.
#[derive(Debug)]
pub(crate) struct Safetensors {
    files: Vec<(String, File)>,
    tensors: HashMap<String, Stored>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl Safetensors {
    /// Opens `model.safetensors`, or the files that `model.safetensors.index.json` names.
    pub(crate) fn open(folder: &Path) -> Result<Self, SafetensorsError> {
        const INDEX: &str = "model.safetensors.index.json";
        let names: BTreeSet<String> = match std::fs::read(folder.join(INDEX)) {
            Ok(text) => {
                let malformed =
                    |reason: String| SafetensorsError::Malformed { file: INDEX.to_owned(), reason };
                let index: Index =
                    serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
                let names: BTreeSet<String> = index.weight_map.into_values().collect();
                if let Some(name) = names.iter().find(|name| Path::new(name).components().count() != 1) {
                    return Err(malformed(format!("it names {name:?}, which is not in the same folder")));
                }
                names
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                BTreeSet::from(["model.safetensors".to_owned()])
            }
            Err(error) => return Err(SafetensorsError::Io { file: INDEX.to_owned(), error }),
        };
        let mut all = Self { files: Vec::new(), tensors: HashMap::new() };
        for name in names {
            all.add(folder, name)?;
        }
        Ok(all)
    }

    fn add(&mut self, folder: &Path, name: String) -> Result<(), SafetensorsError> {
        let io = |error| SafetensorsError::Io { file: name.clone(), error };
        let malformed = |reason: String| SafetensorsError::Malformed { file: name.clone(), reason };
        let file = File::open(folder.join(&name)).map_err(io)?;
        let actual = file.metadata().map_err(io)?.len();
        let short = |expected| SafetensorsError::Truncated { file: name.clone(), expected, actual };
        if actual < 8 {
            return Err(short(8));
        }
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0).map_err(io)?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_BYTES_MAX {
            return Err(malformed(format!("its header has {length} bytes")));
        }
        if actual < 8 + length {
            return Err(short(8 + length));
        }
        let mut header = vec![0; length as usize];
        file.read_exact_at(&mut header, 8).map_err(io)?;
        let header: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&header).map_err(|error| malformed(error.to_string()))?;
        for (tensor, entry) in header {
            if tensor == "__metadata__" {
                continue;
            }
            let entry: Entry =
                serde_json::from_value(entry).map_err(|error| malformed(format!("{tensor}: {error}")))?;
            let kind = StoredType::of(entry.dtype);
            let [from, to] = entry.data_offsets;
            let numbers = entry.shape.iter().try_fold(1, |all: u64, size| all.checked_mul(*size));
            let expected = |size| numbers.and_then(|numbers| numbers.checked_mul(size));
            let bytes = to.checked_sub(from);
            let bytes = bytes.filter(|bytes| kind.size().is_none_or(|size| expected(size) == Some(*bytes)));
            let bytes =
                bytes.ok_or_else(|| malformed(format!("{tensor} has offsets that contradict its shape")))?;
            let end = 8u64.saturating_add(length).saturating_add(to);
            if end > actual {
                return Err(short(end));
            }
            let stored = Stored {
                kind,
                dimensions: entry.shape,
                file: self.files.len(),
                offset: 8 + length + from,
                bytes,
            };
            if self.tensors.insert(tensor.clone(), stored).is_some() {
                return Err(malformed(format!("{tensor} is also in another file")));
            }
        }
        self.files.push((name, file));
        Ok(())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The files, in the order of their names.
    pub(crate) fn paths(&self, folder: &Path) -> Vec<PathBuf> {
        self.files.iter().map(|(name, _)| folder.join(name)).collect()
    }

    /// The bytes of a tensor in its storage type.
    pub(crate) fn read(&self, tensor: &str) -> Result<Vec<u8>, SafetensorsError> {
        let stored =
            self.get(tensor).ok_or_else(|| SafetensorsError::Absent { tensor: tensor.to_owned() })?;
        let (name, file) = &self.files[stored.file];
        let mut bytes = vec![0; stored.bytes as usize];
        file.read_exact_at(&mut bytes, stored.offset)
            .map_err(|error| SafetensorsError::Io { file: name.clone(), error })?;
        Ok(bytes)
    }
}

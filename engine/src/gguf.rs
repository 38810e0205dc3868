//! Reads GGUF files (versions 2 and 3, little-endian): the metadata when it opens a file, tensor bytes on request.
//!
//! The format is defined in <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. The reader reads files and never
//! maps them, so a file that shrinks while it is open causes an error. Random bytes cause errors too. A count in a file
//! never makes the reader allocate more bytes than the file has.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

mod error;
mod parse;
mod tensor;
#[cfg(test)]
mod tests;

use parse::{Header, Value};

pub use error::GgufError;
pub use tensor::{Tensor, TensorType};

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
    /// [`GgufError`]. For a missing file it is [`GgufError::Io`].
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let header = Header::parse(&mut BufReader::with_capacity(1 << 16, (&file).take(bytes)), bytes)?;
        Ok(Self { file, header })
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.header.metadata.get(key)
    }

    /// The string at `key`. `None` if the key is missing or has another type.
    #[must_use]
    pub fn str(&self, key: &str) -> Option<&str> {
        self.value(key)?.as_str()
    }

    /// The integer at `key`, of any width. `None` if the key is missing, negative or has another type.
    #[must_use]
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.value(key)?.as_u64()
    }

    /// The float at `key`. `None` if the key is missing or has another type.
    #[must_use]
    pub fn f32(&self, key: &str) -> Option<f32> {
        self.value(key)?.as_f32()
    }

    /// The boolean at `key`. `None` if the key is missing or has another type.
    #[must_use]
    pub fn bool(&self, key: &str) -> Option<bool> {
        self.value(key)?.as_bool()
    }

    /// The array of strings at `key`. `None` if the key is missing or has another type.
    #[must_use]
    pub fn strings(&self, key: &str) -> Option<Vec<&str>> {
        self.value(key)?.as_strings()
    }

    /// The array of 32-bit integers at `key`. `None` if the key is missing or has another type.
    #[must_use]
    pub fn i32s(&self, key: &str) -> Option<Vec<i32>> {
        self.value(key)?.as_i32s()
    }

    /// The array of 32-bit floats at `key` (token scores). `None` if the key is missing or has another type.
    #[must_use]
    pub fn f32s(&self, key: &str) -> Option<Vec<f32>> {
        self.value(key)?.as_f32s()
    }

    /// All tensors by name.
    #[must_use]
    pub fn tensors(&self) -> &HashMap<String, Tensor> {
        &self.header.tensors
    }

    /// Reads the bytes of a tensor in the file's storage type.
    ///
    /// # Errors
    /// [`GgufError::NoTensor`], or [`GgufError::Io`] if the file has become shorter or unreadable.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, GgufError> {
        let tensor = self.header.tensors.get(name).ok_or_else(|| GgufError::NoTensor(name.to_owned()))?;
        // `Header::parse` has checked that the tensor lies inside the file.
        let mut bytes = vec![0; tensor.bytes as usize];
        self.file.read_exact_at(&mut bytes, self.header.data_offset + tensor.offset)?;
        Ok(bytes)
    }
}

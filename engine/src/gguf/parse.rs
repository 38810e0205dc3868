//! Parses the header of a GGUF file from a stream of known length.

use std::collections::HashMap;
use std::io::Read;

use super::error::GgufError;
use super::tensor::{Tensor, TensorType};

/// Maximum number of dimensions that the format allows.
const DIMENSIONS_MAX: u32 = 4;

/// Everything before the tensor data.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: HashMap<String, Value>,
    pub(super) tensors: HashMap<String, Tensor>,
    /// The offset of the tensor data in the file.
    pub(super) data_offset: u64,
}

/// A metadata value. Numbers and arrays store the file's bytes, so they take no more memory than in the file.
#[derive(Debug)]
pub(super) enum Value {
    Scalar {
        kind: u32,
        bytes: Vec<u8>,
    },
    Text(String),
    Array {
        kind: u32,
        bytes: Vec<u8>,
    },
    /// All strings joined, and the end of each.
    Texts {
        text: String,
        ends: Vec<usize>,
    },
}

mod kind {
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const F64: u32 = 12;
}

/// Bytes of one number of a kind.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl Value {
    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn as_u64(&self) -> Option<u64> {
        let Self::Scalar { kind, bytes } = self else { return None };
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let unsigned = u64::from_le_bytes(wide);
        match kind {
            0 | 2 | 4 | 10 => Some(unsigned),
            // Accepts a signed number if its sign bit is clear.
            1 | 3 | 5 | 11 => (bytes.last()? & 0x80 == 0).then_some(unsigned),
            _ => None,
        }
    }

    pub(super) fn as_f32(&self) -> Option<f32> {
        match self {
            Self::Scalar { kind: kind::F32, bytes } => {
                Some(f32::from_le_bytes(bytes.as_slice().try_into().ok()?))
            }
            Self::Scalar { kind: kind::F64, bytes } => {
                Some(f64::from_le_bytes(bytes.as_slice().try_into().ok()?) as f32)
            }
            _ => None,
        }
    }

    pub(super) fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Scalar { kind: kind::BOOL, bytes } => Some(bytes.as_slice() != [0]),
            _ => None,
        }
    }

    pub(super) fn as_strings(&self) -> Option<Vec<&str>> {
        let Self::Texts { text, ends } = self else { return None };
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts.zip(ends).map(|(start, &end)| text.get(start..end)).collect()
    }

    pub(super) fn as_i32s(&self) -> Option<Vec<i32>> {
        match self {
            Self::Array { kind: kind::I32 | kind::U32, bytes } => {
                bytes.as_chunks().0.iter().map(|&four| Some(i32::from_le_bytes(four))).collect()
            }
            _ => None,
        }
    }

    pub(super) fn as_f32s(&self) -> Option<Vec<f32>> {
        match self {
            Self::Array { kind: kind::F32, bytes } => {
                bytes.as_chunks().0.iter().map(|&four| Some(f32::from_le_bytes(four))).collect()
            }
            _ => None,
        }
    }
}

/// A stream with a known number of remaining bytes. It refuses a length that is too large before it allocates memory.
struct Stream<'a, R> {
    input: &'a mut R,
    left: u64,
    total: u64,
}

impl<R: Read> Stream<'_, R> {
    fn claim(&mut self, bytes: u64) -> Result<usize, GgufError> {
        let left = self.left.checked_sub(bytes).ok_or(GgufError::TruncatedHeader { actual: self.total })?;
        self.left = left;
        usize::try_from(bytes).map_err(|_| GgufError::Malformed(format!("a length is {bytes} bytes")))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        self.claim(N as u64)?;
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, GgufError> {
        let mut bytes = vec![0; self.claim(count)?];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, GgufError> {
        let count = self.u64()?;
        String::from_utf8(self.bytes(count)?)
            .map_err(|_| GgufError::Malformed("a string is not UTF-8".to_owned()))
    }

    fn value(&mut self) -> Result<Value, GgufError> {
        let unknown = |kind| GgufError::Malformed(format!("unknown value type {kind}"));
        match self.u32()? {
            kind::TEXT => Ok(Value::Text(self.text()?)),
            kind::ARRAY => {
                let kind = self.u32()?;
                let count = self.u64()?;
                if kind == kind::TEXT {
                    return self.texts(count);
                }
                let each = width(kind).ok_or_else(|| unknown(kind))?;
                let bytes =
                    each.checked_mul(count).ok_or(GgufError::TruncatedHeader { actual: self.total })?;
                Ok(Value::Array { kind, bytes: self.bytes(bytes)? })
            }
            kind => Ok(Value::Scalar { kind, bytes: self.bytes(width(kind).ok_or_else(|| unknown(kind))?)? }),
        }
    }

    fn texts(&mut self, count: u64) -> Result<Value, GgufError> {
        let (mut text, mut ends) = (String::new(), Vec::new());
        for _ in 0..count {
            text.push_str(&self.text()?);
            ends.push(text.len());
        }
        Ok(Value::Texts { text, ends })
    }

    fn tensor(&mut self) -> Result<Tensor, GgufError> {
        let count = self.u32()?;
        if count == 0 || count > DIMENSIONS_MAX {
            return Err(GgufError::Malformed(format!("a tensor has {count} dimensions")));
        }
        let dimensions = (0..count).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        let kind = TensorType::from_number(self.u32()?);
        let offset = self.u64()?;
        let elements = dimensions.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
        let bytes = match kind.block() {
            None => elements.map(|_| 0),
            Some((block, _)) if !dimensions[0].is_multiple_of(block) => None,
            Some((block, bytes)) => elements.and_then(|elements| (elements / block).checked_mul(bytes)),
        };
        let bytes = bytes
            .ok_or_else(|| GgufError::Malformed(format!("a {kind} tensor has dimensions {dimensions:?}")))?;
        Ok(Tensor { dimensions, kind, offset, bytes })
    }
}

impl Header {
    /// Parses a header from the start of a file of `total` bytes.
    pub(super) fn parse(input: &mut impl Read, total: u64) -> Result<Self, GgufError> {
        let mut stream = Stream { input, left: total, total };
        if total < 4 || stream.array()? != *b"GGUF" {
            return Err(GgufError::NotGguf);
        }
        match stream.u32()? {
            2 | 3 => {}
            version => return Err(GgufError::Version { version }),
        }
        let (tensor_count, value_count) = (stream.u64()?, stream.u64()?);
        let (mut metadata, mut tensors) = (HashMap::new(), HashMap::new());
        for _ in 0..value_count {
            let (key, value) = (stream.text()?, stream.value()?);
            if metadata.insert(key, value).is_some() {
                return Err(GgufError::Malformed("a key appears twice".to_owned()));
            }
        }
        for _ in 0..tensor_count {
            let (name, tensor) = (stream.text()?, stream.tensor()?);
            if tensors.insert(name, tensor).is_some() {
                return Err(GgufError::Malformed("a tensor appears twice".to_owned()));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(value) => {
                Value::as_u64(value).filter(|bytes| bytes.is_power_of_two() && *bytes <= 1 << 20).ok_or_else(
                    || GgufError::Malformed("general.alignment is not a small power of two".to_owned()),
                )?
            }
        };
        let data_offset = (total - stream.left).next_multiple_of(alignment);
        check_inside(&tensors, data_offset, total)?;
        Ok(Self { metadata, tensors, data_offset })
    }
}

/// Refuses a file that ends within its tensor data. The error names the tensor that ends last.
fn check_inside(tensors: &HashMap<String, Tensor>, data_offset: u64, total: u64) -> Result<(), GgufError> {
    let end = |tensor: &Tensor| data_offset.saturating_add(tensor.offset).saturating_add(tensor.bytes);
    match tensors.iter().max_by_key(|(_, tensor)| end(tensor)) {
        Some((name, tensor)) if end(tensor) > total => {
            Err(GgufError::TruncatedTensors { tensor: name.clone(), expected: end(tensor), actual: total })
        }
        _ => Ok(()),
    }
}

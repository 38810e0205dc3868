//! Tensors of a GGUF file: their storage types, dimensions and offsets.

/// The storage type of a tensor's numbers. `d` and `m` are f16. K-quants are blocks of 256 with quantised scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16: the upper half of 32-bit floats.
    BF16,
    /// Blocks of 32: value = d·(q - 8).
    Q4_0,
    /// Blocks of 32: value = d·q + m. The low nibbles come first.
    Q4_1,
    /// Blocks of 32: value = d·(q - 16). The fifth bits are stored separately.
    Q5_0,
    /// Blocks of 32: value = d·q + m. The fifth bits are stored separately.
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
    /// A type that the engine does not support, by its number in the format.
    Other(u32),
}

/// The supported types: number in the format, name, numbers in a block, bytes of a block.
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
    pub(super) fn from_number(number: u32) -> Self {
        READ.iter().find(|read| read.1 == number).map_or(Self::Other(number), |read| read.0)
    }

    /// The numbers in one block, and its bytes. `None` for an unsupported type.
    pub(crate) fn block(self) -> Option<(u64, u64)> {
        READ.iter().find(|read| read.0 == self).map(|read| (read.3, read.4))
    }

    /// The names of the supported types.
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

/// The entry of a tensor in the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The sizes, the contiguous dimension first. A weight of `y = W·x` is `[inputs, outputs]`.
    pub dimensions: Vec<u64>,
    /// The storage type.
    pub kind: TensorType,
    /// Bytes from the start of the tensor data.
    pub(super) offset: u64,
    /// Bytes of the tensor. 0 for an unsupported type.
    pub(super) bytes: u64,
}

impl Tensor {
    /// Numbers in the tensor.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.dimensions.iter().product()
    }
}

//! Converts stored numbers to floats, for every supported type, with exactly the operations that the formats define.
//!
//! ggml's `ggml-common.h` defines the block layouts. The tests compare the results with llama.cpp's `gguf` package.

use half::{bf16, f16};

use crate::gguf::TensorType;

/// The numbers of whole blocks of `kind`. Empty for an unsupported type.
pub(crate) fn floats(kind: TensorType, bytes: &[u8]) -> Vec<f32> {
    match kind {
        TensorType::F32 => bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
        TensorType::F16 => bytes.as_chunks().0.iter().map(|two| f16::from_le_bytes(*two).to_f32()).collect(),
        TensorType::BF16 => {
            bytes.as_chunks().0.iter().map(|two| bf16::from_le_bytes(*two).to_f32()).collect()
        }
        TensorType::Q4_0 => blocks(bytes, q4_0),
        TensorType::Q4_1 => blocks(bytes, q4_1),
        TensorType::Q5_0 => blocks(bytes, q5_0),
        TensorType::Q5_1 => blocks(bytes, q5_1),
        TensorType::Q8_0 => blocks(bytes, q8_0),
        TensorType::Q2K => blocks(bytes, q2_k),
        TensorType::Q3K => blocks(bytes, q3_k),
        TensorType::Q4K => blocks(bytes, q4_k),
        TensorType::Q5K => blocks(bytes, q5_k),
        TensorType::Q6K => blocks(bytes, q6_k),
        TensorType::Other(_) => Vec::new(),
    }
}

fn blocks<const BYTES: usize, const NUMBERS: usize>(
    bytes: &[u8],
    block: fn(&[u8; BYTES]) -> [f32; NUMBERS],
) -> Vec<f32> {
    bytes.as_chunks().0.iter().flat_map(block).collect()
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Nibble `place` of 16 bytes: the low nibbles come first, then the high ones.
fn nibbles(bytes: &[u8], place: usize) -> u8 {
    if place < 16 { bytes[place] & 15 } else { bytes[place - 16] >> 4 }
}

/// Bit `place` of four bytes, as the fifth bit of a number.
fn fifth_bit(bits: &[u8], place: usize) -> u8 {
    (bits[place / 8] >> (place % 8) & 1) << 4
}

fn q4_0(block: &[u8; 18]) -> [f32; 32] {
    let d = half(block);
    std::array::from_fn(|n| (f32::from(nibbles(&block[2..], n)) - 8.0) * d)
}

fn q4_1(block: &[u8; 20]) -> [f32; 32] {
    let (d, m) = (half(block), half(&block[2..]));
    std::array::from_fn(|n| f32::from(nibbles(&block[4..], n)) * d + m)
}

fn q5_0(block: &[u8; 22]) -> [f32; 32] {
    let d = half(block);
    std::array::from_fn(|n| (f32::from(q5_0_number(block, n)) - 16.0) * d)
}

/// The unsigned number `n` of a block of Q5_0.
pub(crate) fn q5_0_number(block: &[u8; 22], n: usize) -> i8 {
    (nibbles(&block[6..], n) | fifth_bit(&block[2..6], n)) as i8
}

fn q5_1(block: &[u8; 24]) -> [f32; 32] {
    let (d, m) = (half(block), half(&block[2..]));
    let q = |n| nibbles(&block[8..], n) | fifth_bit(&block[4..8], n);
    std::array::from_fn(|n| f32::from(q(n)) * d + m)
}

fn q8_0(block: &[u8; 34]) -> [f32; 32] {
    let d = half(block);
    std::array::from_fn(|n| f32::from(block[2 + n] as i8) * d)
}

/// The byte and the shift of the low two bits of number `n` of 256, in Q2_K and Q3_K.
fn pair(n: usize) -> (usize, u32) {
    (n / 128 * 32 + n % 32, (n % 128 / 32 * 2) as u32)
}

fn q2_k(block: &[u8; 84]) -> [f32; 256] {
    let (scales, q) = (&block[..16], &block[16..80]);
    let (d, min) = (half(&block[80..]), half(&block[82..]));
    std::array::from_fn(|n| {
        let (byte, shift) = pair(n);
        let scale = scales[n / 16];
        let (d, m) = (d * f32::from(scale & 15), min * f32::from(scale >> 4));
        d * f32::from(q[byte] >> shift & 3) - m
    })
}

fn q3_k(block: &[u8; 110]) -> [f32; 256] {
    let (high, q, scales, d) = (&block[..32], &block[32..96], &block[96..108], half(&block[108..]));
    // A scale has six bits: the low four in the first eight bytes, the high two in the last four bytes.
    let scale = |n: usize| {
        let low = if n < 8 { scales[n] & 15 } else { scales[n - 8] >> 4 };
        (low | (scales[8 + n % 4] >> (n / 4 * 2) & 3) << 4) as i8 - 32
    };
    std::array::from_fn(|n| {
        let (byte, shift) = pair(n);
        let set = high[n % 32] >> (n / 32) & 1 == 1;
        let q = (q[byte] >> shift & 3) as i8 - if set { 0 } else { 4 };
        d * f32::from(scale(n / 16)) * f32::from(q)
    })
}

/// The scale and the minimum of the `n`-th group of 32 numbers, six bits each.
fn scale_and_min(scales: &[u8], n: usize) -> (f32, f32) {
    let (scale, min) = if n < 4 {
        (scales[n] & 63, scales[n + 4] & 63)
    } else {
        (scales[n + 4] & 15 | scales[n - 4] >> 6 << 4, scales[n + 4] >> 4 | scales[n] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

fn q4_k(block: &[u8; 144]) -> [f32; 256] {
    let (d, min, scales, q) = (half(block), half(&block[2..]), &block[4..16], &block[16..]);
    std::array::from_fn(|n| {
        let byte = q[n / 64 * 32 + n % 32];
        let q = if n % 64 < 32 { byte & 15 } else { byte >> 4 };
        let (scale, m) = scale_and_min(scales, n / 32);
        d * scale * f32::from(q) - min * m
    })
}

fn q5_k(block: &[u8; 176]) -> [f32; 256] {
    let (d, min, scales) = (half(block), half(&block[2..]), &block[4..16]);
    let (high, q) = (&block[16..48], &block[48..]);
    std::array::from_fn(|n| {
        let byte = q[n / 64 * 32 + n % 32];
        let low = if n % 64 < 32 { byte & 15 } else { byte >> 4 };
        let q = low | (high[n % 32] >> (n / 32) & 1) << 4;
        let (scale, m) = scale_and_min(scales, n / 32);
        d * scale * f32::from(q) - min * m
    })
}

fn q6_k(block: &[u8; 210]) -> [f32; 256] {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(&block[208..]));
    std::array::from_fn(|n| {
        let (half, quarter, place) = (n / 128, n % 128 / 32, n % 32);
        let byte = low[half * 64 + quarter % 2 * 32 + place];
        let nibble = if quarter < 2 { byte & 15 } else { byte >> 4 };
        let q = (nibble | (high[half * 32 + place] >> (quarter * 2) & 3) << 4) as i8 - 32;
        d * f32::from(scales[n / 16] as i8) * f32::from(q)
    })
}

#[cfg(test)]
mod tests;

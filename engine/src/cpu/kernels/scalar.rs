//! Kernels in plain Rust, for every architecture.

use super::lanes::Lanes;
use super::{Kernels, PANEL, Product, QuantisedProduct, kernels, matrix, pointwise};

pub(super) struct Scalar;

impl Lanes for Scalar {
    type V = [f32; 16];
    const ROWS: usize = 3;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        [value; 16]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller's contract.
        unsafe { from.cast::<[f32; 16]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        // SAFETY: the caller's contract.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self::V {
        // SAFETY: the caller's contract.
        let halves = unsafe { from.cast::<[[u8; 2]; 16]>().read() };
        halves.map(|bytes| half::f16::from_le_bytes(bytes).to_f32_const())
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self::V {
        // SAFETY: the caller's contract.
        unsafe { from.cast::<[i8; 16]>().read() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> (Self::V, Self::V) {
        // SAFETY: the caller's contract.
        let bytes = unsafe { from.cast::<[u8; 16]>().read() };
        (bytes.map(|byte| f32::from(byte & 15)), bytes.map(|byte| f32::from(byte >> 4)))
    }

    #[inline(always)]
    unsafe fn transpose(rows: [Self::V; 16]) -> [Self::V; 16] {
        std::array::from_fn(|column| rows.map(|row| row[column]))
    }
}

kernels!("scalar", Scalar);

//! AVX-512. A vector of 16 floats is one register. The 32 registers hold 12 rows of two registers each.

use std::arch::x86_64::*;

use super::lanes::Lanes;
use super::{Kernels, Product, QuantisedProduct, kernels, matrix, pointwise};

pub(super) struct Avx512;

// SAFETY (all methods): the contract of `Lanes` covers the intrinsics and the memory accesses.
impl Lanes for Avx512 {
    type V = __m512;
    const ROWS: usize = 12;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> (Self::V, Self::V) {
        // SAFETY: see above.
        unsafe {
            let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            let low = _mm512_and_si512(wide, _mm512_set1_epi32(15));
            let high = _mm512_srli_epi32::<4>(wide);
            (_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high))
        }
    }
}

kernels!("avx512", Avx512, target_feature(enable = "avx512f,avx2,fma,f16c"));

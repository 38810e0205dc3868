//! AVX2 with FMA and F16C. A vector of 16 floats is two registers. The 16 registers hold 3 rows of four registers each.

use std::arch::x86_64::*;

use super::lanes::Lanes;
use super::{Kernels, Product, QuantisedProduct, kernels, matrix, pointwise};

pub(super) struct Avx2;

// SAFETY (all methods): the contract of `Lanes` covers the intrinsics and the memory accesses.
impl Lanes for Avx2 {
    type V = [__m256; 2];
    const ROWS: usize = 3;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: see above.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(to, value[0]);
            _mm256_storeu_ps(to.add(8), value[1]);
        }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self::V {
        // SAFETY: see above.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self::V {
        // SAFETY: see above.
        unsafe {
            let (first, second) = (_mm_loadl_epi64(from.cast()), _mm_loadl_epi64(from.add(8).cast()));
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(first)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(second)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> (Self::V, Self::V) {
        // SAFETY: see above.
        unsafe {
            let first = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
            let second = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.add(8).cast()));
            let mask = _mm256_set1_epi32(15);
            (
                [
                    _mm256_cvtepi32_ps(_mm256_and_si256(first, mask)),
                    _mm256_cvtepi32_ps(_mm256_and_si256(second, mask)),
                ],
                [
                    _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(first)),
                    _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(second)),
                ],
            )
        }
    }
}

kernels!("avx2", Avx2, target_feature(enable = "avx2,fma,f16c"));

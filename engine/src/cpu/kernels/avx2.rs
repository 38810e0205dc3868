//! AVX2 with FMA and F16C. A vector of 16 floats is two registers. The 16 registers hold 3 rows of four registers each.

use std::arch::x86_64::*;

use super::lanes::Lanes;
use super::{Kernels, PANEL, Product, QuantisedProduct, kernels, matrix, pointwise};

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

    #[inline(always)]
    unsafe fn transpose(rows: [Self::V; 16]) -> [Self::V; 16] {
        // SAFETY: see above.
        unsafe {
            let mut columns = rows;
            for half in 0..2 {
                for lane in 0..2 {
                    let mut block = [_mm256_setzero_ps(); 8];
                    for row in 0..8 {
                        block[row] = rows[8 * half + row][lane];
                    }
                    let block = transpose_8(block);
                    for column in 0..8 {
                        columns[8 * lane + column][half] = block[column];
                    }
                }
            }
            columns
        }
    }
}

/// # Safety
/// The machine supports AVX2.
#[inline(always)]
unsafe fn transpose_8(rows: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the caller's contract.
    unsafe {
        let mut quads = rows;
        for group in 0..2 {
            let first = 4 * group;
            let (a, b, c, d) = (rows[first], rows[first + 1], rows[first + 2], rows[first + 3]);
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            quads[4 * group] = _mm256_shuffle_ps::<0x44>(ab, cd);
            quads[4 * group + 1] = _mm256_shuffle_ps::<0xee>(ab, cd);
            quads[4 * group + 2] = _mm256_shuffle_ps::<0x44>(ab_high, cd_high);
            quads[4 * group + 3] = _mm256_shuffle_ps::<0xee>(ab_high, cd_high);
        }
        let mut columns = quads;
        for i in 0..4 {
            columns[i] = _mm256_permute2f128_ps::<0x20>(quads[i], quads[4 + i]);
            columns[4 + i] = _mm256_permute2f128_ps::<0x31>(quads[i], quads[4 + i]);
        }
        columns
    }
}

kernels!("avx2", Avx2, target_feature(enable = "avx2,fma,f16c"));

//! AVX-512. A vector of 16 floats is one register. The 32 registers hold 12 rows of two registers each.

use std::arch::x86_64::*;

use super::lanes::Lanes;
use super::{Kernels, PANEL, Product, QuantisedProduct, kernels, matrix, pointwise};

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

    #[inline(always)]
    unsafe fn transpose(rows: [Self::V; 16]) -> [Self::V; 16] {
        // SAFETY: see above.
        unsafe {
            // Each step transposes blocks of the double size: pairs, then quads of numbers, within the four lanes of 128 bits.
            let mut quads = [_mm512_setzero_ps(); 16];
            for group in 0..4 {
                let first = 4 * group;
                let (a, b, c, d) = (rows[first], rows[first + 1], rows[first + 2], rows[first + 3]);
                let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
                let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
                quads[4 * group] = _mm512_shuffle_ps::<0x44>(ab, cd);
                quads[4 * group + 1] = _mm512_shuffle_ps::<0xee>(ab, cd);
                quads[4 * group + 2] = _mm512_shuffle_ps::<0x44>(ab_high, cd_high);
                quads[4 * group + 3] = _mm512_shuffle_ps::<0xee>(ab_high, cd_high);
            }
            // Lane `l` of `quads[4 * g + i]` has column `4 * l + i` of the rows `4 * g` to `4 * g + 3`.
            let mut columns = quads;
            for i in 0..4 {
                let (a, b, c, d) = (quads[i], quads[4 + i], quads[8 + i], quads[12 + i]);
                let (ab, cd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
                let (ab_odd, cd_odd) =
                    (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
                columns[i] = _mm512_shuffle_f32x4::<0x88>(ab, cd);
                columns[4 + i] = _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd);
                columns[8 + i] = _mm512_shuffle_f32x4::<0xdd>(ab, cd);
                columns[12 + i] = _mm512_shuffle_f32x4::<0xdd>(ab_odd, cd_odd);
            }
            columns
        }
    }
}

kernels!("avx512", Avx512, target_feature(enable = "avx512f,avx2,fma,f16c"));

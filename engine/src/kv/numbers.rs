//! Reads and writes the keys and values in the pages of a pool in host memory.

use half::bf16;

use super::KvDtype;
use crate::e4m3;

impl KvDtype {
    /// Writes numbers in this format, each rounded to the nearest one and, of two, to the one with an even code. In FP8, numbers beyond ±448 become ±448,
    /// and what is not a number gets the code 0x7f.
    ///
    /// # Safety
    /// `to` is valid for writes of `from.len()` numbers of this format and aligned for one. No other thread accesses them.
    pub(crate) unsafe fn write(self, from: &[f32], to: *mut u8) {
        // SAFETY (all arms): the caller's contract.
        match self {
            Self::F32 => unsafe { to.cast::<f32>().copy_from_nonoverlapping(from.as_ptr(), from.len()) },
            Self::Bf16 => {
                for (index, number) in from.iter().enumerate() {
                    unsafe { to.cast::<bf16>().add(index).write(bf16::from_f32(*number)) };
                }
            }
            Self::Fp8 => {
                for (index, number) in from.iter().enumerate() {
                    unsafe { to.add(index).write(e4m3::encode(*number / Self::SCALE)) };
                }
            }
        }
    }

    /// Gives `count` numbers in this format, in order.
    ///
    /// # Safety
    /// `from` points to `count` initialised numbers of this format and is aligned for one. No other thread writes them.
    #[inline]
    pub(crate) unsafe fn read(self, from: *const u8, count: usize, mut give: impl FnMut(usize, f32)) {
        // SAFETY (all arms): the caller's contract.
        match self {
            Self::F32 => {
                (0..count).for_each(|index| give(index, unsafe { from.cast::<f32>().add(index).read() }))
            }
            Self::Bf16 => {
                (0..count)
                    .for_each(|index| give(index, unsafe { from.cast::<bf16>().add(index).read() }.to_f32()));
            }
            Self::Fp8 => {
                (0..count).for_each(|index| {
                    give(index, e4m3::value(unsafe { from.add(index).read() }) * Self::SCALE)
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers that come back after they were written in a format.
    fn kept(dtype: KvDtype, numbers: &[f32]) -> Vec<f32> {
        let mut words = vec![0u32; numbers.len()];
        let mut found = vec![0.0; numbers.len()];
        // SAFETY: the words are aligned, and have four bytes for each number.
        unsafe {
            dtype.write(numbers, words.as_mut_ptr().cast());
            dtype.read(words.as_ptr().cast(), numbers.len(), |index, number| found[index] = number);
        }
        found
    }

    #[test]
    fn numbers_are_rounded_to_those_of_the_format() {
        let third = 1.0 / 3.0;
        let check = |dtype, number: f32, expect: f32| {
            assert_eq!(kept(dtype, &[7.0, number, -7.0]), [7.0, expect, -7.0])
        };
        check(KvDtype::F32, third, third);
        check(KvDtype::Bf16, third, bf16::from_f32(third).to_f32());
        check(KvDtype::Fp8, third, 0.34375);
        // Between 1 and 1.125, and between 1.125 and 1.25: the even code.
        check(KvDtype::Fp8, 1.0625, 1.0);
        check(KvDtype::Fp8, 1.1875, 1.25);
        for large in [449.0, 1e30, f32::INFINITY] {
            check(KvDtype::Fp8, large, 448.0);
            check(KvDtype::Fp8, -large, -448.0);
        }
    }

    #[test]
    fn what_is_not_a_number_has_one_code() {
        for number in [f32::NAN, -f32::NAN] {
            let mut code = 0;
            // SAFETY: the code is one byte.
            unsafe { KvDtype::Fp8.write(&[number], &raw mut code) };
            assert_eq!(code, 0x7f);
            assert!(kept(KvDtype::Fp8, &[number])[0].is_nan());
        }
    }
}

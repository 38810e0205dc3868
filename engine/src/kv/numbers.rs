//! Reads and writes the keys and values in the pages of a pool in host memory.

use half::bf16;

use super::KvDtype;
use crate::e4m3;

impl KvDtype {
    /// The bytes of numbers in this format, and the numbers that these bytes are. For tests of other backends.
    #[doc(hidden)]
    #[must_use]
    pub fn kept(self, numbers: &[f32]) -> (Vec<u8>, Vec<f32>) {
        let mut words = vec![0u32; numbers.len()];
        let mut found = vec![0.0; numbers.len()];
        // SAFETY: the words are aligned, and have four bytes for each number.
        unsafe {
            self.write(numbers, words.as_mut_ptr().cast());
            self.read(words.as_ptr().cast(), numbers.len(), |index, number| found[index] = number);
        }
        let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
        (bytes.take(numbers.len() * self.bytes() as usize).collect(), found)
    }

    /// Writes numbers in this format, each rounded to the nearest one and, of two, to the one with an even code. In FP8, numbers beyond ±448 become ±448,
    /// and NaN gets the code 0x7f.
    ///
    /// # Safety
    /// `to` is valid for writes of `from.len()` numbers of this format and aligned for one. No other thread accesses them.
    pub(crate) unsafe fn write(self, from: &[f32], to: *mut u8) {
        // SAFETY: the caller's contract.
        unsafe {
            match self {
                Self::F32 => to.cast::<f32>().copy_from_nonoverlapping(from.as_ptr(), from.len()),
                Self::Bf16 => {
                    let to = to.cast::<bf16>();
                    from.iter().enumerate().for_each(|(n, number)| to.add(n).write(bf16::from_f32(*number)));
                }
                Self::Fp8 => {
                    let code = |number: f32| e4m3::encode(number / Self::SCALE);
                    from.iter().enumerate().for_each(|(n, number)| to.add(n).write(code(*number)));
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
        // SAFETY: the caller's contract.
        unsafe {
            match self {
                Self::F32 => (0..count).for_each(|n| give(n, from.cast::<f32>().add(n).read())),
                Self::Bf16 => (0..count).for_each(|n| give(n, from.cast::<bf16>().add(n).read().to_f32())),
                Self::Fp8 => (0..count).for_each(|n| give(n, e4m3::value(from.add(n).read()) * Self::SCALE)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_those_of_the_format() {
        let third = 1.0 / 3.0;
        let check = |dtype: KvDtype, number: f32, expect: f32| {
            assert_eq!(dtype.kept(&[7.0, number, -7.0]).1, [7.0, expect, -7.0])
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
            let (codes, numbers) = KvDtype::Fp8.kept(&[number]);
            assert!(codes == [0x7f] && numbers[0].is_nan());
        }
    }
}

//! Compares every instruction set with plain Rust bit for bit, and with f64 within a tolerance.

use proptest::prelude::*;

use super::*;
use crate::testing::Random;

fn floats(random: &mut Random, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.float()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A panel of blocks with small scales and random quantised numbers.
fn panel(random: &mut Random, blocks: usize, block_bytes: usize, halves: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..blocks * block_bytes).map(|_| random.next() as u8).collect();
    for block in bytes.chunks_exact_mut(block_bytes) {
        for half in block[..2 * halves].as_chunks_mut::<2>().0 {
            *half = half::f16::from_f32(random.float() / 8.0).to_le_bytes();
        }
    }
    bytes
}

fn run_product(
    kernels: &Kernels,
    rows: usize,
    depth: usize,
    x: &[f32],
    w: &[f32],
    y: &[f32],
    accumulate: bool,
) -> Vec<f32> {
    let mut y = y.to_vec();
    assert!(x.len() == rows * depth && w.len() == depth * PANEL && y.len() == rows * PANEL);
    let job = Product {
        rows,
        depth,
        x: x.as_ptr(),
        x_stride: depth,
        w: w.as_ptr(),
        w_stride: PANEL,
        y: y.as_mut_ptr(),
        y_stride: PANEL,
        accumulate,
    };
    // SAFETY: the sizes are checked above, and this machine supports the kernels.
    unsafe { (kernels.product)(&job) };
    y
}

#[test]
fn this_machine_has_a_table() {
    let names: Vec<_> = Kernels::all().iter().map(|kernels| kernels.name).collect();
    assert_eq!(names.last(), Some(&"scalar"));
    assert_eq!(Kernels::choose().name, names[0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn products_are_equal_on_all_sets(rows in 1usize..40, depth in 1usize..70, accumulate: bool, seed: u64) {
        let mut random = Random(seed);
        let (x, w) = (floats(&mut random, rows * depth), floats(&mut random, depth * PANEL));
        let y = floats(&mut random, rows * PANEL);
        let expect = run_product(&scalar::KERNELS, rows, depth, &x, &w, &y, accumulate);
        for kernels in Kernels::all() {
            let got = run_product(kernels, rows, depth, &x, &w, &y, accumulate);
            prop_assert_eq!(bits(&got), bits(&expect), "{}", kernels.name);
        }
        for (at, got) in expect.iter().enumerate() {
            let (row, column) = (at / PANEL, at % PANEL);
            let start = if accumulate { f64::from(y[at]) } else { 0.0 };
            let sum = (0..depth)
                .map(|k| f64::from(x[row * depth + k]) * f64::from(w[k * PANEL + column]))
                .fold(start, |sum, term| sum + term);
            prop_assert!((sum - f64::from(*got)).abs() < 1e-5, "{} {}", sum, got);
        }
    }

    #[test]
    fn every_set_transposes(depth in 1usize..70, seed: u64) {
        let x = floats(&mut Random(seed), PANEL * depth);
        let rows = std::array::from_fn(|row| x[row * depth..].as_ptr());
        for kernels in Kernels::all() {
            let mut out = vec![f32::NAN; depth * PANEL];
            // SAFETY: the rows have `depth` floats and `out` has `depth` rows. This machine supports the kernels.
            unsafe { (kernels.transpose)(&rows, depth, out.as_mut_ptr()) };
            for (at, got) in out.iter().enumerate() {
                prop_assert_eq!(*got, x[at % PANEL * depth + at / PANEL], "{} {}", kernels.name, at);
            }
        }
    }

    #[test]
    fn fused_products_equal_unpacked_ones(rows in 1usize..=FUSED_ROWS, blocks in 1usize..5, q4: bool, seed: u64) {
        let mut random = Random(seed);
        let depth = blocks * BLOCK;
        let x = floats(&mut random, rows * depth);
        let panel = if q4 { panel(&mut random, blocks, Q4_BYTES, 64) } else { panel(&mut random, blocks, Q8_BYTES, 32) };
        let mut expect = None;
        for kernels in Kernels::all() {
            let (mut w, mut y) = (vec![0.0; depth * PANEL], vec![0.0; rows * PANEL]);
            let (unpack, fused) =
                if q4 { (kernels.unpack_q4, kernels.product_q4) } else { (kernels.unpack_q8, kernels.product_q8) };
            let job = QuantisedProduct {
                rows, blocks, panel: panel.as_ptr(), x: x.as_ptr(), x_stride: depth, y: y.as_mut_ptr(), y_stride: PANEL,
            };
            // SAFETY: all buffers have the sizes in `job`, and this machine supports the kernels.
            unsafe {
                unpack(panel.as_ptr(), blocks, w.as_mut_ptr());
                fused(&job);
            }
            let unpacked = run_product(kernels, rows, depth, &x, &w, &vec![0.0; rows * PANEL], false);
            prop_assert_eq!(bits(&y), bits(&unpacked), "{}", kernels.name);
            let all = (bits(&w), bits(&y));
            prop_assert_eq!(expect.get_or_insert_with(|| all.clone()), &all, "{}", kernels.name);
        }
    }

    #[test]
    fn pointwise_kernels_are_equal_on_all_sets(length in 1usize..80, valid in any::<proptest::sample::Index>(), seed: u64) {
        let mut random = Random(seed);
        let (x, up) = (floats(&mut random, length), floats(&mut random, length));
        let x: Vec<f32> = x.iter().map(|x| x * 40.0).collect();
        let valid = valid.index(length) + 1;
        let mut expect = None;
        for kernels in Kernels::all() {
            let (mut row, mut gate, mut norm) = (x.clone(), x.clone(), vec![0.0; length]);
            // SAFETY: this machine supports the kernels.
            let sum = unsafe {
                (kernels.swiglu)(&mut gate, &up);
                (kernels.rms_norm)(&x, &up, 1e-5, &mut norm);
                (kernels.exponentials)(&mut row, valid, 0.125)
            };
            let exact: f64 = row.iter().map(|&weight| f64::from(weight)).sum();
            prop_assert!((exact - f64::from(sum)).abs() <= 1e-5 * exact);
            prop_assert!(row[valid..].iter().all(|&weight| weight == 0.0));
            let all = (bits(&row), bits(&gate), bits(&norm), sum.to_bits());
            prop_assert_eq!(expect.get_or_insert_with(|| all.clone()), &all, "{}", kernels.name);
        }
        for ((got, x), up) in expect.unwrap().1.iter().zip(&x).zip(&up) {
            let (x, up) = (f64::from(*x), f64::from(*up));
            prop_assert!((f64::from(f32::from_bits(*got)) - x / (1.0 + (-x).exp()) * up).abs() < 1e-5);
        }
    }
}

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    for step in -87_000..88_000 {
        let x = step as f32 / 1000.0;
        let (got, exact) = (f64::from(pointwise::exp(x)), f64::from(x).exp());
        assert!(
            (got / exact - 1.0).abs() <= 2.0 * f64::from(f32::EPSILON),
            "exp({x}) = {got}, expected {exact}"
        );
    }
    assert_eq!(pointwise::exp(0.0), 1.0);
    assert!(pointwise::exp(-1e30) < 1e-37);
    assert!(pointwise::exp(1e30).is_finite());
}

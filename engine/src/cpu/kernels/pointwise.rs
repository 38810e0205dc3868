//! Element-wise kernels, and sums over one row. The compiler vectorises this plain code in the callers that enable an
//! instruction set. Sums use 16 fixed lanes, so their order is the same for every instruction set.

const LANES: usize = 16;

/// `exp(x)` within 2 ULP for `-87 <= x <= 88`. Outside this range, the value at the nearer end.
///
/// The algorithm is Cephes' `expf`: `exp(x) = 2^n · exp(r)` with `n = round(x / ln 2)` and a polynomial of degree 7 in `r`.
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "the published constants")]
pub(super) fn exp(x: f32) -> f32 {
    /// 1.5 · 2^23. Adding it leaves the rounded integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.987_569_15e-4f32;
    for c in [1.398_199_95e-3, 8.333_451_9e-3, 4.166_579_6e-2, 1.666_666_55e-1, 5.000_000_1e-1] {
        p = p.mul_add(r, c);
    }
    let series = p.mul_add(r * r, r) + 1.0;
    series * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// The sum of the lanes, by a pairwise tree.
#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// See [`Kernels::exponentials`](super::Kernels::exponentials).
#[inline(always)]
pub(super) fn exponentials(row: &mut [f32], valid: usize, scale: f32) -> f32 {
    let (scores, rest) = row.split_at_mut(valid);
    let mut highest = [f32::NEG_INFINITY; LANES];
    let (whole, tail) = scores.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            highest[lane] = if chunk[lane] > highest[lane] { chunk[lane] } else { highest[lane] };
        }
    }
    let max = highest.iter().chain(tail).fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let mut sums = [0.0; LANES];
    let (whole, tail) = scores.as_chunks_mut::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            chunk[lane] = exp((chunk[lane] - max) * scale);
            sums[lane] += chunk[lane];
        }
    }
    for (score, sum) in tail.iter_mut().zip(&mut sums) {
        *score = exp((*score - max) * scale);
        *sum += *score;
    }
    rest.fill(0.0);
    fold(sums)
}

/// See [`Kernels::swiglu`](super::Kernels::swiglu).
#[inline(always)]
pub(super) fn swiglu(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// See [`Kernels::rms_norm`](super::Kernels::rms_norm).
#[inline(always)]
pub(super) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let mut sums = [0.0f32; LANES];
    let (whole, tail) = x.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            sums[lane] = chunk[lane].mul_add(chunk[lane], sums[lane]);
        }
    }
    for (x, sum) in tail.iter().zip(&mut sums) {
        *sum = x.mul_add(*x, *sum);
    }
    let factor = 1.0 / (fold(sums) / x.len() as f32 + epsilon).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * factor * weight;
    }
}

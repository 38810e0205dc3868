//! Rotary position embedding of adjacent pairs, which is the engine's order of queries and keys.

/// The cosines and sines of a step's positions. They are computed once per step, and all layers use them.
#[derive(Debug)]
pub(super) struct Rope {
    inverse_frequencies: Vec<f32>,
    /// `[row][head_dim / 2]` pairs of cosine and sine.
    table: Vec<(f32, f32)>,
}

impl Rope {
    /// Creates an empty table for the model's inverse frequencies.
    pub(super) fn new(inverse_frequencies: Vec<f32>) -> Self {
        Self { inverse_frequencies, table: Vec::new() }
    }

    /// Computes the table for rows at these positions.
    pub(super) fn prepare(&mut self, positions: impl Iterator<Item = u32>) {
        self.table.clear();
        for position in positions {
            self.table.extend(self.inverse_frequencies.iter().map(|frequency| {
                let (sine, cosine) = (position as f32 * frequency).sin_cos();
                (cosine, sine)
            }));
        }
    }

    /// Rotates all heads of one row.
    pub(super) fn rotate(&self, row: usize, heads: &mut [f32]) {
        let pairs = self.inverse_frequencies.len();
        let table = &self.table[row * pairs..][..pairs];
        for head in heads.chunks_exact_mut(2 * pairs) {
            for (pair, &(cosine, sine)) in head.as_chunks_mut::<2>().0.iter_mut().zip(table) {
                let [a, b] = *pair;
                *pair = [a * cosine - b * sine, a * sine + b * cosine];
            }
        }
    }
}

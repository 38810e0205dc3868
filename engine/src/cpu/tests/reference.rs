//! A plain reference implementation in f64, without pages, chunks or threads.

use std::collections::HashMap;

use crate::testing::Tiny;

type Rows = Vec<Vec<f64>>;

struct Reference<'a> {
    model: &'a Tiny,
    tensors: HashMap<String, Vec<f32>>,
}

/// The logits after the last token.
pub(super) fn logits(model: &Tiny, tokens: &[u32]) -> Vec<f64> {
    let reference = Reference { model, tensors: model.build().1 };
    let hidden = model.hidden as usize;
    let embedding = reference.floats("token_embd");
    let mut x: Rows =
        tokens.iter().map(|&token| embedding[token as usize * hidden..][..hidden].to_vec()).collect();
    for layer in 0..Tiny::LAYERS {
        let name = |tensor: &str| format!("blk.{layer}.{tensor}");
        let attended = reference.attention(layer, &reference.norm(&name("attn_norm"), &x));
        add(&mut x, &reference.linear(&name("attn_output"), &attended));
        let normed = reference.norm(&name("ffn_norm"), &x);
        let (mut gate, up) =
            (reference.linear(&name("ffn_gate"), &normed), reference.linear(&name("ffn_up"), &normed));
        for (gate, up) in gate.iter_mut().flatten().zip(up.iter().flatten()) {
            *gate = *gate / (1.0 + (-*gate).exp()) * up;
        }
        add(&mut x, &reference.linear(&name("ffn_down"), &gate));
    }
    let last = reference.norm("output_norm", &x[x.len() - 1..]);
    reference.linear(if model.tied { "token_embd" } else { "output" }, &last).remove(0)
}

fn add(x: &mut Rows, more: &Rows) {
    x.iter_mut().flatten().zip(more.iter().flatten()).for_each(|(x, more)| *x += more);
}

impl Reference<'_> {
    fn floats(&self, name: &str) -> Vec<f64> {
        self.given(&format!("{name}.weight")).unwrap()
    }

    fn given(&self, name: &str) -> Option<Vec<f64>> {
        Some(self.tensors.get(name)?.iter().map(|&value| f64::from(value)).collect())
    }

    fn linear(&self, name: &str, x: &[Vec<f64>]) -> Rows {
        let weights = self.floats(name);
        let dot = |row: &[f64], x: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum();
        let mut y: Rows =
            x.iter().map(|x| weights.chunks_exact(x.len()).map(|row| dot(row, x)).collect()).collect();
        if let Some(bias) = self.given(&format!("{name}.bias")) {
            y.iter_mut().for_each(|y| y.iter_mut().zip(&bias).for_each(|(y, bias)| *y += bias));
        }
        y
    }

    /// Normalises each head, if the model has such a norm.
    fn norm_heads(&self, name: &str, rows: &mut Rows) {
        if self.given(&format!("{name}.weight")).is_none() {
            return;
        }
        for row in rows {
            let heads: Rows = row.chunks_exact(Tiny::HEAD_DIM as usize).map(<[f64]>::to_vec).collect();
            *row = self.norm(name, &heads).concat();
        }
    }

    fn norm(&self, name: &str, x: &[Vec<f64>]) -> Rows {
        let weight = self.floats(name);
        x.iter()
            .map(|x| {
                let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
                let factor = 1.0 / (mean + f64::from(Tiny::EPSILON)).sqrt();
                x.iter().zip(&weight).map(|(x, w)| x * factor * w).collect()
            })
            .collect()
    }

    fn rotate(&self, heads: &mut Rows) {
        let size = Tiny::HEAD_DIM as usize;
        let halves = self.model.architecture != "llama";
        for (position, row) in heads.iter_mut().enumerate() {
            for head in row.chunks_exact_mut(size) {
                for pair in 0..size / 2 {
                    let exponent = -2.0 * pair as f64 / size as f64;
                    // Frequency and angle are rounded to f32, as in the training of the models.
                    let frequency = f64::from(Tiny::THETA).powf(exponent) as f32;
                    let (sine, cosine) = f64::from(position as f32 * frequency).sin_cos();
                    let (one, two) = if halves { (pair, pair + size / 2) } else { (2 * pair, 2 * pair + 1) };
                    let (a, b) = (head[one], head[two]);
                    (head[one], head[two]) = (a * cosine - b * sine, a * sine + b * cosine);
                }
            }
        }
    }

    fn attention(&self, layer: u32, x: &Rows) -> Rows {
        let project = |tensor: &str| self.linear(&format!("blk.{layer}.{tensor}"), x);
        let (mut queries, mut keys, values) = (project("attn_q"), project("attn_k"), project("attn_v"));
        self.norm_heads(&format!("blk.{layer}.attn_q_norm"), &mut queries);
        self.norm_heads(&format!("blk.{layer}.attn_k_norm"), &mut keys);
        self.rotate(&mut queries);
        self.rotate(&mut keys);
        let size = Tiny::HEAD_DIM as usize;
        let (heads, group) = (self.model.heads as usize, (self.model.heads / self.model.kv_heads) as usize);
        let mut out = vec![vec![0.0; heads * size]; x.len()];
        for (position, out) in out.iter_mut().enumerate() {
            for head in 0..heads {
                let (query, shared) = (&queries[position][head * size..][..size], head / group * size);
                let weights: Vec<f64> = keys[..=position]
                    .iter()
                    .map(|key| query.iter().zip(&key[shared..]).map(|(q, k)| q * k).sum::<f64>())
                    .map(|score| (score / (size as f64).sqrt()).exp())
                    .collect();
                let sum: f64 = weights.iter().sum();
                for (weight, value) in weights.iter().zip(&values) {
                    for (out, value) in out[head * size..][..size].iter_mut().zip(&value[shared..]) {
                        *out += weight / sum * value;
                    }
                }
            }
        }
        out
    }
}

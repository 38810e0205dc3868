//! The biases of a request.

use std::ops::Deref;

/// Pairs of a token and a number that is added to its logit, ordered by token. A GPU needs the biases of a token next to each other, so they are sorted once,
/// when they are collected.
///
/// Several biases of a token keep their order and are added one after the other:
///
/// ```
/// let biases: engine::LogitBias = [(7, 1.0), (2, 0.5), (7, -3.0)].into_iter().collect();
/// assert_eq!(*biases, [(2, 0.5), (7, 1.0), (7, -3.0)]);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogitBias(Vec<(u32, f32)>);

impl LogitBias {
    /// No biases.
    pub const NONE: Self = Self(Vec::new());
}

impl From<Vec<(u32, f32)>> for LogitBias {
    fn from(mut biases: Vec<(u32, f32)>) -> Self {
        // The sort is stable.
        biases.sort_by_key(|(token, _)| *token);
        Self(biases)
    }
}

impl FromIterator<(u32, f32)> for LogitBias {
    fn from_iter<Biases: IntoIterator<Item = (u32, f32)>>(biases: Biases) -> Self {
        Vec::from_iter(biases).into()
    }
}

impl Deref for LogitBias {
    type Target = [(u32, f32)];

    fn deref(&self) -> &[(u32, f32)] {
        &self.0
    }
}

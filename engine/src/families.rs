//! The model families that the engine computes, each as data in a file of its own.
//!
//! Sizes and the tensor table are the same for all families. A [`Family`] says what differs.

mod llama;
mod mistral;
mod qwen2;
mod qwen3;

/// A family of models.
#[derive(Debug)]
pub(crate) struct Family {
    /// The family's name in errors.
    pub(crate) name: &'static str,
    /// `model_type` in a folder's `config.json`.
    pub(crate) model_type: &'static str,
    /// `general.architecture` in a GGUF file. `None` if its GGUF files have the architecture of another family.
    pub(crate) architecture: Option<&'static str>,
    /// The order of the rows of queries and keys in a GGUF file. Folders have [`RowOrder::Halves`].
    pub(crate) gguf_order: RowOrder,
    /// Queries, keys and values have biases.
    pub(crate) bias: bool,
    /// Each head of the queries and keys has an RMS norm before RoPE.
    pub(crate) qk_norm: bool,
    /// The head size of a `config.json` without `head_dim`. `None` stands for the hidden size divided by the heads.
    pub(crate) head_dim: Option<u64>,
    /// The sliding window of a `config.json`.
    pub(crate) window: WindowRule,
}

/// Where the two rows that RoPE rotates together are, in each head of the queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// The two rows are adjacent. This is the engine's order.
    Pairs,
    /// The two rows are half a head apart.
    Halves,
}

/// How a `config.json` states a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WindowRule {
    /// The family has no window.
    Never,
    /// `sliding_window` is a number or null. A file without the key has this window.
    OrAbsent(u64),
    /// As [`OrAbsent`](Self::OrAbsent), if `use_sliding_window` is true and a layer from `max_window_layers` on exists.
    IfUsed(u64),
}

const FAMILIES: [&Family; 4] = [&llama::LLAMA, &qwen2::QWEN2, &qwen3::QWEN3, &mistral::MISTRAL];

/// The family of a folder with this `model_type`.
pub(crate) fn of_model_type(model_type: &str) -> Option<&'static Family> {
    FAMILIES.into_iter().find(|family| family.model_type == model_type)
}

/// The family of a GGUF file with this `general.architecture`.
pub(crate) fn of_architecture(architecture: &str) -> Option<&'static Family> {
    FAMILIES.into_iter().find(|family| family.architecture == Some(architecture))
}

/// The names of all families.
pub(crate) fn names() -> String {
    FAMILIES.map(|family| family.name).join(", ")
}

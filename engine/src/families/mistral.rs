//! Mistral: the layers of a Llama. Version 0.1 has a sliding window.

use super::{Family, RowOrder, WindowRule};

pub(super) const MISTRAL: Family = Family {
    name: "Mistral",
    model_type: "mistral",
    // llama.cpp converts Mistral to a Llama.
    architecture: None,
    gguf_order: RowOrder::Pairs,
    bias: false,
    qk_norm: false,
    head_dim: None,
    window: WindowRule::OrAbsent(4096),
};

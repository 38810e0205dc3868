//! Llama 2 and 3, and models with the same layers, for example SmolLM2 and TinyLlama.

use super::{Family, RowOrder, WindowRule};

pub(super) const LLAMA: Family = Family {
    name: "Llama",
    model_type: "llama",
    architecture: Some("llama"),
    gguf_order: RowOrder::Pairs,
    bias: false,
    qk_norm: false,
    head_dim: None,
    window: WindowRule::Never,
};

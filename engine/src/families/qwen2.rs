//! Qwen2 and Qwen2.5: queries, keys and values have biases.

use super::{Family, RowOrder, WindowRule};

pub(super) const QWEN2: Family = Family {
    name: "Qwen2",
    model_type: "qwen2",
    architecture: Some("qwen2"),
    gguf_order: RowOrder::Halves,
    bias: true,
    qk_norm: false,
    head_dim: None,
    window: WindowRule::IfUsed(4096),
};

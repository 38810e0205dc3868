//! Qwen3 without experts: RMS norms of queries and keys. The head size does not follow from the hidden size.

use super::{Family, RowOrder, WindowRule};

pub(super) const QWEN3: Family = Family {
    name: "Qwen3",
    model_type: "qwen3",
    architecture: Some("qwen3"),
    gguf_order: RowOrder::Halves,
    bias: false,
    qk_norm: true,
    head_dim: Some(128),
    window: WindowRule::IfUsed(4096),
};

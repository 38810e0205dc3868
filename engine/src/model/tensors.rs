//! The tensor table: every tensor of a model, with its names in both formats, its dimensions, the matrix that it is stacked
//! into, the axis of a split across GPUs, and the order of its rows.
//!
//! Backends, checkpoints, random weights and counts read this table. There is no other list of tensors.

use super::spec::ModelSpec;

/// The use of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TensorRole {
    Embedding,
    Output,
    FinalNorm,
    AttentionNorm,
    Query,
    Key,
    Value,
    QueryBias,
    KeyBias,
    ValueBias,
    QueryNorm,
    KeyNorm,
    AttentionOutput,
    FeedNorm,
    Gate,
    Up,
    Down,
}

/// The axis along which tensor parallelism splits a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Split {
    /// Each GPU has some of the outputs.
    Outputs,
    /// Each GPU has some of the inputs, and the GPUs add their products.
    Inputs,
    /// Each GPU has the whole tensor.
    Whole,
}

/// A tensor of a model.
#[derive(Clone, Debug)]
pub(crate) struct TensorRow {
    pub(crate) role: TensorRole,
    /// `None` for a tensor outside the layers.
    pub(crate) layer: Option<usize>,
    /// The first tensor of the matrix that this tensor is stacked into. All tensors of a matrix have the same inputs.
    #[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "the CPU stacks nothing"))]
    pub(crate) stack: TensorRole,
    /// The name in a GGUF file.
    pub(crate) gguf: String,
    /// The name in a Hugging Face folder.
    pub(crate) hugging_face: String,
    /// `[inputs, outputs]` of a matrix, or the length of a vector.
    pub(crate) dimensions: Vec<usize>,
    /// True if RoPE rotates the outputs. The formats order their rows differently.
    pub(crate) rotated: bool,
    #[cfg_attr(not(test), expect(dead_code, reason = "for tensor parallelism"))]
    pub(crate) split: Split,
}

impl TensorRow {
    /// The numbers in the tensor.
    pub(crate) fn elements(&self) -> usize {
        self.dimensions.iter().product()
    }

    /// True for the matrices of a layer, whose weights [`Quantization::Fp8Weights`](crate::Quantization::Fp8Weights) rounds.
    pub(crate) fn is_quantised(&self) -> bool {
        [Query, Key, Value, AttentionOutput, Gate, Up, Down].contains(&self.role)
    }

    /// True if the tensor is the factors of a norm. Random weights have ones there.
    #[cfg(feature = "cuda")]
    pub(crate) fn is_norm(&self) -> bool {
        use TensorRole::{AttentionNorm, FeedNorm, FinalNorm, KeyNorm, QueryNorm};
        [FinalNorm, AttentionNorm, FeedNorm, QueryNorm, KeyNorm].contains(&self.role)
    }
}

/// A size of the model.
#[derive(Clone, Copy)]
enum Extent {
    Hidden,
    Query,
    Key,
    Head,
    FeedForward,
    Vocabulary,
}

/// Which models have a tensor.
#[derive(Clone, Copy)]
enum In {
    All,
    Untied,
    Biased,
    Normed,
}

/// A tensor of any model: role, stack, name in GGUF, name in Hugging Face, dimensions, rotated, split, and which models have
/// it.
type Entry = (TensorRole, TensorRole, &'static str, &'static str, &'static [Extent], bool, Split, In);

use Extent::{FeedForward, Head, Hidden, Key as Keys, Query as Queries, Vocabulary};
use In::{All, Biased, Normed, Untied};
use Split::{Inputs, Outputs, Whole};
use TensorRole::{
    AttentionNorm, AttentionOutput, Down, Embedding, FeedNorm, FinalNorm, Gate, Key, KeyBias, KeyNorm,
    Output, Query, QueryBias, QueryNorm, Up, Value, ValueBias,
};

#[rustfmt::skip]
const OUTSIDE: [Entry; 3] = [
    (Embedding, Embedding, "token_embd.weight",  "model.embed_tokens.weight", &[Hidden, Vocabulary], false, Outputs, All),
    (Output,    Output,    "output.weight",      "lm_head.weight",            &[Hidden, Vocabulary], false, Outputs, Untied),
    (FinalNorm, FinalNorm, "output_norm.weight", "model.norm.weight",         &[Hidden],             false, Whole,   All),
];

#[rustfmt::skip]
const LAYER: [Entry; 14] = [
    (AttentionNorm,   AttentionNorm,   "attn_norm.weight",   "input_layernorm.weight",          &[Hidden],              false, Whole,   All),
    (Query,           Query,           "attn_q.weight",      "self_attn.q_proj.weight",         &[Hidden, Queries],     true,  Outputs, All),
    (Key,             Query,           "attn_k.weight",      "self_attn.k_proj.weight",         &[Hidden, Keys],        true,  Outputs, All),
    (Value,           Query,           "attn_v.weight",      "self_attn.v_proj.weight",         &[Hidden, Keys],        false, Outputs, All),
    (QueryBias,       QueryBias,       "attn_q.bias",        "self_attn.q_proj.bias",           &[Queries],             true,  Outputs, Biased),
    (KeyBias,         QueryBias,       "attn_k.bias",        "self_attn.k_proj.bias",           &[Keys],                true,  Outputs, Biased),
    (ValueBias,       QueryBias,       "attn_v.bias",        "self_attn.v_proj.bias",           &[Keys],                false, Outputs, Biased),
    (QueryNorm,       QueryNorm,       "attn_q_norm.weight", "self_attn.q_norm.weight",         &[Head],                true,  Whole,   Normed),
    (KeyNorm,         QueryNorm,       "attn_k_norm.weight", "self_attn.k_norm.weight",         &[Head],                true,  Whole,   Normed),
    (AttentionOutput, AttentionOutput, "attn_output.weight", "self_attn.o_proj.weight",         &[Queries, Hidden],     false, Inputs,  All),
    (FeedNorm,        FeedNorm,        "ffn_norm.weight",    "post_attention_layernorm.weight", &[Hidden],              false, Whole,   All),
    (Gate,            Gate,            "ffn_gate.weight",    "mlp.gate_proj.weight",            &[Hidden, FeedForward], false, Outputs, All),
    (Up,              Gate,            "ffn_up.weight",      "mlp.up_proj.weight",              &[Hidden, FeedForward], false, Outputs, All),
    (Down,            Down,            "ffn_down.weight",    "mlp.down_proj.weight",            &[FeedForward, Hidden], false, Inputs,  All),
];

impl ModelSpec {
    /// All tensors of the model: those outside the layers, then those of each layer. The tensors of a stack are adjacent.
    pub(crate) fn tensors(&self) -> Vec<TensorRow> {
        let outside = OUTSIDE.iter().map(|entry| (None, entry));
        let layers = (0..self.layers).flat_map(|layer| LAYER.iter().map(move |entry| (Some(layer), entry)));
        outside
            .chain(layers)
            .filter(|(_, entry)| self.has(entry.7))
            .map(|(at, entry)| self.row(at, entry))
            .collect()
    }

    /// The number of parameters. A tied output counts once.
    pub(crate) fn parameters(&self) -> u64 {
        self.tensors().iter().map(|row| row.elements() as u64).sum()
    }

    fn has(&self, which: In) -> bool {
        match which {
            All => true,
            Untied => !self.tied,
            Biased => self.attention.bias,
            Normed => self.attention.qk_norm,
        }
    }

    fn row(&self, layer: Option<usize>, entry: &Entry) -> TensorRow {
        let &(role, stack, gguf, hugging_face, dimensions, rotated, split, _) = entry;
        let size = |extent: &Extent| match extent {
            Hidden => self.hidden,
            Queries => self.attention.query(),
            Keys => self.attention.key(),
            Head => self.attention.head_dim,
            FeedForward => self.feed_forward,
            Vocabulary => self.vocabulary,
        };
        let name = |folder: &str, name: &str| match layer {
            Some(layer) => format!("{folder}.{layer}.{name}"),
            None => name.to_owned(),
        };
        TensorRow {
            role,
            layer,
            stack,
            gguf: name("blk", gguf),
            hugging_face: name("model.layers", hugging_face),
            dimensions: dimensions.iter().map(size).collect(),
            rotated,
            split,
        }
    }
}

/// The GGUF name of a tensor outside the layers.
pub(crate) fn gguf_name(role: TensorRole) -> &'static str {
    OUTSIDE.iter().find(|entry| entry.0 == role).map_or("", |entry| entry.2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::{AttentionSpec, inverse_frequencies};

    fn spec(bias: bool, qk_norm: bool, tied: bool) -> ModelSpec {
        ModelSpec {
            layers: 2,
            hidden: 12,
            attention: AttentionSpec { heads: 6, kv_heads: 2, head_dim: 4, bias, qk_norm, window: None },
            feed_forward: 20,
            vocabulary: 30,
            context_tokens: 64,
            norm_epsilon: 1e-6,
            inverse_frequencies: inverse_frequencies(10_000.0, 4),
            tied,
        }
    }

    #[test]
    fn parameters_are_counted() {
        let layer = 12 * 24 * 2 + 2 * 12 * 8 + 3 * 12 * 20 + 2 * 12;
        let ends = 2 * 30 * 12 + 12;
        assert_eq!(spec(false, false, false).parameters(), 2 * layer + ends);
        assert_eq!(spec(false, false, true).parameters(), 2 * layer + ends - 30 * 12);
        assert_eq!(spec(true, true, false).parameters(), 2 * (layer + 24 + 2 * 8 + 2 * 4) + ends);
    }

    #[test]
    fn tensors_of_a_stack_are_adjacent_and_have_the_same_inputs_and_axis() {
        let rows = spec(true, true, false).tensors();
        let stacks: Vec<&[TensorRow]> =
            rows.chunk_by(|a, b| (a.layer, a.stack) == (b.layer, b.stack)).collect();
        let keys: std::collections::HashSet<_> =
            stacks.iter().map(|rows| (rows[0].layer, rows[0].stack)).collect();
        assert_eq!((keys.len(), stacks.len()), (3 + 2 * 8, 3 + 2 * 8), "a stack has rows in two places");
        for rows in stacks {
            assert_eq!(rows[0].role, rows[0].stack, "a stack is named after its first tensor");
            for row in rows {
                let inputs = row.dimensions.len() - 1;
                assert_eq!(row.dimensions[..inputs], rows[0].dimensions[..inputs], "{}", row.gguf);
                assert_eq!(row.split, rows[0].split, "{}", row.gguf);
            }
        }
    }
}

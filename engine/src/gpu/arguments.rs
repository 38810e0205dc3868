//! The arguments of the kernels. `kernels/*.cu` declare structs with the same names and layouts.
//!
//! A pointer is a device pointer unless its name contains `host`. A call reads its arguments before it returns.

use std::ffi::c_void;

use half::bf16;

#[cfg(test)]
mod tests;

/// Declares structs with C layout and checks their sizes.
macro_rules! arguments {
    ($($(#[$doc:meta])* $name:ident, $bytes:literal bytes { $($field:ident: $kind:ty,)+ })+) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Debug)]
            pub(crate) struct $name {
                $(pub(crate) $field: $kind,)+
            }
            const _: () = assert!(size_of::<$name>() == $bytes);
        )+

        /// The name, size and fields with types of every struct.
        #[cfg(test)]
        const ALL: &[(&str, usize, &[(&str, &str)])] =
            &[$((stringify!($name), $bytes, &[$((stringify!($field), stringify!($kind))),+])),+];
    };
}

arguments! {
    /// `out[r] = table[tokens[r]]`. Token -1 - n means `chosen[n]`.
    Embed, 40 bytes {
        tokens: *const i32,
        chosen: *const i32,
        table: *const bf16,
        out: *mut bf16,
        rows: i32,
        hidden: i32,
    }
    /// `x += delta`, unless `delta` is null; then `out = rms_norm(x) · weight`. With `codes` and `scales`, the result is rounded to FP8 and written there
    /// instead.
    AddRmsNorm, 64 bytes {
        x: *mut bf16,
        delta: *const bf16,
        weight: *const bf16,
        out: *mut bf16,
        codes: *mut u8,
        scales: *mut f32,
        rows: i32,
        hidden: i32,
        epsilon: f32,
    }
    /// Adds `bias` to queries, keys and values and applies `head_norms` to the heads of queries and keys, unless these are
    /// null. `qkv` is f32 with `bias` and bf16 without. Writes rotated queries to `q_out`, and rotated keys and the values to the pool,
    /// whose numbers are FP8 codes if `fp8`, else bf16.
    RopeAppend, 120 bytes {
        qkv: *const c_void,
        bias: *const bf16,
        head_norms: *const bf16,
        q_out: *mut bf16,
        pool: *mut c_void,
        positions: *const i32,
        pool_indices: *const i64,
        inverse_frequencies: *const f32,
        page_stride: i64,
        head_stride: i64,
        layer_offset: i64,
        rows: i32,
        heads: i32,
        kv_heads: i32,
        head_dim: i32,
        page_tokens: i32,
        epsilon: f32,
        fp8: i32,
    }
    /// `out[r] = silu(gate) · up`. With `codes` and `scales`, the result is rounded to FP8 and written there instead.
    SiluMul, 40 bytes {
        gate_up: *const bf16,
        out: *mut bf16,
        codes: *mut u8,
        scales: *mut f32,
        rows: i32,
        feed: i32,
    }
    /// `out[n] = x[which[n]]`.
    TakeRows, 32 bytes {
        x: *const bf16,
        which: *const i32,
        out: *mut bf16,
        count: i32,
        hidden: i32,
    }
    /// `out[i]` = a uniform number in `[-scale, scale)`, a function of `seed` and `i`.
    Fill, 32 bytes {
        out: *mut bf16,
        count: u64,
        seed: u64,
        scale: f32,
    }
    /// `out[r]` = the token sampled from row `r` of the logits with row `r` of the settings. Unless `mask_of` is null or
    /// `mask_of[r]` is negative, mask number `mask_of[r]` restricts the tokens. Unless `place_of` is null, the row has the biases from
    /// `bias_starts[r]` to before `bias_starts[r + 1]`, and place `place_of[r]` of the counts, or no penalties if that is negative.
    SampleRows, 80 bytes {
        logits: *const f32,
        settings: *const c_void,
        mask_of: *const i32,
        masks: *const u32,
        place_of: *const i32,
        bias_starts: *const i32,
        biases: *const u32,
        counts: *mut u16,
        out: *mut i32,
        rows: i32,
        vocabulary: i32,
    }
    /// Place `p` of the counts = the counts of a sequence, for each of `count` sequences. Each sequence has four words: `p`, and the offsets in `tokens`
    /// at which its prompt begins, its sampled tokens begin, and they end.
    CountTokens, 32 bytes {
        sequences: *const i32,
        tokens: *const u32,
        counts: *mut u16,
        count: i32,
        vocabulary: i32,
    }
    /// `out[r]` = the log probability of `targets[n]` at row `n` of the logits, its rank, and the `top` most probable tokens, in
    /// [`SCORE_WORDS`](crate::gpu::score::SCORE_WORDS) words. `n` is `which[r]`, or `r` if `which` is null.
    ScoreRows, 48 bytes {
        logits: *const f32,
        which: *const i32,
        targets: *const i32,
        out: *mut u32,
        rows: i32,
        vocabulary: i32,
        top: i32,
    }
    /// `y[rows][outputs] = x[rows][inputs] · weights[outputs][inputs]ᵀ`. `y` is f32 if `wide`, else bf16. The weights are bf16 without `scales`, and words
    /// of FP8 codes with the scales of their outputs.
    RowProducts, 48 bytes {
        weights: *const c_void,
        scales: *const f32,
        x: *const bf16,
        y: *mut c_void,
        wide: i32,
        rows: i32,
        outputs: i32,
        inputs: i32,
    }
    /// `words` and `scales` = `weights[outputs][inputs]`, rounded to FP8. A word has four codes: those of four inputs one after the other if `plain`,
    /// else in the order of `fp8.cuh`.
    QuantiseRows, 40 bytes {
        weights: *const bf16,
        words: *mut u32,
        scales: *mut f32,
        outputs: i32,
        inputs: i32,
        plain: i32,
    }
    /// The reverse of [`QuantiseRows`], for words that are not plain.
    DequantiseRows, 32 bytes {
        words: *const u32,
        scales: *const f32,
        weights: *mut bf16,
        outputs: i32,
        inputs: i32,
    }
    /// `codes` and `scales` = `x[rows][inputs]`, rounded to FP8 with a scale for each row.
    RoundRows, 32 bytes {
        x: *const bf16,
        codes: *mut u8,
        scales: *mut f32,
        rows: i32,
        inputs: i32,
    }
    /// `y[rows][outputs] = x[rows][inputs] · weights[outputs][inputs]ᵀ` of FP8 codes with scales of outputs and rows. `y` is f32 if `wide`, else bf16.
    Fp8Products, 56 bytes {
        weights: *const u8,
        output_scales: *const f32,
        x: *const u8,
        row_scales: *const f32,
        y: *mut c_void,
        wide: i32,
        rows: i32,
        outputs: i32,
        inputs: i32,
    }
    /// `host_out[n]` = the content sum of page `host_pages[n]`.
    PageContents, 48 bytes {
        base: *const c_void,
        page_bytes: u64,
        host_pages: *const u32,
        totals: *mut c_void,
        host_out: *mut u64,
        count: i32,
    }
    /// Assigns the query tiles of a step's prompts to multiprocessors.
    Fa3Plan, 80 bytes {
        int_workspace: *mut c_void,
        host_pinned: *mut c_void,
        int_bytes: u64,
        host_plan: *mut i64,
        host_row_starts: *const i32,
        host_page_starts: *const i32,
        host_kv_tokens: *const i32,
        rows: u32,
        chunks: u32,
        heads: u32,
        kv_heads: u32,
        page_tokens: u32,
    }
    /// Attention of a step's prompts.
    Fa3Run, 96 bytes {
        int_workspace: *mut c_void,
        host_plan: *const i64,
        q: *mut bf16,
        k_pool: *mut bf16,
        v_pool: *mut bf16,
        kv_pages: *mut i32,
        out: *mut bf16,
        page_stride: i64,
        head_stride: i64,
        rows: i64,
        page_tokens: i32,
        heads: i32,
        kv_heads: i32,
        scale: f32,
    }
    /// `out[n][kv_head]` = the layer's keys and values of a head in page `kv_pages[n]`, which are FP8 codes, in bf16.
    ExpandKv, 64 bytes {
        pool: *const c_void,
        kv_pages: *const i32,
        out: *mut bf16,
        page_stride: i64,
        head_stride: i64,
        layer_offset: i64,
        pages: i32,
        kv_heads: i32,
        page_tokens: i32,
        head_dim: i32,
    }
    /// Attention of a step's decode rows. With `codes` and `scales`, the results are rounded to FP8 and written there, and `out` then has only rows of one piece.
    DecodeRun, 176 bytes {
        partial_out: *mut bf16,
        partial_sums: *mut f32,
        piece_rows: *const i32,
        piece_starts: *const i32,
        piece_lengths: *const i32,
        row_pieces: *const i32,
        q: *const bf16,
        pool: *const c_void,
        page_starts: *const i32,
        kv_pages: *const i32,
        last_page_tokens: *const i32,
        out: *mut bf16,
        codes: *mut u8,
        scales: *mut f32,
        page_lines: i64,
        head_lines: i64,
        layer_lines: i64,
        pool_lines: i64,
        pieces: i32,
        rows: i32,
        page_tokens: i32,
        heads: i32,
        kv_heads: i32,
        head_dim: i32,
        scale: f32,
        fp8: i32,
    }
}

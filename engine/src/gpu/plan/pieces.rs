//! Split-KV pieces: the parts of a decode row's context that thread blocks attend to in parallel.

/// Maximum number of pieces of one decode row's context. `PIECES_MAX` of `kernels/decode.cu` is the same.
pub(super) const ROW_PIECES_MAX: usize = 32;
/// Minimum number of tokens in a piece, except in the last piece of a context.
const PIECE_TOKENS_MIN: usize = 256;

/// Split-KV piece length for a context of `context` tokens. The length, and the order in which the results of the
/// pieces are summed, depend only on the context, so a row's rounding does not depend on the other rows of the step.
pub(super) const fn piece_tokens(context: usize) -> usize {
    let tokens = context.div_ceil(ROW_PIECES_MAX).next_power_of_two();
    if tokens < PIECE_TOKENS_MIN { PIECE_TOKENS_MIN } else { tokens }
}

/// The number of pieces of a context of `context` tokens.
pub(super) const fn pieces(context: usize) -> usize {
    context.div_ceil(piece_tokens(context))
}

/// The piece capacity of a plan with a capacity of `rows` rows.
pub(crate) const fn pieces_max(rows: usize) -> usize {
    (rows * ROW_PIECES_MAX).next_power_of_two()
}

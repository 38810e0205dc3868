//! How contexts of decode rows are cut into pieces.

/// The most pieces of one decode row's context, and the least tokens of a piece that another follows.
const ROW_PIECES_MAX: usize = 32;
const PIECE_TOKENS_MIN: usize = 256;

/// Tokens of a piece of a context of `context` tokens. Blocks of threads attend to a context's pieces side by side, and sum the results in order. The length
/// depends on the context alone, so a row rounds alone as it does beside others.
pub(super) const fn piece_tokens(context: usize) -> usize {
    let tokens = context.div_ceil(ROW_PIECES_MAX).next_power_of_two();
    if tokens < PIECE_TOKENS_MIN { PIECE_TOKENS_MIN } else { tokens }
}

/// Pieces of a context of `context` tokens.
pub(super) const fn pieces(context: usize) -> usize {
    context.div_ceil(piece_tokens(context))
}

/// The most pieces that a plan with room for `rows` rows has room for.
pub(crate) const fn pieces_max(rows: usize) -> usize {
    (rows * ROW_PIECES_MAX).next_power_of_two()
}

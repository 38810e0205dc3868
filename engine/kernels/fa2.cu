// C ABI over FlashInfer's FlashAttention 2 with paged keys and values, for decode rows: one query row a sequence, bf16, all heads that share a key head
// in one tile. Compiled once a head size: -DBATON_HEAD_DIM=64 or 128, which also ends the name of the function.
//
// FlashInfer's own plan cuts contexts into pieces of one length, picked by how many sequences there are, and a row would round otherwise for it. So the
// pieces are the caller's: each has its own length, which depends on its context alone.

#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/variants.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/page.cuh>

#include "attention.cuh"

namespace {

constexpr uint32_t HEAD_DIM = BATON_HEAD_DIM;
// Query rows of a tile, over the heads that share a key head.
constexpr uint32_t TILE = 16;

using Element = __nv_bfloat16;
using Variant = flashinfer::DefaultAttention</*use_custom_mask=*/false, /*use_sliding_window=*/false,
                                             /*use_logits_soft_cap=*/false, /*use_alibi=*/false>;

// The kernel reads the pieces' one length through a pointer. This one gives each block its own piece's.
struct PieceTokens {
  const int32_t* pieces;
  __device__ uint32_t operator*() const { return pieces[blockIdx.x]; }
};
struct Params : flashinfer::BatchPrefillPagedParams<Element, Element, Element, int32_t> {
  using flashinfer::BatchPrefillPagedParams<Element, Element, Element, int32_t>::BatchPrefillPagedParams;
  PieceTokens kv_chunk_size_ptr;
};

}  // namespace

// Attends with row r to the keys and values of sequence r, a block a piece. `k_pool` and `v_pool` point at the layer's keys and values in page 0;
// `page_stride` counts elements. `pieces` blocks are launched; block b does the `piece_place[b]`-th `piece_tokens[b]` tokens of sequence
// `piece_row[b]`, or nothing unless `piece_is[b]`, but its lengths are positive all the same. `row_pieces[r]` is the number of pieces before row
// r's. `zeros` holds `pieces` of them. `partial_out` has room for pieces * heads * head_dim bf16, `partial_sums` for pieces * heads floats.
// `heads / kv_heads` is 16 at most.
extern "C" int JOIN(baton_fa2_run_, BATON_HEAD_DIM)(
    __nv_bfloat16* partial_out, float* partial_sums, uint32_t pieces, int32_t* piece_row, int32_t* piece_place,
    const int32_t* piece_tokens, bool* piece_is, int32_t* zeros, int32_t* row_pieces, __nv_bfloat16* q, __nv_bfloat16* k_pool,
    __nv_bfloat16* v_pool, int64_t page_stride, uint32_t page_tokens, uint32_t heads, uint32_t kv_heads, uint32_t rows,
    int32_t* qo_indptr, int32_t* kv_indptr, int32_t* kv_indices, int32_t* last_page_len, __nv_bfloat16* out, float scale,
    cudaStream_t stream) {
  // FlashInfer keeps it in 32 bits.
  if (page_stride < 0 || page_stride > UINT32_MAX || heads > TILE * kv_heads) return cudaErrorInvalidValue;
  return guarded([&] {
    const int64_t strides[3] = {page_stride, int64_t{kv_heads} * HEAD_DIM, HEAD_DIM};
    flashinfer::paged_kv_t<Element, int32_t> pages(kv_heads, page_tokens, HEAD_DIM, rows, flashinfer::QKVLayout::kNHD,
                                                   k_pool, v_pool, strides, kv_indices, kv_indptr, last_page_len);
    Params params(q, pages, /*maybe_custom_mask=*/nullptr, qo_indptr, /*maybe_mask_indptr=*/nullptr,
                  /*maybe_q_rope_offset=*/nullptr, out, /*lse=*/nullptr, /*maybe_alibi_slopes=*/nullptr, heads,
                  /*q_stride_n=*/heads * HEAD_DIM, /*q_stride_h=*/HEAD_DIM, /*window_left=*/-1,
                  /*logits_soft_cap=*/0.f, scale, /*rope_scale=*/1.f, /*rope_theta=*/1e4f);
    params.request_indices = piece_row;
    params.qo_tile_indices = zeros;
    params.kv_tile_indices = piece_place;
    params.kv_chunk_size_ptr = PieceTokens{piece_tokens};
    params.block_valid_mask = piece_is;
    params.o_indptr = params.merge_indptr = row_pieces;
    params.padded_batch_size = pieces;
    params.max_total_num_rows = rows;
    params.partition_kv = true;
    return flashinfer::BatchPrefillWithPagedKVCacheDispatched<
        /*SAME_KV_STRIDES=*/true, TILE, HEAD_DIM, HEAD_DIM, flashinfer::PosEncodingMode::kNone,
        /*USE_FP16_QK_REDUCTION=*/false, flashinfer::MaskMode::kCausal, Variant, Params>(params, partial_out, partial_sums,
                                                                                         /*enable_pdl=*/true, stream);
  });
}

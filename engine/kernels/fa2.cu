// C ABI over FlashInfer's FlashAttention 2 with paged keys and values, for decode rows in bf16. A sequence has one query row,
// and a tile has all query heads that share a KV head. The file is compiled for each head size, with -DBATON_HEAD_DIM=64 or
// 128, and for keys and values in bf16 and, with -DBATON_KV_FP8, in FP8. The function's name ends with the head size and `_fp8`.
//
// FlashInfer's own plan splits all contexts into pieces of one length, which depends on the number of sequences. Then a row's
// rounding would depend on the batch. So the caller defines the split-KV pieces: their length depends only on the context.

#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/variants.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/page.cuh>

#include "attention.cuh"

namespace {

constexpr uint32_t HEAD_DIM = BATON_HEAD_DIM;
// Query rows of a tile: the heads that share a KV head.
constexpr uint32_t TILE = 16;

using Element = __nv_bfloat16;
// FlashInfer's kernel expands FP8 codes to bf16 in registers. What is not a number becomes ±480 there.
#ifdef BATON_KV_FP8
using KvElement = __nv_fp8_e4m3;
#define INSTANCE JOIN(BATON_HEAD_DIM, _fp8)
#else
using KvElement = __nv_bfloat16;
#define INSTANCE BATON_HEAD_DIM
#endif
using Variant = flashinfer::DefaultAttention</*use_custom_mask=*/false, /*use_sliding_window=*/false,
                                             /*use_logits_soft_cap=*/false, /*use_alibi=*/false>;

// FlashInfer's kernel reads one piece length for all blocks through a pointer. This type replaces the pointer and returns the
// length of the block's own piece.
struct PieceTokens {
  const int32_t* pieces;
  __device__ uint32_t operator*() const { return pieces[blockIdx.x]; }
};
struct Params : flashinfer::BatchPrefillPagedParams<Element, KvElement, Element, int32_t> {
  using flashinfer::BatchPrefillPagedParams<Element, KvElement, Element, int32_t>::BatchPrefillPagedParams;
  PieceTokens kv_chunk_size_ptr;
};

}  // namespace

// The arguments. `engine/src/gpu/arguments.rs` declares the same struct, and a test there compares the two.
struct Fa2Run {
  __nv_bfloat16* partial_out;
  float* partial_sums;
  int32_t* piece_rows;
  int32_t* piece_places;
  const int32_t* piece_lengths;
  bool* piece_flags;
  int32_t* zeros;
  int32_t* row_pieces;
  __nv_bfloat16* q;
  void* k_pool;
  void* v_pool;
  int32_t* row_starts;
  int32_t* page_starts;
  int32_t* kv_pages;
  int32_t* last_page_tokens;
  __nv_bfloat16* out;
  int64_t page_stride;
  int64_t head_stride;
  uint32_t pieces;
  uint32_t rows;
  uint32_t page_tokens;
  uint32_t heads;
  uint32_t kv_heads;
  float scale;
};
static_assert(sizeof(Fa2Run) == 168);

// Row r attends to the keys and values of sequence r. One thread block computes one split-KV piece, for each KV head.
// - `k_pool` and `v_pool` point to the layer's keys and values of KV head 0 in page 0. The strides, from a page to the next one
//   and from a KV head to the next one, are in elements.
// - The launch has `pieces` blocks. Block b computes piece `piece_places[b]` of row `piece_rows[b]`; this row's pieces have
//   `piece_lengths[b]` tokens. If `piece_flags[b]` is false the block does nothing, but its length must still be positive.
// - `row_pieces[r]` is the number of pieces before those of row r.
// - `zeros` has `pieces` zero words.
// - `partial_out` has pieces * heads * head_dim bf16 numbers, and `partial_sums` has pieces * heads floats.
// - `heads / kv_heads` is at most 16.
extern "C" int JOIN(baton_fa2_run_, INSTANCE)(const Fa2Run* arguments, cudaStream_t stream) {
  const Fa2Run& of = *arguments;
  // FlashInfer stores the stride in 32 bits.
  if (of.page_stride < 0 || of.page_stride > UINT32_MAX || of.heads > TILE * of.kv_heads) return cudaErrorInvalidValue;
  return guarded([&] {
    const int64_t strides[3] = {of.page_stride, HEAD_DIM, of.head_stride};
    flashinfer::paged_kv_t<KvElement, int32_t> pages(of.kv_heads, of.page_tokens, HEAD_DIM, of.rows, flashinfer::QKVLayout::kNHD,
                                                     static_cast<KvElement*>(of.k_pool), static_cast<KvElement*>(of.v_pool), strides,
                                                     of.kv_pages, of.page_starts, of.last_page_tokens);
    Params params(of.q, pages, /*maybe_custom_mask=*/nullptr, of.row_starts, /*maybe_mask_indptr=*/nullptr,
                  /*maybe_q_rope_offset=*/nullptr, of.out, /*lse=*/nullptr, /*maybe_alibi_slopes=*/nullptr, of.heads,
                  /*q_stride_n=*/of.heads * HEAD_DIM, /*q_stride_h=*/HEAD_DIM, /*window_left=*/-1,
                  /*logits_soft_cap=*/0.f, of.scale, /*rope_scale=*/1.f, /*rope_theta=*/1e4f);
    params.request_indices = of.piece_rows;
    params.qo_tile_indices = of.zeros;
    params.kv_tile_indices = of.piece_places;
    params.kv_chunk_size_ptr = PieceTokens{of.piece_lengths};
    params.block_valid_mask = of.piece_flags;
    params.o_indptr = params.merge_indptr = of.row_pieces;
    params.padded_batch_size = of.pieces;
    params.max_total_num_rows = of.rows;
    params.partition_kv = true;
    return flashinfer::BatchPrefillWithPagedKVCacheDispatched<
        /*SAME_KV_STRIDES=*/true, TILE, HEAD_DIM, HEAD_DIM, flashinfer::PosEncodingMode::kNone,
        /*USE_FP16_QK_REDUCTION=*/false, flashinfer::MaskMode::kCausal, Variant, Params>(params, of.partial_out, of.partial_sums,
                                                                                         /*enable_pdl=*/true, stream);
  });
}

// C ABI over FlashInfer's FlashAttention 2 with paged keys and values: causal, bf16, any mix of prefill chunks and decode
// rows in one launch. Compiled once a head size: -DBATON_HEAD_DIM=64 or 128, which also ends the names of the functions.

#include <flashinfer/attention/scheduler.cuh>
#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/variants.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/page.cuh>

#include "attention.cuh"

#define JOIN_NOW(name, head_dim) name##head_dim
#define JOIN(name, head_dim) JOIN_NOW(name, head_dim)
#define PLAN JOIN(baton_fa2_plan_, BATON_HEAD_DIM)
#define RUN JOIN(baton_fa2_run_, BATON_HEAD_DIM)

namespace {

constexpr uint32_t HEAD_DIM = BATON_HEAD_DIM;

using Element = __nv_bfloat16;
using Params = flashinfer::BatchPrefillPagedParams<Element, Element, Element, int32_t>;
using Variant = flashinfer::DefaultAttention</*use_custom_mask=*/false, /*use_sliding_window=*/false,
                                             /*use_logits_soft_cap=*/false, /*use_alibi=*/false>;

// Query rows of a tile, over the heads that share a key head: decode steps get small tiles.
template <uint32_t CTA_TILE_Q>
cudaError_t run(Params& params, Element* partial_out, float* partial_sums, cudaStream_t stream) {
  return flashinfer::BatchPrefillWithPagedKVCacheDispatched<
      /*SAME_KV_STRIDES=*/true, CTA_TILE_Q, HEAD_DIM, HEAD_DIM, flashinfer::PosEncodingMode::kNone,
      /*USE_FP16_QK_REDUCTION=*/false, flashinfer::MaskMode::kCausal, Variant, Params>(params, partial_out, partial_sums, /*enable_pdl=*/true, stream);
}

}  // namespace

// Cuts the step into tiles, and long contexts into pieces where there are few tiles: once a step, for all its layers.
// Copies the schedule from `pinned` to `int_workspace` on the stream, so neither may be planned into again before that
// copy has run. With `graph`, launches of this plan have a size that depends on `rows` and `batch` alone.
extern "C" int PLAN(void* float_workspace, size_t float_bytes, void* int_workspace, void* pinned, size_t int_bytes,
                    int64_t* plan, const int32_t* qo_indptr, const int32_t* kv_indptr, uint32_t rows, uint32_t batch,
                    uint32_t heads, uint32_t kv_heads, uint32_t page_tokens, int graph, cudaStream_t stream) {
  return guarded([&] {
    flashinfer::PrefillPlanInfo info;
    // FlashInfer reads both arrays and does not say so.
    cudaError_t error = flashinfer::PrefillPlan<int32_t>(
        float_workspace, float_bytes, int_workspace, pinned, int_bytes, info, const_cast<int32_t*>(qo_indptr),
        const_cast<int32_t*>(kv_indptr), rows, batch, heads, kv_heads, HEAD_DIM, HEAD_DIM, page_tokens, graph != 0,
        sizeof(Element), /*window_left=*/-1, /*fixed_split_size=*/-1, /*disable_split_kv=*/false,
        /*num_colocated_ctas=*/0, /*uniform_q_len=*/0, stream);
    if (error == cudaSuccess) store(info, plan);
    return error;
  });
}

// Attends with every query row to the keys and values of its request, up to its own place. `k_pool` and `v_pool` point at
// the layer's keys and values in page 0; strides count elements.
extern "C" int RUN(void* float_workspace, void* int_workspace, const int64_t* plan, __nv_bfloat16* q,
                   __nv_bfloat16* k_pool, __nv_bfloat16* v_pool, int64_t page_stride, uint32_t page_tokens,
                   uint32_t heads, uint32_t kv_heads, uint32_t batch, int32_t* qo_indptr, int32_t* kv_indptr,
                   int32_t* kv_indices, int32_t* last_page_len, __nv_bfloat16* out, float scale, cudaStream_t stream) {
  // FlashInfer keeps it in 32 bits.
  if (page_stride < 0 || page_stride > UINT32_MAX) return cudaErrorInvalidValue;
  return guarded([&] {
    auto info = load<flashinfer::PrefillPlanInfo>(plan);
    auto at = [&](int64_t offset) { return flashinfer::GetPtrFromBaseOffset<int32_t>(int_workspace, offset); };
    const int64_t strides[3] = {page_stride, int64_t{kv_heads} * HEAD_DIM, HEAD_DIM};
    flashinfer::paged_kv_t<Element, int32_t> pages(kv_heads, page_tokens, HEAD_DIM, batch, flashinfer::QKVLayout::kNHD,
                                                   k_pool, v_pool, strides, kv_indices, kv_indptr, last_page_len);
    Params params(q, pages, /*maybe_custom_mask=*/nullptr, qo_indptr, /*maybe_mask_indptr=*/nullptr,
                  /*maybe_q_rope_offset=*/nullptr, out, /*lse=*/nullptr, /*maybe_alibi_slopes=*/nullptr, heads,
                  /*q_stride_n=*/heads * HEAD_DIM, /*q_stride_h=*/HEAD_DIM, /*window_left=*/-1,
                  /*logits_soft_cap=*/0.f, scale, /*rope_scale=*/1.f, /*rope_theta=*/1e4f);
    params.request_indices = at(info.request_indices_offset);
    params.qo_tile_indices = at(info.qo_tile_indices_offset);
    params.kv_tile_indices = at(info.kv_tile_indices_offset);
    params.o_indptr = at(info.o_indptr_offset);
    params.kv_chunk_size_ptr = at(info.kv_chunk_size_ptr_offset);
    params.padded_batch_size = info.padded_batch_size;
    params.max_total_num_rows = info.total_num_rows;

    // The pieces of a context that was cut are summed by a second kernel.
    Element* partial_out = nullptr;
    float* partial_sums = nullptr;
    if (info.split_kv) {
      params.partition_kv = true;
      params.merge_indptr = at(info.merge_indptr_offset);
      partial_out = flashinfer::GetPtrFromBaseOffset<Element>(float_workspace, info.v_offset);
      partial_sums = flashinfer::GetPtrFromBaseOffset<float>(float_workspace, info.s_offset);
    }
    if (info.enable_cuda_graph) {
      params.block_valid_mask = flashinfer::GetPtrFromBaseOffset<bool>(int_workspace, info.block_valid_mask_offset);
      params.total_num_rows = flashinfer::GetPtrFromBaseOffset<uint32_t>(int_workspace, info.total_num_rows_offset);
    }
    switch (info.cta_tile_q) {
      case 16: return run<16>(params, partial_out, partial_sums, stream);
      case 64: return run<64>(params, partial_out, partial_sums, stream);
      case 128: return run<128>(params, partial_out, partial_sums, stream);
      default: return cudaErrorInvalidValue;
    }
  });
}

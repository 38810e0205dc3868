// C ABI over FlashInfer's attention for Hopper: FlashAttention 3 with warp-specialised WGMMA and paged keys and values, causal,
// bf16. It computes prompts. Its tiles have 128 query rows, so a decode row would waste 127 of them; `decode.cu` computes decode
// rows. The file is compiled once per head size, with -DBATON_HEAD_DIM=64 or 128, which is also the suffix of the functions'
// names.
//
// The kernel does not split a row's keys. So a row's result depends neither on its chunk nor on the other rows.

// The attention includes FlashInfer's GEMM header without using it. That header needs CUTLASS's test helpers, which need
// cuRAND. This macro disables the header. The includes that the attention does use follow.
#define FLASHINFER_CUTLASS_UTILS_CUH_
#include <cutlass/cutlass.h>
#include <cutlass/gemm/collective/collective_builder.hpp>

#include <flashinfer/attention/scheduler.cuh>
#include <flashinfer/attention/hopper/named_barrier.cuh>
#include <flashinfer/attention/hopper/utils.cuh>

// Works around a race in FlashInfer's epilogue. The epilogue writes a tile's outputs to shared memory, where other warps read
// them. Between the two, all multiplying warps first arrive at a barrier and then wait at the same barrier for as many
// arrivals as there are such warps. So the barrier opens when half of the warps have arrived twice, while the others still
// write. The macro replaces the arrival by a second wait. The epilogue's own includes are above, so they are not affected.
// Written for FlashInfer 0.7.2, whose epilogue has one arrival.
#define arrive sync
#include <flashinfer/attention/hopper/epilogue.cuh>
#undef arrive

#include <flashinfer/attention/hopper/prefill_sm90.cuh>
#include <flashinfer/attention/hopper/default_params.cuh>
#include <flashinfer/attention/hopper/variants.cuh>

#include "attention.cuh"

namespace {

constexpr int HEAD_DIM = BATON_HEAD_DIM;

using Element = cutlass::bfloat16_t;
using Params = flashinfer::BatchPrefillPagedParams<Element, Element, Element, int32_t>;

template <bool SAME_SCHEDULE_FOR_ALL_HEADS>
cudaError_t run(Params& params, cudaStream_t stream) {
  return flashinfer::BatchPrefillWithPagedKVCacheDispatched<
      HEAD_DIM, HEAD_DIM, flashinfer::MaskMode::kCausal, /*LEFT_SLIDING_WINDOW=*/false, SAME_SCHEDULE_FOR_ALL_HEADS,
      flashinfer::StandardAttention>(params, /*enable_pdl=*/false, stream);
}

}  // namespace

// The arguments. `engine/src/gpu/arguments.rs` declares the same structs, and a test there compares the two.
struct Fa3Plan {
  void* int_workspace;
  void* host_pinned;
  uint64_t int_bytes;
  int64_t* host_plan;
  const int32_t* host_row_starts;
  const int32_t* host_page_starts;
  const int32_t* host_kv_tokens;
  uint32_t rows;
  uint32_t chunks;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t page_tokens;
};
static_assert(sizeof(Fa3Plan) == 80);

struct Fa3Run {
  void* int_workspace;
  const int64_t* host_plan;
  __nv_bfloat16* q;
  __nv_bfloat16* k_pool;
  __nv_bfloat16* v_pool;
  int32_t* kv_pages;
  __nv_bfloat16* out;
  int64_t page_stride;
  int64_t head_stride;
  int64_t rows;
  int32_t page_tokens;
  int32_t heads;
  int32_t kv_heads;
  float scale;
};
static_assert(sizeof(Fa3Run) == 96);

// Assigns the step's query tiles to multiprocessors, once per step for all layers. Copies the schedule from `host_pinned` to
// `int_workspace` on the stream, so no other plan may use the two before that copy has finished. `host_plan` has 32 words.
extern "C" int JOIN(baton_fa3_plan_, BATON_HEAD_DIM)(const Fa3Plan* arguments, cudaStream_t stream) {
  const Fa3Plan& of = *arguments;
  // FlashInfer only reads the lists, but its parameters are not const.
  const auto list = [](const int32_t* numbers) { return const_cast<int32_t*>(numbers); };
  return guarded([&] {
    flashinfer::PrefillPlanSM90Info info;
    cudaError_t error = flashinfer::PrefillSM90Plan<int32_t>(
        /*float_buffer=*/nullptr, 0, of.int_workspace, of.host_pinned, of.int_bytes, info, list(of.host_row_starts),
        list(of.host_page_starts), list(of.host_kv_tokens), of.rows, of.chunks, of.heads, of.kv_heads, HEAD_DIM, HEAD_DIM,
        of.page_tokens, /*causal=*/true, /*enable_cuda_graph=*/false, sizeof(Element), stream);
    if (error == cudaSuccess) store(info, of.host_plan);
    return error;
  });
}

// Every query row attends to the keys and values of its sequence, up to its own position. `k_pool` and `v_pool` point to the
// layer's keys and values of KV head 0 in page 0. Strides are in elements.
extern "C" int JOIN(baton_fa3_run_, BATON_HEAD_DIM)(const Fa3Run* arguments, cudaStream_t stream) {
  const Fa3Run& of = *arguments;
  return guarded([&] {
    auto info = load<flashinfer::PrefillPlanSM90Info>(of.host_plan);
    auto at = [&](int64_t offset) { return flashinfer::GetPtrFromBaseOffset<int32_t>(of.int_workspace, offset); };
    Params params{};
    params.q_ptr = reinterpret_cast<Element*>(of.q);
    params.k_ptr = reinterpret_cast<Element*>(of.k_pool);
    params.v_ptr = reinterpret_cast<Element*>(of.v_pool);
    params.o_ptr = reinterpret_cast<Element*>(of.out);

    params.q_stride_n = params.o_stride_n = int64_t{of.heads} * HEAD_DIM;
    params.k_stride_n = params.v_stride_n = params.q_stride_h = params.o_stride_h = HEAD_DIM;
    params.k_stride_h = params.v_stride_h = of.head_stride;
    params.k_page_stride = params.v_page_stride = of.page_stride;

    params.nnz_qo = of.rows;
    params.num_qo_heads = of.heads;
    params.num_kv_heads = of.kv_heads;
    params.group_size = of.heads / of.kv_heads;
    params.page_size = of.page_tokens;
    params.window_left = -1;
    params.causal = true;
    params.additional_params.sm_scale = of.scale;

    params.kv_indices = of.kv_pages;
    params.qo_tile_indices = at(info.qo_tile_indices_offset);
    params.qo_indptr = at(info.qo_indptr_offset);
    params.kv_indptr = at(info.kv_indptr_offset);
    params.qo_lens = at(info.qo_len_offset);
    params.kv_lens = at(info.kv_len_offset);
    params.head_indices = at(info.head_indices_offset);
    params.work_indptr = at(info.work_indptr_offset);
    params.batch_indices = at(info.batch_indices_offset);
    return info.same_schedule_for_all_heads ? run<true>(params, stream) : run<false>(params, stream);
  });
}

// Copies the FP8 keys and values of a step's prompts to memory in bf16, for FlashAttention 3, which multiplies numbers of one type.

#include <cuda_runtime.h>
#include <stdint.h>

#include <algorithm>

#include "kv.cuh"

using bf16 = __nv_bfloat16;

namespace {

// Codes that a thread reads at once: 16 bytes.
constexpr int VECTOR = 16;

struct alignas(16) Codes {
  __nv_fp8x2_storage_t pairs[VECTOR / 2];
};

struct alignas(32) Numbers {
  __nv_bfloat162 pairs[VECTOR / 2];
};

// One block per page and KV head. The layer's keys and values of a head are contiguous in a page.
__global__ void expand_kv(const Codes* pool, const int32_t* pages, Numbers* out, int vectors, int64_t page_stride, int64_t head_stride,
                          int64_t layer_offset) {
  const Codes* from = pool + pages[blockIdx.x] * page_stride + blockIdx.y * head_stride + layer_offset;
  Numbers* to = out + (int64_t{blockIdx.x} * gridDim.y + blockIdx.y) * vectors;
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
    const Codes codes = from[i];
    Numbers numbers;
#pragma unroll
    for (int pair = 0; pair < VECTOR / 2; pair++) numbers.pairs[pair] = numbers_of(codes.pairs[pair]);
    to[i] = numbers;
  }
}

}  // namespace

// The arguments. `engine/src/gpu/arguments.rs` declares the same struct, and a test there compares the two.
struct ExpandKv {
  const void* pool;
  const int32_t* kv_pages;
  bf16* out;
  int64_t page_stride;
  int64_t head_stride;
  int64_t layer_offset;
  int32_t pages;
  int32_t kv_heads;
  int32_t page_tokens;
  int32_t head_dim;
};
static_assert(sizeof(ExpandKv) == 64);

// out[n][kv_head] = the layer's [keys, values][page_tokens][head_dim] of page kv_pages[n]. Strides and the offset are in codes. `head_dim` is a
// multiple of 16. It is launched without overlap, so it starts after all earlier work in the stream has finished.
extern "C" int baton_expand_kv(const ExpandKv* arguments, cudaStream_t stream) {
  const auto [pool, kv_pages, out, page_stride, head_stride, layer_offset, pages, kv_heads, page_tokens, head_dim] = *arguments;
  if (pages == 0) return cudaSuccess;
  if (head_dim % VECTOR != 0) return cudaErrorInvalidValue;
  const int vectors = 2 * page_tokens * head_dim / VECTOR;
  expand_kv<<<dim3(pages, kv_heads), std::min(vectors, 512), 0, stream>>>(
      static_cast<const Codes*>(pool), kv_pages, reinterpret_cast<Numbers*>(out), vectors, page_stride / VECTOR,
      head_stride / VECTOR, layer_offset / VECTOR);
  return cudaGetLastError();
}

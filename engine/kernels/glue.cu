// The model's small kernels between GEMMs and attention. Inputs and outputs are bf16, and the arithmetic is f32. A row is a
// token of the step. All kernels are memory-bound, so they access 16 bytes at a time: `hidden`, `feed` and `head_dim` are
// multiples of 8, and every pointer to bf16 is aligned to 16 bytes.

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

#include <algorithm>
#include <type_traits>

#include "kv.cuh"
#include "launch.cuh"
#include "rounding.cuh"
#include "vectors.cuh"

namespace {

constexpr int WARP = 32;
constexpr int BLOCK_MAX = 1024;
// The most threads of a block of `silu_mul_rounded`. A multiprocessor has several such blocks.
constexpr int SILU_THREADS = 512;

// Vector number i.
__device__ Floats load(const bf16* numbers, int64_t i) { return widen(reinterpret_cast<const Vector*>(numbers)[i]); }
__device__ Floats load(const float* numbers, int64_t i) { return reinterpret_cast<const Floats*>(numbers)[i]; }

// Eight FP8 codes.
struct alignas(8) Codes {
  __nv_fp8x2_storage_t pairs[VECTOR / 2];
};

// Writes vector number i of keys or values.
__device__ void store(bf16* numbers, int64_t i, const Floats& floats) { reinterpret_cast<Vector*>(numbers)[i] = narrow(floats); }
__device__ void store(__nv_fp8_storage_t* numbers, int64_t i, const Floats& floats) {
  Codes codes;
#pragma unroll
  for (int k = 0; k < VECTOR / 2; k++) codes.pairs[k] = codes_of(floats.at[2 * k], floats.at[2 * k + 1]);
  reinterpret_cast<Codes*>(numbers)[i] = codes;
}

// The block size for `items` work items: whole warps, at most `most` threads.
int block_for(int items, int most) { return std::min(most, (items + WARP - 1) / WARP * WARP); }

// The sum over the block, in every thread. A kernel may call it only once, because it does not synchronise before it writes
// shared memory.
__device__ float block_sum(float value) {
  __shared__ float warps[BLOCK_MAX / WARP];
  for (int offset = WARP / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = value;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < blockDim.x / WARP; warp++) sum += warps[warp];
  return sum;
}

// One block per row: out[r] = from[which[r]]. An index of -1 - n stands for chosen[n].
__global__ void take_rows(const bf16* from, const int32_t* which, const int32_t* chosen, bf16* out, int hidden) {
  after_previous(gridDim.x);
  int row = which[blockIdx.x];
  if (row < 0) row = chosen[-1 - row];
  const Vector* source = vectors(from + int64_t{row} * hidden);
  Vector* target = vectors(out + int64_t{blockIdx.x} * hidden);
  for (int i = threadIdx.x; i < hidden / VECTOR; i += blockDim.x) target[i] = source[i];
}

// One block per row. Each thread keeps PER_THREAD vectors in registers between the two passes. The norm uses the stored sum,
// which is rounded to bf16, so the result depends only on the stored residual stream. Writes `codes` and `scales` instead of `out` if they are
// not null.
template <int PER_THREAD>
__global__ void add_rms_norm(bf16* x, const bf16* delta, const bf16* weight, bf16* out, uint8_t* codes, float* scales, int hidden,
                             float epsilon) {
  const int64_t row = int64_t{blockIdx.x} * hidden;
  const int count = hidden / VECTOR;
  Vector factors[PER_THREAD];
#pragma unroll
  for (int n = 0; n < PER_THREAD; n++) {
    const int i = n * blockDim.x + threadIdx.x;
    if (i < count) factors[n] = vectors(weight)[i];
  }
  after_previous(gridDim.x);
  Floats kept[PER_THREAD];
  float squares = 0;
#pragma unroll
  for (int n = 0; n < PER_THREAD; n++) {
    const int i = n * blockDim.x + threadIdx.x;
    if (i >= count) break;
    Vector vector = vectors(x + row)[i];
    if (delta != nullptr) {
      Floats sum = widen(vector);
      const Floats more = widen(vectors(delta + row)[i]);
#pragma unroll
      for (int k = 0; k < VECTOR; k++) sum.at[k] += more.at[k];
      vector = narrow(sum);
      vectors(x + row)[i] = vector;
    }
    kept[n] = widen(vector);
#pragma unroll
    for (int k = 0; k < VECTOR; k++) squares += kept[n].at[k] * kept[n].at[k];
  }
  const float scale = 1.f / sqrtf(block_sum(squares) / hidden + epsilon);
  Vector normed[PER_THREAD];
#pragma unroll
  for (int n = 0; n < PER_THREAD; n++) {
    const int i = n * blockDim.x + threadIdx.x;
    if (i >= count) break;
    const Floats factor = widen(factors[n]);
#pragma unroll
    for (int k = 0; k < VECTOR; k++) kept[n].at[k] *= scale * factor.at[k];
    normed[n] = narrow(kept[n]);
    if (codes == nullptr) vectors(out + row)[i] = normed[n];
  }
  if (codes != nullptr) round_row(normed, blockIdx.x, count, codes, scales);
}

// The sum over the `width` neighbouring threads that hold one head, in each of them. All of them call it.
__device__ float head_sum(float value, int width) {
  const unsigned lane = threadIdx.x % WARP;
  const unsigned group = ((1u << width) - 1) << (lane / width * width);
  for (int offset = width / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(group, value, offset);
  return value;
}

// One block per row. Adds the biases, if any, to queries, keys and values. Writes normed (if there are norms) and rotated queries
// to `q_out` and keys to the pool, and the values to the pool. All heads share the row's sines and cosines, which are in shared
// memory. A head's threads are in one warp, because `head_dim / VECTOR` is a power of two below WARP.
//
// With biases the products are f32. Rounding a product before its bias is added errs in the same way for all positions, and attention, which
// averages values over positions, does not average such an error away.
template <typename Product, typename Stored>
__global__ void rope_append(const Product* qkv, const bf16* bias, const bf16* head_norms, bf16* q_out, Stored* pool,
                            const int32_t* positions, const int64_t* pool_indices, const float* inverse_frequencies, int heads,
                            int kv_heads, int head_dim, int page_tokens, float epsilon, int64_t page_stride,
                            int64_t head_stride, int64_t layer_offset) {
  extern __shared__ float2 turns[];  // head_dim / 2 pairs of cosine and sine
  __shared__ Stored* page;           // the layer's keys of KV head 0 in the row's page, or null
  __shared__ int position_in_page;
  const int64_t row = blockIdx.x;
  for (int i = threadIdx.x; i < head_dim / 2; i += blockDim.x) {
    float sine, cosine;
    sincosf(positions[row] * inverse_frequencies[i], &sine, &cosine);
    turns[i] = {cosine, sine};
  }
  if (threadIdx.x == 0) {
    const int64_t index = pool_indices[row];
    page = index < 0 ? nullptr : pool + index / page_tokens * page_stride + layer_offset;
    position_in_page = index < 0 ? 0 : static_cast<int>(index % page_tokens);
  }
  after_previous();
  __syncthreads();

  const int per_head = head_dim / VECTOR;
  const int all_heads = heads + 2 * kv_heads;
  const Product* source = qkv + row * all_heads * head_dim;
  for (int i = threadIdx.x; i < all_heads * per_head; i += blockDim.x) {
    const int head = i / per_head;
    const int within = i % per_head;  // in vectors
    Stored* target = nullptr;  // the key or value in the pool, or null for a query
    if (head >= heads) {
      if (page == nullptr) continue;
      const int is_value = head >= heads + kv_heads;
      const int kv_head = head - heads - is_value * kv_heads;
      target = page + kv_head * head_stride + (int64_t{is_value} * page_tokens + position_in_page) * head_dim;
    }
    Floats floats = load(source, i);
    if (bias != nullptr) {
      const Floats more = widen(vectors(bias)[i]);
#pragma unroll
      for (int k = 0; k < VECTOR; k++) floats.at[k] += more.at[k];
    }
    if (head < heads + kv_heads) {
      if (head_norms != nullptr) {
        float squares = 0;
#pragma unroll
        for (int k = 0; k < VECTOR; k++) squares += floats.at[k] * floats.at[k];
        const float scale = 1.f / sqrtf(head_sum(squares, per_head) / head_dim + epsilon);
        const Floats factors = widen(vectors(head_norms + (head < heads ? 0 : head_dim))[within]);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) floats.at[k] *= scale * factors.at[k];
      }
#pragma unroll
      for (int k = 0; k < VECTOR / 2; k++) {
        const float2 turn = turns[within * (VECTOR / 2) + k];
        const float even = floats.at[2 * k], odd = floats.at[2 * k + 1];
        floats.at[2 * k] = even * turn.x - odd * turn.y;
        floats.at[2 * k + 1] = even * turn.y + odd * turn.x;
      }
    }
    if (target == nullptr) {
      store(q_out + (row * heads + head) * head_dim, within, floats);
    } else {
      store(target, within, floats);
    }
  }
}

// Vector i of a row of silu(gate) * up. The error of the approximations is far below that of bf16. A gate below -87 gives 0.
__device__ Vector silu_mul_vector(const bf16* gate_up, int64_t row, int feed, int i) {
  Floats gate = widen(vectors(gate_up + row * 2 * feed)[i]);
  const Floats up = widen(vectors(gate_up + row * 2 * feed + feed)[i]);
#pragma unroll
  for (int k = 0; k < VECTOR; k++) gate.at[k] = __fdividef(gate.at[k], 1.f + __expf(-gate.at[k])) * up.at[k];
  return narrow(gate);
}

__global__ void silu_mul(const bf16* gate_up, bf16* out, int feed) {
  const int64_t row = blockIdx.x;
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  after_previous(gridDim.x);
  if (i < feed / VECTOR) vectors(out + row * feed)[i] = silu_mul_vector(gate_up, row, feed, i);
}

// One block per row, which rounds it.
template <int PER_THREAD>
__global__ void __launch_bounds__(SILU_THREADS) silu_mul_rounded(const bf16* gate_up, uint8_t* codes, float* scales, int feed) {
  after_previous(gridDim.x);
  Vector kept[PER_THREAD];
#pragma unroll
  for (int n = 0; n < PER_THREAD; n++) {
    const int i = n * blockDim.x + threadIdx.x;
    if (i < feed / VECTOR) kept[n] = silu_mul_vector(gate_up, blockIdx.x, feed, i);
  }
  round_row(kept, blockIdx.x, feed / VECTOR, codes, scales);
}

// Number `index` of the splitmix64 stream (Sebastiano Vigna) that starts at `seed`.
__device__ uint64_t splitmix(uint64_t seed, uint64_t index) {
  uint64_t x = seed + (index + 1) * 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

__global__ void fill(bf16* out, uint64_t count, uint64_t seed, float scale) {
  const uint64_t stride = uint64_t{gridDim.x} * blockDim.x;
  for (uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const float unit = static_cast<float>(splitmix(seed, i) >> 40) * 0x1p-24f;  // 24 bits: exact
    out[i] = __float2bfloat16_rn((2.f * unit - 1.f) * scale);
  }
}

}  // namespace

// The arguments. `engine/src/gpu/arguments.rs` declares the same structs, and a test there compares the two.
struct Embed {
  const int32_t* tokens;
  const int32_t* chosen;
  const bf16* table;
  bf16* out;
  int32_t rows;
  int32_t hidden;
};
static_assert(sizeof(Embed) == 40);

struct AddRmsNorm {
  bf16* x;
  const bf16* delta;
  const bf16* weight;
  bf16* out;
  uint8_t* codes;
  float* scales;
  int32_t rows;
  int32_t hidden;
  float epsilon;
};
static_assert(sizeof(AddRmsNorm) == 64);

struct RopeAppend {
  const void* qkv;
  const bf16* bias;
  const bf16* head_norms;
  bf16* q_out;
  void* pool;
  const int32_t* positions;
  const int64_t* pool_indices;
  const float* inverse_frequencies;
  int64_t page_stride;
  int64_t head_stride;
  int64_t layer_offset;
  int32_t rows;
  int32_t heads;
  int32_t kv_heads;
  int32_t head_dim;
  int32_t page_tokens;
  float epsilon;
  int32_t fp8;
};
static_assert(sizeof(RopeAppend) == 120);

struct SiluMul {
  const bf16* gate_up;
  bf16* out;
  uint8_t* codes;
  float* scales;
  int32_t rows;
  int32_t feed;
};
static_assert(sizeof(SiluMul) == 40);

struct TakeRows {
  const bf16* x;
  const int32_t* which;
  bf16* out;
  int32_t count;
  int32_t hidden;
};
static_assert(sizeof(TakeRows) == 32);

struct Fill {
  bf16* out;
  uint64_t count;
  uint64_t seed;
  float scale;
};
static_assert(sizeof(Fill) == 32);

extern "C" {

// out[r] = table[tokens[r]]. A token of -1 - n stands for chosen[n]. It is launched without overlap, so it starts after all
// earlier work in the stream has finished. Later kernels of the step rely on that.
int baton_embed(const Embed* arguments, cudaStream_t stream) {
  const auto [tokens, chosen, table, out, rows, hidden] = *arguments;
  if (rows == 0) return cudaSuccess;
  take_rows<<<rows, block_for(hidden / VECTOR, 256), 0, stream>>>(table, tokens, chosen, out, hidden);
  return cudaGetLastError();
}

// x += delta unless `delta` is null, then out = rms_norm(x) * weight. With `codes` and `scales`, the result is rounded to FP8 and written there
// instead. `hidden` is at most 16384.
int baton_add_rms_norm(const AddRmsNorm* arguments, cudaStream_t stream) {
  const auto [x, delta, weight, out, codes, scales, rows, hidden, epsilon] = *arguments;
  if (rows == 0) return cudaSuccess;
  const int count = hidden / VECTOR;
  if (count <= BLOCK_MAX) {
    const int block = block_for(count, BLOCK_MAX);
    return launch(add_rms_norm<1>, rows, block, 0, stream, x, delta, weight, out, codes, scales, hidden, epsilon);
  }
  if (count <= 2 * BLOCK_MAX) {
    return launch(add_rms_norm<2>, rows, BLOCK_MAX, 0, stream, x, delta, weight, out, codes, scales, hidden, epsilon);
  }
  return cudaErrorInvalidValue;
}

// Adds biases, applies the norms of the heads and RoPE, and writes queries, keys and values.
// - qkv is [rows][heads + 2 * kv_heads][head_dim]: queries, keys, values. It is f32 with a bias and bf16 without.
// - bias is [heads + 2 * kv_heads][head_dim], or null.
// - head_norms is [head_dim] factors of the query heads' RMS norm, then [head_dim] of the key heads'. Or null. With it,
//   `head_dim / 8` must be a power of two below 32.
// - Pair (2i, 2i + 1) of queries and keys rotates by the angle positions[r] * inverse_frequencies[i].
// - Queries go to q_out, [rows][heads][head_dim].
// - Keys and values go to the pool index pool_indices[r] = page * page_tokens + position in the page. A negative index writes
//   nothing.
// - A KV head's part of the layer starts at page * page_stride + kv_head * head_stride + layer_offset numbers. It is
//   [keys, values][page_tokens][head_dim]. Its numbers are FP8 codes if `fp8`, else bf16.
int baton_rope_append(const RopeAppend* arguments, cudaStream_t stream) {
  const auto [qkv, bias, head_norms, q_out, pool, positions, pool_indices, inverse_frequencies, page_stride, head_stride, layer_offset,
              rows, heads, kv_heads, head_dim, page_tokens, epsilon, fp8] = *arguments;
  if (rows == 0) return cudaSuccess;
  const int block = block_for((heads + 2 * kv_heads) * head_dim / VECTOR, BLOCK_MAX);
  const size_t shared_bytes = head_dim / 2 * sizeof(float2);
  const auto append = [&](auto* products, auto* numbers) {
    using Product = std::remove_const_t<std::remove_pointer_t<decltype(products)>>;
    using Stored = std::remove_pointer_t<decltype(numbers)>;
    return launch(rope_append<Product, Stored>, rows, block, shared_bytes, stream, products, bias, head_norms, q_out, numbers,
                  positions, pool_indices, inverse_frequencies, heads, kv_heads, head_dim, page_tokens, epsilon, page_stride,
                  head_stride, layer_offset);
  };
  const auto of_products = [&](auto* numbers) {
    return bias != nullptr ? append(static_cast<const float*>(qkv), numbers) : append(static_cast<const bf16*>(qkv), numbers);
  };
  return fp8 ? of_products(static_cast<__nv_fp8_storage_t*>(pool)) : of_products(static_cast<bf16*>(pool));
}

// out[r] = silu(gate) * up. Row r of gate_up is `feed` numbers of gate, then `feed` numbers of up. With `codes` and `scales`, the result is rounded to
// FP8 and written there instead, and `feed` is at most 65536.
int baton_silu_mul(const SiluMul* arguments, cudaStream_t stream) {
  const auto [gate_up, out, codes, scales, rows, feed] = *arguments;
  if (rows == 0) return cudaSuccess;
  if (codes != nullptr) {
    const int count = feed / VECTOR, block = block_for(count, SILU_THREADS);
    if (count <= SILU_THREADS) return launch(silu_mul_rounded<1>, rows, block, 0, stream, gate_up, codes, scales, feed);
    if (count <= 2 * SILU_THREADS) return launch(silu_mul_rounded<2>, rows, block, 0, stream, gate_up, codes, scales, feed);
    if (count <= 4 * SILU_THREADS) return launch(silu_mul_rounded<4>, rows, block, 0, stream, gate_up, codes, scales, feed);
    if (count <= 8 * SILU_THREADS) return launch(silu_mul_rounded<8>, rows, block, 0, stream, gate_up, codes, scales, feed);
    if (count <= 16 * SILU_THREADS) return launch(silu_mul_rounded<16>, rows, block, 0, stream, gate_up, codes, scales, feed);
    return cudaErrorInvalidValue;
  }
  constexpr int BLOCK = 256;
  const unsigned blocks = (feed / VECTOR + BLOCK - 1) / BLOCK;
  return launch(silu_mul, dim3(rows, blocks), BLOCK, 0, stream, gate_up, out, feed);
}

// out[n] = x[which[n]].
int baton_take_rows(const TakeRows* arguments, cudaStream_t stream) {
  const auto [x, which, out, count, hidden] = *arguments;
  if (count == 0) return cudaSuccess;
  return launch(take_rows, count, block_for(hidden / VECTOR, 256), 0, stream, x, which, nullptr, out, hidden);
}

// out[i] = a uniform number in [-scale, scale), rounded to bf16. It is a function of `seed` and i only, equal on all devices.
int baton_fill(const Fill* arguments, cudaStream_t stream) {
  const auto [out, count, seed, scale] = *arguments;
  if (count == 0) return cudaSuccess;
  constexpr uint64_t BLOCK = 256, BLOCKS_MAX = 1 << 16;
  const unsigned blocks = static_cast<unsigned>(std::min(BLOCKS_MAX, (count + BLOCK - 1) / BLOCK));
  fill<<<blocks, BLOCK, 0, stream>>>(out, count, seed, scale);
  return cudaGetLastError();
}

}  // extern "C"

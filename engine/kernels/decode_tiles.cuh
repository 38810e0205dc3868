// Tiles of keys and values in shared memory, in bf16 or e4m3, and their products, for `decode.cu`.
//
// Products have positions or dimensions as rows and up to eight heads that share the KV head as columns. A group of more
// than eight heads is divided into parts, each of which reads the keys and values.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "stages.cuh"
#include "wgmma.cuh"

namespace {

constexpr int WARPS = 4;          // that compute
constexpr int STEP = 16;          // positions or dimensions of a product
constexpr float F16_MAX = 65504.f;

__device__ void load_transposed(uint32_t (&matrices)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}
__device__ uint32_t transposed(uint32_t matrix) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(matrix));
  return out;
}

// Numbers of the pool in bf16. A product's sixteen dimensions are in order.
struct Bf16Numbers {
  using Stored = bf16;
  static constexpr int TILE_TOKENS = 64;

  // Two queries, and two weights of positions, as numbers of a product.
  static __device__ uint32_t of_queries(uint32_t bf16_pair) { return bf16_pair; }
  static __device__ uint32_t of_weights(float first, float second) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
  // The pairs of queries, in a head's sixteen dimensions, that thread `t` of a quad multiplies.
  static __device__ int query_pair(int t, int half) { return t + 4 * half; }
  // The dimension of row `row` of outputs.
  static __device__ int dim_of(int row) { return row; }
  static __device__ void multiply(float (&sums)[4], const uint32_t (&first)[4], uint32_t low, uint32_t high) {
    multiply_add(sums, first, low, high);
  }
};

// Numbers of the pool in e4m3, which are exact in f16. A load gives a thread the codes of four neighbouring dimensions, or of two neighbouring dimensions
// at two positions. So the dimensions of products have another order.
struct Fp8Numbers {
  using Stored = uint8_t;
  static constexpr int TILE_TOKENS = 128;

  // A query beyond the range of f16 gets its end. No model has such queries. NaN stays.
  static __device__ uint32_t of_queries(uint32_t bf16_pair) {
    const float2 pair = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bf16_pair));
    const __half2 most = __float2half2_rn(F16_MAX), within = __hmax2_nan(__hmin2_nan(__float22half2_rn(pair), most), __hneg2(most));
    return *reinterpret_cast<const uint32_t*>(&within);
  }
  static __device__ uint32_t of_weights(float first, float second) {
    const __half2 pair = __floats2half2_rn(first, second);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
  static __device__ int query_pair(int t, int half) { return 2 * t + half; }
  static __device__ int dim_of(int row) { return row % 8 * 2 + row / 8; }
  static __device__ void multiply(float (&sums)[4], const uint32_t (&first)[4], uint32_t low, uint32_t high) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(first[0]), "r"(first[1]), "r"(first[2]), "r"(first[3]), "r"(low), "r"(high));
  }
  // The numbers of the two lower or the two upper codes.
  static __device__ uint32_t numbers(uint32_t codes, int upper) {
    uint32_t pair;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"(static_cast<uint16_t>(codes >> 16 * upper)));
    return pair;
  }
};

// Tiles of a head size in shared memory: lines of at most 128 bytes.
template <typename Numbers, int DIMS>
struct TileLayout {
  static constexpr int NUMBER_BYTES = sizeof(typename Numbers::Stored);
  static constexpr int LINE = DIMS * NUMBER_BYTES < LINE_BYTES ? DIMS * NUMBER_BYTES : LINE_BYTES, LINE_DIMS = LINE / NUMBER_BYTES;
  static constexpr int LINES = DIMS / LINE_DIMS;  // of a position
  static constexpr int TOKENS = Numbers::TILE_TOKENS, WARP_TOKENS = TOKENS / WARPS, STEPS = WARP_TOKENS / STEP;
  static constexpr int PART_BYTES = TOKENS * LINE, KEYS_BYTES = LINES * PART_BYTES, BYTES = 2 * KEYS_BYTES;
  static constexpr int VECTORS = LINE / VECTOR_BYTES;
  static_assert(LINE == 64 || LINE == 128);

  // The offset of a vector of a position, in keys or values. The copy swizzles the lines.
  static __device__ int offset(int token, int vector) {
    const int swizzled = vector % VECTORS ^ (LINE == 128 ? token % 8 : token / 2 % 4);
    return vector / VECTORS * PART_BYTES + token * LINE + swizzled * VECTOR_BYTES;
  }
};

// sums[16 positions][8 heads] = keys[16][DIMS] . queries[8][DIMS]^T, with the keys at `keys` from position `first` on.
template <int DIMS>
__device__ void multiply_keys(Bf16Numbers, float (&sums)[4], uint32_t keys, int first, const uint32_t (&queries)[DIMS / 16][2]) {
  const int lane = threadIdx.x % WARP;
#pragma unroll
  for (int step = 0; step < DIMS / 16; step++) {
    uint32_t of_keys[4];
    load(of_keys, keys + TileLayout<Bf16Numbers, DIMS>::offset(first + lane % 16, step * 2 + lane / 16));
    Bf16Numbers::multiply(sums, of_keys, queries[step][0], queries[step][1]);
  }
}
template <int DIMS>
__device__ void multiply_keys(Fp8Numbers, float (&sums)[4], uint32_t keys, int first, const uint32_t (&queries)[DIMS / 16][2]) {
  const int lane = threadIdx.x % WARP;
#pragma unroll
  for (int step = 0; step < DIMS / 16; step += 2) {
    uint32_t codes[4];
    load(codes, keys + TileLayout<Fp8Numbers, DIMS>::offset(first + lane % 16, step + lane / 16));
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t lower = codes[2 * i], upper = codes[2 * i + 1];
      const uint32_t of_keys[4] = {Fp8Numbers::numbers(lower, 0), Fp8Numbers::numbers(upper, 0), Fp8Numbers::numbers(lower, 1),
                                   Fp8Numbers::numbers(upper, 1)};
      Fp8Numbers::multiply(sums, of_keys, queries[step + i][0], queries[step + i][1]);
    }
  }
}

// out[DIMS][8 heads] += values[16 positions][DIMS]^T . weights[16][8], with the values at `values` from position `first` on.
template <int DIMS>
__device__ void multiply_values(Bf16Numbers, float (&out)[DIMS / 16][4], uint32_t values, int first, uint32_t low, uint32_t high) {
  const int lane = threadIdx.x % WARP, token = first + lane % 8 + lane / 16 * 8;
#pragma unroll
  for (int step = 0; step < DIMS / 16; step++) {
    // The lower and upper eight dimensions, of the lower and then the upper eight positions.
    uint32_t of_values[4];
    load_transposed(of_values, values + TileLayout<Bf16Numbers, DIMS>::offset(token, step * 2 + lane / 8 % 2));
    Bf16Numbers::multiply(out[step], of_values, low, high);
  }
}
template <int DIMS>
__device__ void multiply_values(Fp8Numbers, float (&out)[DIMS / 16][4], uint32_t values, int first, uint32_t low, uint32_t high) {
  const int lane = threadIdx.x % WARP, token = first + lane % 16;
#pragma unroll
  for (int step = 0; step < DIMS / 16; step += 2) {
    uint32_t codes[4];
    load_transposed(codes, values + TileLayout<Fp8Numbers, DIMS>::offset(token, step + lane / 16));
#pragma unroll
    for (int i = 0; i < 2; i++) {
      // Two dimensions at two positions: first the codes of the first dimension.
      const uint32_t lower = __byte_perm(codes[2 * i], 0, 0x3120), upper = __byte_perm(codes[2 * i + 1], 0, 0x3120);
      const uint32_t of_values[4] = {Fp8Numbers::numbers(lower, 0), Fp8Numbers::numbers(lower, 1), Fp8Numbers::numbers(upper, 0),
                                     Fp8Numbers::numbers(upper, 1)};
      Fp8Numbers::multiply(out[step + i], of_values, low, high);
    }
  }
}

}  // namespace

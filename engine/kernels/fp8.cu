// FP8 weights: rounding of bf16 weights when a model is loaded, and the reverse for products of many rows. `engine/src/fp8_rounding.rs` has the same
// rule for the CPU.

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "fp8.cuh"
#include "launch.cuh"

using bf16 = __nv_bfloat16;

namespace {

constexpr int WARP = 32;
constexpr int THREADS = 256;
constexpr int EXPONENT_LEAST = -100, EXPONENT_MOST = 7;

__device__ float power_of_two(int exponent) { return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23); }

// The smallest exponent with which `largest` is at most 448, which is 1.75 times a power of two.
__device__ int exponent_of(float largest) {
  if (largest == 0.f) return 0;
  const uint32_t bits = __float_as_uint(largest);
  const int power = static_cast<int>(bits >> 23) - 127;
  const float mantissa = __uint_as_float((bits & 0x7fffffu) | 0x3f800000u);
  return min(max(mantissa <= 1.75f ? power - 8 : power - 7, EXPONENT_LEAST), EXPONENT_MOST);
}

// A block rounds the weights of one output.
__global__ void __launch_bounds__(THREADS) quantise(const bf16* weights, uint32_t* words, float* scales, int inputs, bool plain) {
  __shared__ float of_warps[THREADS / WARP];
  const bf16* own = weights + int64_t{blockIdx.x} * inputs;
  float largest = 0.f;
  for (int i = threadIdx.x; i < inputs; i += THREADS) largest = fmaxf(largest, fabsf(__bfloat162float(own[i])));
  for (int offset = WARP / 2; offset > 0; offset /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
  if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = largest;
  __syncthreads();
  for (int warp = 0; warp < THREADS / WARP; warp++) largest = fmaxf(largest, of_warps[warp]);
  const float scale = power_of_two(exponent_of(largest));
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;

  uint32_t* to = words + int64_t{blockIdx.x} * (inputs / 4);
  for (int word = threadIdx.x; word < inputs / 4; word += THREADS) {
    const auto code = [&](int input) -> uint32_t {
      return __nv_cvt_float_to_fp8(__bfloat162float(own[input]) / scale, __NV_SATFINITE, __NV_E4M3);
    };
    if (plain) {
      to[word] = code(4 * word) | code(4 * word + 1) << 8 | code(4 * word + 2) << 16 | code(4 * word + 3) << 24;
      continue;
    }
    const int first = word / 4 * GROUP_INPUTS + word % 4 * 2;
    const uint32_t codes[4] = {code(first), code(first + 1), code(first + 8), code(first + 9)};
    to[word] = packed(codes);
  }
}

// A thread makes the bf16 weights of a group.
__global__ void __launch_bounds__(THREADS)
    dequantise(const uint4* groups, const float* scales, uint4* weights, int of_output, int64_t count) {
  after_previous(ROWS_FEW + 1);
  const int64_t at = int64_t{blockIdx.x} * THREADS + threadIdx.x;
  if (at >= count) return;
  const bf16 scale = __float2bfloat16(scales[at / of_output]);
  const uint4 group = groups[at];
  const uint32_t words[4] = {group.x, group.y, group.z, group.w};
  uint32_t out[8];
#pragma unroll
  for (int t = 0; t < 4; t++) {
    const uint32_t pairs[2] = {first_pair(words[t]), second_pair(words[t])};
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const __nv_bfloat162 scaled =
          __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&pairs[half]), __nv_bfloat162(scale, scale));
      out[half * 4 + t] = *reinterpret_cast<const uint32_t*>(&scaled);
    }
  }
  weights[2 * at] = {out[0], out[1], out[2], out[3]};
  weights[2 * at + 1] = {out[4], out[5], out[6], out[7]};
}

}  // namespace

// The arguments. `engine/src/gpu/arguments.rs` declares the same structs, and a test there compares the two.
struct QuantiseRows {
  const bf16* weights;
  uint32_t* words;
  float* scales;
  int32_t outputs;
  int32_t inputs;
  int32_t plain;
};
static_assert(sizeof(QuantiseRows) == 40);

struct DequantiseRows {
  const uint32_t* words;
  const float* scales;
  bf16* weights;
  int32_t outputs;
  int32_t inputs;
};
static_assert(sizeof(DequantiseRows) == 32);

extern "C" {

// words[outputs][inputs / 4] and scales[outputs] = weights[outputs][inputs], rounded. A word has the codes of four inputs one after the other if
// `plain`, else in the order of fp8.cuh. `inputs` is a multiple of 16.
int baton_quantise_rows(const QuantiseRows* arguments, cudaStream_t stream) {
  const auto [weights, words, scales, outputs, inputs, plain] = *arguments;
  if (inputs % GROUP_INPUTS != 0) return cudaErrorInvalidValue;
  quantise<<<outputs, THREADS, 0, stream>>>(weights, words, scales, inputs, plain != 0);
  return cudaGetLastError();
}

// weights[outputs][inputs] = the numbers of words[outputs][inputs / 4] times scales[outputs]. `inputs` is a multiple of 16.
int baton_dequantise_rows(const DequantiseRows* arguments, cudaStream_t stream) {
  const auto [words, scales, weights, outputs, inputs] = *arguments;
  if (inputs % GROUP_INPUTS != 0) return cudaErrorInvalidValue;
  const int of_output = inputs / GROUP_INPUTS;
  const int64_t count = int64_t{outputs} * of_output;
  const auto blocks = static_cast<unsigned>((count + THREADS - 1) / THREADS);
  return launch(dequantise, blocks, THREADS, 0, stream, reinterpret_cast<const uint4*>(words), scales,
                reinterpret_cast<uint4*>(weights), of_output, count);
}

}  // extern "C"

// FP8 rows: e4m3 codes with a scale for each row. `engine/src/fp8_rounding.rs` has the same rule for the CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <float.h>
#include <stdint.h>

#include "vectors.cuh"

namespace {

constexpr float CODE_MAX = 448;

// The scale of a row with this largest magnitude. A row of zeros has the scale 1.
__device__ float row_scale(float largest) {
  const float scale = largest / CODE_MAX;
  return scale == 0.f ? 1.f : scale;
}

// Divides by a scale in three operations: multiplies by the inverse, and corrects the result by the remainder. The result is that of `/` for rows
// whose largest magnitude is at least 1e-35. Smaller rows become smaller.
struct Divisor {
  float scale, inverse;

  // Without the limit, the inverse of a scale below 3e-39 is infinite, and zeros become NaN.
  __device__ explicit Divisor(float scale) : scale(scale), inverse(fminf(1.f / scale, FLT_MAX)) {}
  __device__ float divide(float number) const {
    const float quotient = number * inverse;
    return __fmaf_rn(__fmaf_rn(-quotient, scale, number), inverse, quotient);
  }
};

// The codes of four numbers, which are divided first.
__device__ uint32_t divided_codes_of(float a, float b, float c, float d, const Divisor& by) {
  const uint32_t low = __nv_cvt_float2_to_fp8x2({by.divide(a), by.divide(b)}, __NV_SATFINITE, __NV_E4M3);
  const uint32_t high = __nv_cvt_float2_to_fp8x2({by.divide(c), by.divide(d)}, __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}

// The maximum over the block, in every thread. A kernel may call it only once, because it does not synchronise before it writes shared memory.
__device__ float block_max(float value) {
  __shared__ float of_warps[32];
  for (int offset = 16; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, offset));
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  float largest = of_warps[0];
  for (int warp = 1; warp < blockDim.x / 32; warp++) largest = fmaxf(largest, of_warps[warp]);
  return largest;
}

// Rounds row `row`. The block's threads have it: vector n of a thread is number n * blockDim.x + threadIdx.x of the row's `count` vectors.
template <int PER_THREAD>
__device__ void round_row(const Vector (&kept)[PER_THREAD], int64_t row, int count, uint8_t* codes, float* scales) {
  float largest = 0.f;
#pragma unroll
  for (int n = 0; n < PER_THREAD; n++) {
    if (n * blockDim.x + threadIdx.x < count) largest = fmaxf(largest, largest_of(widen(kept[n])));
  }
  const float scale = row_scale(block_max(largest));
  if (threadIdx.x == 0) scales[row] = scale;
  const Divisor by(scale);
#pragma unroll
  for (int n = 0; n < PER_THREAD; n++) {
    const int i = n * blockDim.x + threadIdx.x;
    if (i >= count) break;
    const Floats numbers = widen(kept[n]);
    const float(&of)[VECTOR] = numbers.at;
    reinterpret_cast<uint2*>(codes)[row * count + i] = {divided_codes_of(of[0], of[1], of[2], of[3], by),
                                                        divided_codes_of(of[4], of[5], of[6], of[7], by)};
  }
}

}  // namespace

// Products of a few rows with a weight matrix: decode steps of one to four sequences. They are bound by reading the weights once, and
// a matrix library's kernels, made for tiles, read them at three quarters of what the memory gives.
//
// One warp an output: its lanes take the row's 16-byte pieces in turn, eight of them in flight each. A sum's order does not depend
// on how many rows there are, so a row's result is the same alone and beside others. The first pieces are on their way before the row
// is there: weights do not depend on the kernel before.

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "launch.cuh"

using bf16 = __nv_bfloat16;

namespace {

constexpr int VECTOR = 8;
constexpr int WARP = 32;
constexpr int WARPS = 16;
constexpr int IN_FLIGHT = 8;

__device__ float dot(const uint4& a, const uint4& b, float sum) {
  const __nv_bfloat162* x = reinterpret_cast<const __nv_bfloat162*>(&a);
  const __nv_bfloat162* y = reinterpret_cast<const __nv_bfloat162*>(&b);
#pragma unroll
  for (int i = 0; i < VECTOR / 2; i++) {
    const float2 left = __bfloat1622float2(x[i]), right = __bfloat1622float2(y[i]);
    sum = fmaf(left.x, right.x, sum);
    sum = fmaf(left.y, right.y, sum);
  }
  return sum;
}

__device__ void store(bf16* at, float value) { *at = __float2bfloat16(value); }
__device__ void store(float* at, float value) { *at = value; }

template <int ROWS, typename Out>
__global__ void __launch_bounds__(WARP* WARPS) row_products(const uint4* weights, const uint4* x, Out* y, int outputs, int pieces) {
  extern __shared__ uint4 shared[];
  const int lane = threadIdx.x % WARP, output = blockIdx.x * WARPS + threadIdx.x / WARP;
  // Whoever has no output reads the last one's weights, and nothing comes of it.
  const uint4* row = weights + static_cast<size_t>(min(output, outputs - 1)) * pieces;
  uint4 some[IN_FLIGHT];
  const auto fetch = [&](int base) {
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) {
      const int piece = base + i * WARP;
      // Read once by one warp: of no use in a cache.
      some[i] = piece < pieces ? __ldcs(row + piece) : make_uint4(0, 0, 0, 0);
    }
  };
  fetch(lane);
  after_previous();
  for (int i = threadIdx.x; i < ROWS * pieces; i += blockDim.x) shared[i] = x[i];
  __syncthreads();
  float sums[ROWS] = {};
  for (int base = lane; base < pieces;) {
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) {
      const int piece = min(base + i * WARP, pieces - 1);
#pragma unroll
      for (int r = 0; r < ROWS; r++) sums[r] = dot(some[i], shared[r * pieces + piece], sums[r]);
    }
    base += WARP * IN_FLIGHT;
    fetch(base);
  }
  if (output >= outputs) return;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) sums[r] += __shfl_xor_sync(~0u, sums[r], offset);
    if (lane == 0) store(y + static_cast<size_t>(r) * outputs + output, sums[r]);
  }
}

template <int ROWS, typename Out>
int multiply(const bf16* x, const bf16* weights, Out* y, int outputs, int inputs, cudaStream_t stream) {
  const int pieces = inputs / VECTOR, bytes = ROWS * inputs * static_cast<int>(sizeof(bf16));
  const auto kernel = row_products<ROWS, Out>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int blocks = (outputs + WARPS - 1) / WARPS;
  return launch(kernel, blocks, WARP * WARPS, bytes, stream, reinterpret_cast<const uint4*>(weights),
                reinterpret_cast<const uint4*>(x), y, outputs, pieces);
}

template <typename Out>
int of_rows(const bf16* x, const bf16* weights, Out* y, int rows, int outputs, int inputs, cudaStream_t stream) {
  switch (rows) {
    case 0: return cudaSuccess;
    case 1: return multiply<1>(x, weights, y, outputs, inputs, stream);
    case 2: return multiply<2>(x, weights, y, outputs, inputs, stream);
    case 3: return multiply<3>(x, weights, y, outputs, inputs, stream);
    case 4: return multiply<4>(x, weights, y, outputs, inputs, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

extern "C" {

// y[rows][outputs] = x[rows][inputs] . weights[outputs][inputs]^T for up to 4 rows, sums in f32; y is f32 if `wide`, else bf16.
// inputs % 8 == 0, and 2 * rows * inputs bytes fit a block's shared memory.
int baton_row_products(const bf16* x, const bf16* weights, void* y, int wide, int rows, int outputs, int inputs,
                       cudaStream_t stream) {
  return wide ? of_rows(x, weights, static_cast<float*>(y), rows, outputs, inputs, stream)
              : of_rows(x, weights, static_cast<bf16*>(y), rows, outputs, inputs, stream);
}

}  // extern "C"

// Products of a few rows with a weight matrix. They are bound by reading the weights once. cublasLt's kernels have tiles of many
// rows. They take a seventh longer, and cannot start to read weights while the previous kernel ends.
//
// **A row's result is bit-identical to that of cublasLt's kernels without split-K, for any number of rows.** Tensor cores sum
// sixteen inputs at a time, in the inputs' order, for every instruction shape. So here one warp sums sixteen outputs over all
// inputs with `mma.sync`, while cublasLt uses `wgmma`. The program `gpu_engine` checks this.
//
// A block has three warps. One copies weights into a ring of stages, one copies the rows, and one multiplies. The copy of the
// first weight stages starts before the rows are ready, because weights do not depend on the previous kernel.

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "launch.cuh"

using bf16 = __nv_bfloat16;

namespace {

constexpr int WARP = 32;
constexpr int VECTOR = 8;                              // bf16 in 16 bytes
constexpr int VECTOR_BYTES = VECTOR * sizeof(bf16);
constexpr int LINE_BYTES = WARP * VECTOR_BYTES;        // of one output or row in a stage: one vector per thread
constexpr int TILE_OUTPUTS = 16, TILE_ROWS = 8;
constexpr int WEIGHTS_WARP = 0, ROWS_WARP = 1, WARPS = 3;
constexpr int BLOCKS = 5;                              // per multiprocessor, limited by registers

__device__ void store(bf16* at, float value) { *at = __float2bfloat16(value); }
__device__ void store(float* at, float value) { *at = value; }

__device__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ void initialise(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// The thread arrives at the barrier when all its copies so far have finished.
__device__ void arrive_when_copied(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
__device__ void wait_for(uint32_t barrier, uint32_t phase) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(barrier),
      "r"(phase)
      : "memory");
}
// Copies 16 bytes asynchronously. Only the first `bytes` bytes are read; the rest are zero.
__device__ void copy(uint32_t to, const uint4* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ void load(uint32_t (&matrices)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}
// sums[16 outputs][8 rows] += weights[16][16] . rows[8][16]^T
__device__ void multiply_add(float (&sums)[4], const uint32_t (&weights)[4], uint32_t rows_low, uint32_t rows_high) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "r"(rows_low), "r"(rows_high));
}

// The byte offset of a vector in its line. The swizzle puts vectors with the same index in eight lines into different banks.
__device__ uint32_t within(int line, int vector) { return (vector ^ line % 8) * VECTOR_BYTES; }

// TILES is the number of row tiles. The ring has STAGES stages; a stage has one line for each output and each row.
template <int TILES, int STAGES, typename Out>
__global__ void __launch_bounds__(WARPS* WARP, BLOCKS)
    row_products(const uint4* weights, const uint4* x, Out* y, int rows, int outputs, int vectors) {
  extern __shared__ __align__(128) uint8_t ring[];
  __shared__ uint64_t barriers[2 * STAGES];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int slices = (vectors + WARP - 1) / WARP, first_output = blockIdx.x * TILE_OUTPUTS;
  const uint32_t stage_bytes = (TILE_OUTPUTS + rows) * LINE_BYTES, ring_at = shared_address(ring);
  // A stage is full when all threads of both copying warps have arrived, and empty when the multiplying warp has arrived.
  const uint32_t full = shared_address(barriers), empty = full + STAGES * sizeof(uint64_t);
  if (threadIdx.x < 2 * STAGES) {
    initialise(full + threadIdx.x * sizeof(uint64_t), threadIdx.x < STAGES ? 2 * WARP : 1);
  }
  __syncthreads();

  // Copies the warp's share of every stage: `lines` lines at `offset`, from `lines` rows of `matrix`. `last` is the last row.
  const auto copy_stages = [&](const uint4* matrix, uint32_t offset, int lines, int last) {
    for (int slice = 0, stage = 0, phase = 1; slice < slices; slice++) {
      if (slice >= STAGES) wait_for(empty + stage * sizeof(uint64_t), phase);
      const uint32_t at = ring_at + stage * stage_bytes + offset;
      const int vector = slice * WARP + lane;
      const bool there = vector < vectors;
#pragma unroll 16
      for (int line = 0; line < lines; line++) {
        // A line past the last output copies the last output's weights; its result is not stored.
        const uint4* from = matrix + static_cast<size_t>(min(line, last)) * vectors + (there ? vector : 0);
        copy(at + line * LINE_BYTES + within(line, lane), from, there ? VECTOR_BYTES : 0);
      }
      arrive_when_copied(full + stage * sizeof(uint64_t));
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
  };
  if (warp == WEIGHTS_WARP) {
    return copy_stages(weights + static_cast<size_t>(first_output) * vectors, 0, TILE_OUTPUTS, outputs - 1 - first_output);
  }
  after_previous(rows);
  if (warp == ROWS_WARP) return copy_stages(x, TILE_OUTPUTS * LINE_BYTES, rows, rows - 1);

  float sums[TILES][4] = {};
  for (int slice = 0, stage = 0, phase = 0; slice < slices; slice++) {
    wait_for(full + stage * sizeof(uint64_t), phase);
    const uint32_t outputs_at = ring_at + stage * stage_bytes, rows_at = outputs_at + TILE_OUTPUTS * LINE_BYTES;
#pragma unroll
    for (int vector = 0; vector < WARP; vector += 4) {  // 32 inputs
      const int output = lane % 16;
      uint32_t low[4], high[4];
      load(low, outputs_at + output * LINE_BYTES + within(output, vector + lane / 16));
      load(high, outputs_at + output * LINE_BYTES + within(output, vector + 2 + lane / 16));
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        // A row past the last one repeats the last row; its result is not stored.
        const int row = min(tile * TILE_ROWS + lane % 8, rows - 1);
        uint32_t of_rows[4];
        load(of_rows, rows_at + row * LINE_BYTES + within(row, vector + lane / 8));
        multiply_add(sums[tile], low, of_rows[0], of_rows[1]);
        multiply_add(sums[tile], high, of_rows[2], of_rows[3]);
      }
    }
    __syncwarp();
    if (lane == 0) arrive(empty + stage * sizeof(uint64_t));
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
#pragma unroll
  for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int output = first_output + i / 2 * 8 + lane / 4, row = tile * TILE_ROWS + lane % 4 * 2 + i % 2;
      if (row < rows && output < outputs) store(y + static_cast<size_t>(row) * outputs + output, sums[tile][i]);
    }
  }
}

template <int TILES, int STAGES, typename Out>
int multiply(const bf16* x, const bf16* weights, Out* y, int rows, int outputs, int inputs, cudaStream_t stream) {
  const int bytes = STAGES * (TILE_OUTPUTS + rows) * LINE_BYTES;
  const auto kernel = row_products<TILES, STAGES, Out>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int blocks = (outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS;
  return launch(kernel, blocks, WARPS * WARP, bytes, stream, reinterpret_cast<const uint4*>(weights),
                reinterpret_cast<const uint4*>(x), y, rows, outputs, inputs / VECTOR);
}

// The numbers of stages were measured with Llama-3.1-8B on an H100. They leave room for two or a few more blocks per
// multiprocessor.
template <typename Out>
int of_rows(const bf16* x, const bf16* weights, Out* y, int rows, int outputs, int inputs, cudaStream_t stream) {
  switch ((rows + TILE_ROWS - 1) / TILE_ROWS) {
    case 0: return cudaSuccess;
    case 1: return multiply<1, 8>(x, weights, y, rows, outputs, inputs, stream);
    case 2: return multiply<2, 6>(x, weights, y, rows, outputs, inputs, stream);
    case 3: return multiply<3, 4>(x, weights, y, rows, outputs, inputs, stream);
    case 4: return multiply<4, 4>(x, weights, y, rows, outputs, inputs, stream);
    default: return cudaErrorInvalidValue;
  }
  static_assert(ROWS_FEW == 4 * TILE_ROWS);
}

}  // namespace

// The arguments. `engine/src/gpu/arguments.rs` declares the same struct, and a test there compares the two.
struct RowProducts {
  const bf16* x;
  const bf16* weights;
  void* y;
  int32_t wide;
  int32_t rows;
  int32_t outputs;
  int32_t inputs;
};
static_assert(sizeof(RowProducts) == 40);

extern "C" {

// The most rows of one call.
int baton_row_products_max() { return ROWS_FEW; }

// y[rows][outputs] = x[rows][inputs] . weights[outputs][inputs]^T for up to 32 rows, with f32 sums. y is f32 if `wide`, else
// bf16. `inputs` is a multiple of 8.
int baton_row_products(const RowProducts* arguments, cudaStream_t stream) {
  const auto [x, weights, y, wide, rows, outputs, inputs] = *arguments;
  return wide ? of_rows(x, weights, static_cast<float*>(y), rows, outputs, inputs, stream)
              : of_rows(x, weights, static_cast<bf16*>(y), rows, outputs, inputs, stream);
}

}  // extern "C"

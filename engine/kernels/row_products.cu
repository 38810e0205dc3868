// Products of a few rows with a weight matrix in bf16 or FP8. They are bound by reading the weights once. cublasLt's kernels have tiles of many
// rows. They take a seventh longer, and cannot start to read weights while the previous kernel ends.
//
// **A row's result is bit-identical to that of cublasLt's kernels without split-K, for any number of rows.** Tensor cores sum
// sixteen inputs at a time, in the inputs' order, for every instruction shape. So here one warp sums sixteen outputs over all
// inputs with `mma.sync`, while cublasLt uses `wgmma`. The program `gpu_engine` checks this. It is also bit-identical for FP8 weights and bf16
// weights with the same numbers: the warps make bf16 numbers of the codes, and the scale of an output is a power of two, so its sum may be scaled
// instead of its weights.
//
// A block has a warp that copies weights into a ring of stages, one that copies the rows, and MULTIPLIERS that multiply, each for sixteen outputs. The
// copy of the first weight stages starts before the rows are ready, because weights do not depend on the previous kernel.

#include "fp8.cuh"
#include "launch.cuh"
#include "stages.cuh"

namespace {

constexpr int STAGE_INPUTS = 256;
constexpr int ROW_VECTORS = STAGE_INPUTS / VECTOR, ROW_BYTES = ROW_VECTORS * VECTOR_BYTES;  // of a row in a stage
constexpr int WEIGHTS_WARP = 0, ROWS_WARP = 1, COPIERS = 2;
constexpr int BLOCKS = 5;  // per multiprocessor, limited by registers, with one multiplying warp each
constexpr int ROWS_MAX = 64;
// With more outputs, blocks of 32 outputs still give every multiprocessor work.
constexpr int OUTPUTS_MANY = 8192;

// Weights in bf16: a vector has eight inputs.
struct Bf16Weights {
  static constexpr int LINE_VECTORS = STAGE_INPUTS / VECTOR, INPUTS = VECTOR;

  // The fragments of sixteen outputs and of inputs 32 * step to 32 * step + 31 of a stage. `line` is the line of the thread.
  static __device__ void fragments(uint32_t (&low)[4], uint32_t (&high)[4], uint32_t at, int line, int step) {
    const uint32_t of_line = at + line * LINE_VECTORS * VECTOR_BYTES;
    const int vector = 4 * step + threadIdx.x % WARP / 16;
    load(low, of_line + within(line, vector));
    load(high, of_line + within(line, vector + 2));
  }
};

// FP8 weights: a vector has a group of sixteen inputs.
struct Fp8Weights {
  static constexpr int LINE_VECTORS = STAGE_INPUTS / GROUP_INPUTS, INPUTS = GROUP_INPUTS;

  static __device__ void fragments(uint32_t (&low)[4], uint32_t (&high)[4], uint32_t at, int line, int step) {
    // The words of the outputs' first and second eight, of sixteen inputs and of the next sixteen.
    uint32_t words[4];
    load(words, at + line * LINE_VECTORS * VECTOR_BYTES + within(line, 2 * step + threadIdx.x % WARP / 16));
#pragma unroll
    for (int half = 0; half < 2; half++) {
      low[half] = first_pair(words[half]);
      low[2 + half] = second_pair(words[half]);
      high[half] = first_pair(words[2 + half]);
      high[2 + half] = second_pair(words[2 + half]);
    }
  }
};

// A stage has a line for each output and each row. TILES is the number of row tiles.
template <typename Weights, int TILES, int STAGES, int MULTIPLIERS, typename Out>
__global__ void __launch_bounds__((COPIERS + MULTIPLIERS) * WARP, MULTIPLIERS == 1 ? BLOCKS : 1)
    row_products(const uint4* weights, const float* scales, const uint4* x, Out* y, int rows, int outputs, int inputs) {
  constexpr int BLOCK_OUTPUTS = MULTIPLIERS * TILE_OUTPUTS;
  constexpr int WEIGHTS_BYTES = BLOCK_OUTPUTS * Weights::LINE_VECTORS * VECTOR_BYTES;
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ uint64_t barriers[2 * STAGES];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, first_output = blockIdx.x * BLOCK_OUTPUTS;
  const int slices = (inputs + STAGE_INPUTS - 1) / STAGE_INPUTS;
  const Ring<STAGES> ring(memory, barriers, WEIGHTS_BYTES + rows * ROW_BYTES, slices, COPIERS, MULTIPLIERS);
  if (warp == WEIGHTS_WARP) {
    const int vectors = inputs / Weights::INPUTS;
    const uint4* own = weights + static_cast<size_t>(first_output) * vectors;
    return ring.template fill<Weights::LINE_VECTORS>(own, 0, BLOCK_OUTPUTS, outputs - 1 - first_output, vectors);
  }
  after_previous();
  if (warp == ROWS_WARP) return ring.template fill<ROW_VECTORS>(x, WEIGHTS_BYTES, rows, rows - 1, inputs / VECTOR);

  const int tile_output = (warp - COPIERS) * TILE_OUTPUTS;
  float sums[TILES][4] = {};
  ring.drain([&](uint32_t outputs_at) {
    const uint32_t rows_at = outputs_at + WEIGHTS_BYTES;
#pragma unroll
    for (int step = 0; step < STAGE_INPUTS / 32; step++) {
      uint32_t low[4], high[4];
      Weights::fragments(low, high, outputs_at, tile_output + lane % 16, step);
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        // A row past the last one repeats the last row; its result is not stored.
        const int row = min(tile * TILE_ROWS + lane % 8, rows - 1);
        uint32_t of_rows[4];
        load(of_rows, rows_at + row * ROW_BYTES + within(row, 4 * step + lane / 8));
        multiply_add(sums[tile], low, of_rows[0], of_rows[1]);
        multiply_add(sums[tile], high, of_rows[2], of_rows[3]);
      }
    }
  });
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int output = first_output + tile_output + half * 8 + lane / 4;
    if (output >= outputs) continue;
    const float scale = scales == nullptr ? 1.f : scales[output];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int row = tile * TILE_ROWS + lane % 4 * 2 + i;
        if (row < rows) store(y + static_cast<size_t>(row) * outputs + output, sums[tile][2 * half + i] * scale);
      }
    }
  }
}

}  // namespace

// The arguments. `engine/src/gpu/arguments.rs` declares the same struct, and a test there compares the two.
struct RowProducts {
  const void* weights;
  const float* scales;
  const bf16* x;
  void* y;
  int32_t wide;
  int32_t rows;
  int32_t outputs;
  int32_t inputs;
};
static_assert(sizeof(RowProducts) == 48);

namespace {

template <typename Weights, int TILES, int STAGES, int MULTIPLIERS, typename Out>
int multiply(const RowProducts& of, cudaStream_t stream) {
  constexpr int BLOCK_OUTPUTS = MULTIPLIERS * TILE_OUTPUTS;
  const int bytes = STAGES * (BLOCK_OUTPUTS * Weights::LINE_VECTORS * VECTOR_BYTES + of.rows * ROW_BYTES);
  const auto kernel = row_products<Weights, TILES, STAGES, MULTIPLIERS, Out>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int blocks = (of.outputs + BLOCK_OUTPUTS - 1) / BLOCK_OUTPUTS;
  return launch(kernel, blocks, (COPIERS + MULTIPLIERS) * WARP, bytes, stream, static_cast<const uint4*>(of.weights), of.scales,
                reinterpret_cast<const uint4*>(of.x), static_cast<Out*>(of.y), of.rows, of.outputs, of.inputs);
}

// The numbers of stages and of multiplying warps were measured with Llama-3.1-8B, in bf16 on an H100 and in FP8 on an H200. With up to 32 rows they leave room
// for two or more blocks per multiprocessor.
template <typename Out>
int of_bf16(const RowProducts& of, cudaStream_t stream) {
  switch ((of.rows + TILE_ROWS - 1) / TILE_ROWS) {
    case 1: return multiply<Bf16Weights, 1, 8, 1, Out>(of, stream);
    case 2: return multiply<Bf16Weights, 2, 6, 1, Out>(of, stream);
    default: return cudaErrorInvalidValue;
  }
}

template <typename Out>
int of_fp8(const RowProducts& of, cudaStream_t stream) {
  const int tiles = (of.rows + TILE_ROWS - 1) / TILE_ROWS;
  if (tiles <= 1) {
    return of.outputs > OUTPUTS_MANY ? multiply<Fp8Weights, 1, 5, 2, Out>(of, stream) : multiply<Fp8Weights, 1, 8, 1, Out>(of, stream);
  }
  if (tiles <= 2) return multiply<Fp8Weights, 2, 4, 2, Out>(of, stream);
  if (tiles <= 4) return multiply<Fp8Weights, 4, 3, 2, Out>(of, stream);
  return multiply<Fp8Weights, 8, 4, 2, Out>(of, stream);
}

}  // namespace

extern "C" {

// The most rows of one call, with bf16 weights and with FP8 weights.
int baton_row_products_max(int is_fp8) { return is_fp8 ? ROWS_MAX : ROWS_FEW; }

// y[rows][outputs] = x[rows][inputs] . weights[outputs][inputs]^T, with f32 sums. y is f32 if `wide`, else bf16. Without `scales` the weights are bf16,
// and `inputs` is a multiple of 8. With scales, one for each output, they are words[outputs][inputs / 4] of FP8 codes, and `inputs` is a multiple
// of 16.
int baton_row_products(const RowProducts* arguments, cudaStream_t stream) {
  const RowProducts& of = *arguments;
  const bool is_fp8 = of.scales != nullptr;
  if (of.rows == 0) return cudaSuccess;
  if (of.rows > baton_row_products_max(is_fp8) || of.inputs % (is_fp8 ? GROUP_INPUTS : VECTOR) != 0) return cudaErrorInvalidValue;
  if (is_fp8) return of.wide ? of_fp8<float>(of, stream) : of_fp8<bf16>(of, stream);
  return of.wide ? of_bf16<float>(of, stream) : of_bf16<bf16>(of, stream);
}

}  // extern "C"

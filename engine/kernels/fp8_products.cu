// Products of a few FP8 rows with FP8 weights: both have e4m3 codes, a row has a scale, and an output has a scale.
//
// **A row's result is bit-identical to that of cublasLt's kernel for any number of rows.** The sums in wgmma's FP8 products have few bits, so after
// every 128 inputs they are added to sums in f32, and these are multiplied by the output's scale and then by the row's. cublasLt's kernel does the
// same. The program `gpu_engine` checks this.
//
// A block has warpgroups that multiply and a warp that copies tiles of weights and of rows to shared memory. It starts to copy weights before the rows are
// ready, because weights do not depend on the previous kernel.
//
// Every block reads all the rows that it multiplies, so with many rows the bandwidth of the caches is the limit. Blocks of a cluster share what they copy:
// blocks with the same outputs share a tile of weights and multiply different rows, and blocks with the same rows share the rows and multiply different
// outputs.

#include <cuda_bf16.h>

#include <utility>

#include "launch.cuh"
#include "rounding.cuh"
#include "stages.cuh"
#include "wgmma.cuh"

namespace {

constexpr int GROUP = 4 * WARP, GROUP_OUTPUTS = 64;  // a warpgroup, and the outputs that it multiplies
constexpr int ROWS_MAX = 64, ROWS_MAX_CLUSTER = 128;
constexpr int SLICE_INPUTS = LINE_BYTES, STEP_INPUTS = 32;
constexpr int ROUNDING_THREADS = 256;
constexpr int MULTIPROCESSORS = 132;  // of an H200
// With more outputs, blocks of two warpgroups still give every multiprocessor work.
constexpr int OUTPUTS_MANY = 8192;
// Up to this many outputs, the clusters of two blocks fit on the multiprocessors, one block on each.
constexpr int OUTPUTS_FEW = MULTIPROCESSORS / 2 * GROUP_OUTPUTS;

// How a block works.
// - It multiplies ROWS rows, PART rows at a time. An item is the product of PART rows with 128 inputs. Up to IN_FLIGHT items run at a time.
// - GROUPS warpgroups multiply. A multiprocessor has BLOCKS blocks.
// - Shared memory has STAGES stages, each of SLICES slices of a tile of weights and a tile of rows.
// - SHARE_ROWS blocks of a cluster have the same rows, and SHARE_WEIGHTS blocks the same outputs.
template <int ROWS_, int PART_, int GROUPS_, int STAGES_, int SLICES_, int BLOCKS_, int IN_FLIGHT_, int SHARE_ROWS_ = 1, int SHARE_WEIGHTS_ = 1>
struct Shape {
  static constexpr int ROWS = ROWS_, PART = PART_, GROUPS = GROUPS_, STAGES = STAGES_, SLICES = SLICES_, BLOCKS = BLOCKS_, IN_FLIGHT = IN_FLIGHT_;
  static constexpr int SHARE_ROWS = SHARE_ROWS_, SHARE_WEIGHTS = SHARE_WEIGHTS_, CLUSTER = SHARE_ROWS * SHARE_WEIGHTS;
  static constexpr int PARTS = ROWS / PART, THREADS = GROUPS * GROUP + WARP, OUTPUTS = GROUPS * GROUP_OUTPUTS;
  static constexpr int WEIGHTS_BYTES = OUTPUTS * LINE_BYTES, SLICE_BYTES = WEIGHTS_BYTES + ROWS * LINE_BYTES, BYTES = SLICES * SLICE_BYTES;
  static constexpr int SHARED_BYTES = TILE_ALIGN + STAGES * BYTES;
  // A stage is empty when all its items are added. While the last one is, the items in flight are in the other stages.
  static_assert((STAGES - 1) * SLICES * PARTS >= IN_FLIGHT);
};

// After this many slices a warpgroup waits for all its items.
constexpr int CHUNK_SLICES = 8;

template <typename F, int... NUMBERS>
__device__ void call_each(F f, std::integer_sequence<int, NUMBERS...>) {
  (f(std::integral_constant<int, NUMBERS>()), ...);
}
// Calls f with the constants 0 to COUNT - 1, so that the compiler knows which registers f uses.
template <int COUNT, typename F>
__device__ void for_each(F f) {
  call_each(f, std::make_integer_sequence<int, COUNT>());
}

__device__ void synchronise_threads(int barrier, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory"); }

template <typename Of, typename Out>
__global__ void __launch_bounds__(Of::THREADS, Of::BLOCKS)
    few_products(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap x, const float* output_scales,
                 const float* row_scales, Out* y, int rows, int outputs, int inputs) {
  constexpr int STAGES = Of::STAGES, SLICES = Of::SLICES, CLUSTER = Of::CLUSTER, MULTIPLIERS = Of::GROUPS * GROUP;
  extern __shared__ uint8_t memory[];
  __shared__ uint64_t barriers[2 * STAGES];
  __shared__ float scales_of_rows[Of::ROWS];
  const uint32_t unaligned = shared_address(memory), at = (unaligned + TILE_ALIGN - 1) / TILE_ALIGN * TILE_ALIGN;
  const uint32_t full = shared_address(barriers), empty = full + STAGES * sizeof(uint64_t);
  if (threadIdx.x < 2 * STAGES) {
    initialise_for_copies(full + threadIdx.x * sizeof(uint64_t), threadIdx.x < STAGES ? 1 : CLUSTER * MULTIPLIERS / WARP);
  }
  synchronise<CLUSTER>();
  // `of_outputs` is the block's index among those with the same rows, and `of_rows` among those with the same outputs.
  const int in_cluster = blockIdx.x % CLUSTER, of_outputs = in_cluster / Of::SHARE_WEIGHTS, of_rows = in_cluster % Of::SHARE_WEIGHTS;
  const int first_row = of_rows * Of::ROWS, first_output = (blockIdx.x / CLUSTER * Of::SHARE_ROWS + of_outputs) * Of::OUTPUTS;
  // Slices past the last input are zero.
  const int fills = (inputs + SLICES * SLICE_INPUTS - 1) / (SLICES * SLICE_INPUTS);

  if (threadIdx.x >= MULTIPLIERS) {
    if (threadIdx.x > MULTIPLIERS) return;
    // A block copies its share of the weights to all blocks with the same outputs, and its share of the rows to all blocks with the same rows.
    constexpr int OUTPUTS_SHARE = Of::OUTPUTS / Of::SHARE_WEIGHTS, ROWS_SHARE = Of::ROWS / Of::SHARE_ROWS;
    const uint32_t same_outputs = ((1u << Of::SHARE_WEIGHTS) - 1) << of_outputs * Of::SHARE_WEIGHTS;
    uint32_t same_rows = 0;
    for (int i = 0; i < Of::SHARE_ROWS; i++) same_rows |= 1u << (i * Of::SHARE_WEIGHTS + of_rows);
    const auto copy_weights = [&](int fill, int stage) {
      const uint32_t barrier = full + stage * sizeof(uint64_t), to = at + stage * Of::BYTES + of_rows * OUTPUTS_SHARE * LINE_BYTES;
      expect(barrier, Of::BYTES);
#pragma unroll
      for (int slice = 0; slice < SLICES; slice++) {
        copy_tile_to<Of::SHARE_WEIGHTS>(to + slice * Of::SLICE_BYTES, &weights, (fill * SLICES + slice) * SLICE_INPUTS,
                                        first_output + of_rows * OUTPUTS_SHARE, barrier, same_outputs);
      }
    };
    for (int fill = 0; fill < min(STAGES, fills); fill++) copy_weights(fill, fill);
    after_previous();
    for (int fill = 0, stage = 0, phase = 1; fill < fills; fill++) {
      if (fill >= STAGES) {
        wait_for(empty + stage * sizeof(uint64_t), phase);
        copy_weights(fill, stage);
      }
      const uint32_t to = at + stage * Of::BYTES + Of::WEIGHTS_BYTES + of_outputs * ROWS_SHARE * LINE_BYTES;
#pragma unroll
      for (int slice = 0; slice < SLICES; slice++) {
        copy_tile_to<Of::SHARE_ROWS>(to + slice * Of::SLICE_BYTES, &x, (fill * SLICES + slice) * SLICE_INPUTS, first_row + of_outputs * ROWS_SHARE,
                                     full + stage * sizeof(uint64_t), same_rows);
      }
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    leave<CLUSTER>();
    return;
  }

  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = threadIdx.x / GROUP;
  // The thread's outputs are `output` and `output + 8` of the group's.
  const int output = warp % 4 * 16 + lane / 4, group_output = first_output + group * GROUP_OUTPUTS;
  float scales[2];
#pragma unroll
  for (int half = 0; half < 2; half++) scales[half] = output_scales[min(group_output + output + 8 * half, outputs - 1)];
  after_previous();
  const float scale_of_row = row_scales[min(first_row + static_cast<int>(threadIdx.x % Of::ROWS), rows - 1)];
  float sums[Of::ROWS / 2] = {}, products[Of::IN_FLIGHT][Of::PART / 2];
  int stage = 0, phase = 0, finished_stage = 0;
  const auto submit = [&](auto item) {
    constexpr int PART = item % Of::PARTS, SLICE = item / Of::PARTS % SLICES;
    if constexpr (PART == 0 && SLICE == 0) wait_for(full + stage * sizeof(uint64_t), phase);
    const uint32_t tile = at + stage * Of::BYTES + SLICE * Of::SLICE_BYTES;
    const uint64_t weights_tile = tile_descriptor(tile + group * GROUP_OUTPUTS * LINE_BYTES);
    const uint64_t rows_tile = tile_descriptor(tile + Of::WEIGHTS_BYTES + PART * Of::PART * LINE_BYTES);
    begin_products();
#pragma unroll
    for (int step = 0; step < SLICE_INPUTS / STEP_INPUTS; step++) {
      multiply_tiles<Of::PART>(products[item % Of::IN_FLIGHT], weights_tile + step * STEP_INPUTS / 16, rows_tile + step * STEP_INPUTS / 16, step > 0);
    }
    submit_products();
    if constexpr (PART == Of::PARTS - 1 && SLICE == SLICES - 1) {
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
  };
  const auto add_finished = [&](auto item) {
    constexpr int PART = item % Of::PARTS, SLICE = item / Of::PARTS % SLICES;
    float(&of)[Of::PART / 2] = products[item % Of::IN_FLIGHT];
    pin(of);
    if constexpr (PART == Of::PARTS - 1 && SLICE == SLICES - 1) {
      __syncwarp();
      if (lane < CLUSTER) arrive_at<CLUSTER>(empty + finished_stage * sizeof(uint64_t), lane);
      if (++finished_stage == STAGES) finished_stage = 0;
    }
#pragma unroll
    for (int i = 0; i < Of::PART / 2; i++) sums[PART * Of::PART / 2 + i] += of[i];
    pin(of);
  };
  // Multiplies `count` fills. Items run while earlier ones are added. None is in flight at the end, because otherwise the compiler makes every item wait.
  const auto multiply_fills = [&](auto count) {
    constexpr int ITEMS = count * SLICES * Of::PARTS, AHEAD = Of::IN_FLIGHT - 1 < ITEMS ? Of::IN_FLIGHT - 1 : ITEMS;
    for_each<AHEAD>([&](auto item) { submit(item); });
    for_each<ITEMS>([&](auto item) {
      constexpr int AFTER = ITEMS - 1 - item;
      if constexpr (AHEAD <= AFTER) submit(std::integral_constant<int, item + AHEAD>());
      wait_for_products<(AHEAD < AFTER ? AHEAD : AFTER)>();
      add_finished(item);
    });
  };
  constexpr int CHUNK = CHUNK_SLICES / SLICES;
  int left = fills;
  for (; left >= CHUNK; left -= CHUNK) multiply_fills(std::integral_constant<int, CHUNK>());
  if constexpr (CHUNK > 4) {
    if (left & 4) multiply_fills(std::integral_constant<int, 4>());
  }
  if (left & 2) multiply_fills(std::integral_constant<int, 2>());
  if (left & 1) multiply_fills(std::integral_constant<int, 1>());

  // After this barrier no warpgroup reads the stages. Their memory then has the results: [ROWS][64 outputs] of each group.
  if (threadIdx.x < Of::ROWS) scales_of_rows[threadIdx.x] = scale_of_row;
  synchronise_threads(1, MULTIPLIERS);
  constexpr int PER_VECTOR = 16 / sizeof(Out), LINE = GROUP_OUTPUTS + PER_VECTOR, VECTORS = GROUP_OUTPUTS / PER_VECTOR;
  static_assert(Of::GROUPS * Of::ROWS * LINE * sizeof(Out) <= STAGES * Of::BYTES && Of::ROWS <= GROUP);
  Out* results = reinterpret_cast<Out*>(memory + (at - unaligned)) + group * Of::ROWS * LINE;
#pragma unroll
  for (int i = 0; i < Of::ROWS / 2; i++) {
    const int row = i / 4 * 8 + lane % 4 * 2 + i % 2, half = i / 2 % 2;
    store(results + row * LINE + output + 8 * half, sums[i] * scales[half] * scales_of_rows[row]);
  }
  synchronise_threads(2 + group, GROUP);
  for (int i = threadIdx.x % GROUP; i < Of::ROWS * VECTORS; i += GROUP) {
    const int row = first_row + i / VECTORS, first = group_output + i % VECTORS * PER_VECTOR;
    if (row >= rows || first >= outputs) continue;
    const uint4* vector = reinterpret_cast<const uint4*>(results + i / VECTORS * LINE + i % VECTORS * PER_VECTOR);
    *reinterpret_cast<uint4*>(y + static_cast<size_t>(row) * outputs + first) = *vector;
  }
  leave<CLUSTER>();
}

// A block rounds a row.
__global__ void __launch_bounds__(ROUNDING_THREADS) round_rows(const bf16* x, uint2* codes, float* scales, int inputs) {
  after_previous(gridDim.x);
  const uint4* own = reinterpret_cast<const uint4*>(x + int64_t{blockIdx.x} * inputs);
  const auto pair = [](uint32_t bits) { return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits)); };
  float largest = 0.f;
  for (int i = threadIdx.x; i < inputs / VECTOR; i += ROUNDING_THREADS) {
    const uint4 vector = own[i];
    for (const uint32_t bits : {vector.x, vector.y, vector.z, vector.w}) {
      largest = fmaxf(largest, fmaxf(fabsf(pair(bits).x), fabsf(pair(bits).y)));
    }
  }
  const float scale = row_scale(block_max(largest));
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
  const Divisor by(scale);
  uint2* to = codes + int64_t{blockIdx.x} * (inputs / VECTOR);
  for (int i = threadIdx.x; i < inputs / VECTOR; i += ROUNDING_THREADS) {
    const uint4 vector = own[i];
    const float2 a = pair(vector.x), b = pair(vector.y), c = pair(vector.z), d = pair(vector.w);
    to[i] = {divided_codes_of(a.x, a.y, b.x, b.y, by), divided_codes_of(c.x, c.y, d.x, d.y, by)};
  }
}

}  // namespace

// The arguments. `engine/src/gpu/arguments.rs` declares the same structs, and a test there compares the two.
struct RoundRows {
  const bf16* x;
  uint8_t* codes;
  float* scales;
  int32_t rows;
  int32_t inputs;
};
static_assert(sizeof(RoundRows) == 32);

struct Fp8Products {
  const uint8_t* weights;
  const float* output_scales;
  const uint8_t* x;
  const float* row_scales;
  void* y;
  int32_t wide;
  int32_t rows;
  int32_t outputs;
  int32_t inputs;
};
static_assert(sizeof(Fp8Products) == 56);

namespace {

// Describes a matrix of codes, of which `box_lines` lines and a slice are copied at a time.
int describe_codes(CUtensorMap& map, const uint8_t* codes, int lines, int inputs, int box_lines) {
  return describe(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, codes, lines, inputs, 1, box_lines, SLICE_INPUTS);
}

template <typename Of, typename Out>
int multiply(const Fp8Products& of, cudaStream_t stream) {
  CUtensorMap weights, x;
  if (const int error = describe_codes(weights, of.weights, of.outputs, of.inputs, Of::OUTPUTS / Of::SHARE_WEIGHTS)) return error;
  // Copies that end outside of a matrix are slower, so the rows after the last one are copied too.
  if (const int error = describe_codes(x, of.x, Of::SHARE_WEIGHTS * Of::ROWS, of.inputs, Of::ROWS / Of::SHARE_ROWS)) return error;
  const auto kernel = few_products<Of, Out>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Of::SHARED_BYTES);
  if (error != cudaSuccess) return error;
  constexpr int CLUSTER_OUTPUTS = Of::SHARE_ROWS * Of::OUTPUTS;
  const int blocks = Of::CLUSTER * ((of.outputs + CLUSTER_OUTPUTS - 1) / CLUSTER_OUTPUTS);
  return launch_clusters(kernel, Of::CLUSTER, blocks, Of::THREADS, Of::SHARED_BYTES, stream, weights, x, of.output_scales, of.row_scales,
                         static_cast<Out*>(of.y), of.rows, of.outputs, of.inputs);
}

template <typename Many, typename Few, typename Out>
int of_outputs(const Fp8Products& of, cudaStream_t stream) {
  return of.outputs > OUTPUTS_MANY ? multiply<Many, Out>(of, stream) : multiply<Few, Out>(of, stream);
}

// The shapes were measured with Llama-3.1-8B on an H200.
template <typename Out>
int of_size(const Fp8Products& of, cudaStream_t stream) {
  if (of.rows <= 8) return of_outputs<Shape<8, 8, 2, 6, 1, 2, 2>, Shape<8, 8, 1, 11, 2, 1, 4>, Out>(of, stream);
  if (of.rows <= 16) return of_outputs<Shape<16, 16, 2, 5, 1, 2, 2>, Shape<16, 16, 1, 10, 2, 1, 4>, Out>(of, stream);
  if (of.rows <= 32) return of_outputs<Shape<32, 32, 2, 5, 1, 2, 2>, Shape<32, 32, 1, 8, 2, 1, 4>, Out>(of, stream);
  const bool is_few = of.outputs <= OUTPUTS_FEW;
  if (of.rows <= 64) {
    if (is_few) return multiply<Shape<32, 32, 1, 8, 2, 1, 3, 1, 2>, Out>(of, stream);
    // Large blocks read the rows less often, but they have to fill the multiprocessors.
    using Large = Shape<64, 32, 4, 5, 1, 1, 2>;
    const int large = (of.outputs + Large::OUTPUTS - 1) / Large::OUTPUTS;
    if (large <= MULTIPROCESSORS && large > MULTIPROCESSORS * 2 / 3) return multiply<Large, Out>(of, stream);
    return of_outputs<Shape<64, 64, 1, 6, 1, 2, 2>, Shape<64, 64, 1, 12, 1, 1, 2, 2, 1>, Out>(of, stream);
  }
  return is_few ? multiply<Shape<64, 64, 1, 6, 2, 1, 2, 1, 2>, Out>(of, stream) : multiply<Shape<64, 64, 1, 6, 1, 2, 2, 1, 2>, Out>(of, stream);
}

}  // namespace

extern "C" {

// codes[rows][inputs] and scales[rows] = x[rows][inputs], rounded. `inputs` is a multiple of 8.
int baton_round_rows(const RoundRows* arguments, cudaStream_t stream) {
  const auto [x, codes, scales, rows, inputs] = *arguments;
  if (rows == 0) return cudaSuccess;
  if (inputs % VECTOR != 0) return cudaErrorInvalidValue;
  return launch(round_rows, rows, ROUNDING_THREADS, 0, stream, x, reinterpret_cast<uint2*>(codes), scales, inputs);
}

// The most rows of one call, for a matrix with this many outputs.
int baton_fp8_products_max(int outputs) { return outputs > OUTPUTS_MANY ? ROWS_MAX : ROWS_MAX_CLUSTER; }

// y[rows][outputs] = x[rows][inputs] . weights[outputs][inputs]^T, with the scales of rows and outputs. y is f32 if `wide`, else bf16. `inputs` is a
// multiple of 16 and `outputs` of 8, the codes and y are aligned to 16 bytes, and x has room for baton_fp8_products_max(outputs) rows.
int baton_fp8_products(const Fp8Products* arguments, cudaStream_t stream) {
  const Fp8Products& of = *arguments;
  if (of.rows == 0) return cudaSuccess;
  if (of.rows > baton_fp8_products_max(of.outputs) || of.inputs % 16 != 0 || of.outputs % 8 != 0) return cudaErrorInvalidValue;
  return of.wide ? of_size<float>(of, stream) : of_size<bf16>(of, stream);
}

}  // extern "C"

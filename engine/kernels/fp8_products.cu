// Products of a few FP8 rows with FP8 weights: both have e4m3 codes, a row has a scale, and an output has a scale.
//
// **A row's result is bit-identical to that of cublasLt's kernel for any number of rows.** The sums in wgmma's FP8 products have few bits, so after
// every 128 inputs they are added to sums in f32, and these are multiplied by the output's scale and then by the row's. cublasLt's kernel does the
// same. The program `gpu_engine` checks this.
//
// A block has one or two warpgroups that multiply and a warp that copies tiles of weights and of rows to shared memory. It starts to copy weights before
// the rows are ready, because weights do not depend on the previous kernel.
//
// A matrix with few outputs has too few tiles of weights for all multiprocessors. From 33 rows on, two blocks in a cluster then share a tile: each
// multiplies half of the rows, and copies half of the tile to both.

#include <cuda_bf16.h>

#include "launch.cuh"
#include "rounding.cuh"
#include "stages.cuh"
#include "wgmma.cuh"

namespace {

constexpr int GROUP = 4 * WARP, GROUP_OUTPUTS = 64;  // a warpgroup, and the outputs that it multiplies
constexpr int ROWS_MAX = 64, ROWS_MAX_CLUSTER = 128;
constexpr int SLICE_INPUTS = LINE_BYTES, STEP_INPUTS = 32;
constexpr int ROUNDING_THREADS = 256;
// With more outputs, blocks of two warpgroups still give every multiprocessor work.
constexpr int OUTPUTS_MANY = 8192;
// Up to this many outputs, the clusters of two blocks fit on an H200's 132 multiprocessors, one block on each.
constexpr int OUTPUTS_FEW = 66 * GROUP_OUTPUTS;

// The shared memory of a block: STAGES stages, each of SLICES slices of a tile of weights and a tile of rows.
template <int ROWS, int GROUPS, int STAGES, int SLICES>
struct Stages {
  // A stage is empty only after the products of the next slice have begun.
  static_assert(STAGES >= 2);
  static constexpr int OUTPUTS = GROUPS * GROUP_OUTPUTS;
  static constexpr int WEIGHTS_BYTES = OUTPUTS * LINE_BYTES, SLICE_BYTES = WEIGHTS_BYTES + ROWS * LINE_BYTES, BYTES = SLICES * SLICE_BYTES;
};

// A block multiplies ROWS rows and has GROUPS warpgroups. A multiprocessor has BLOCKS blocks. CLUSTER blocks are a cluster: they have the same outputs
// and different rows.
template <int ROWS, int GROUPS, int STAGES, int SLICES, int BLOCKS, int CLUSTER, typename Out>
__global__ void __launch_bounds__(GROUPS * GROUP + WARP, BLOCKS)
    few_products(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap x, const float* output_scales,
                 const float* row_scales, Out* y, int rows, int outputs, int inputs) {
  using Of = Stages<ROWS, GROUPS, STAGES, SLICES>;
  extern __shared__ uint8_t memory[];
  __shared__ uint64_t barriers[2 * STAGES];
  const uint32_t at = (shared_address(memory) + TILE_ALIGN - 1) / TILE_ALIGN * TILE_ALIGN;
  const uint32_t full = shared_address(barriers), empty = full + STAGES * sizeof(uint64_t);
  if (threadIdx.x < 2 * STAGES) {
    initialise_for_copies(full + threadIdx.x * sizeof(uint64_t), threadIdx.x < STAGES ? 1 : CLUSTER * GROUPS * GROUP / WARP);
  }
  synchronise<CLUSTER>();
  const int in_cluster = blockIdx.x % CLUSTER, first_row = in_cluster * ROWS;
  // Slices past the last input are zero.
  const int fills = (inputs + SLICES * SLICE_INPUTS - 1) / (SLICES * SLICE_INPUTS), first_output = blockIdx.x / CLUSTER * Of::OUTPUTS;

  if (threadIdx.x >= GROUPS * GROUP) {
    if (threadIdx.x > GROUPS * GROUP) return;
    constexpr int SHARE = Of::OUTPUTS / CLUSTER;  // outputs whose weights this block copies to all of the cluster
    const auto copy_weights = [&](int fill, int stage) {
      expect(full + stage * sizeof(uint64_t), Of::BYTES);
#pragma unroll
      for (int slice = 0; slice < SLICES; slice++) {
        const uint32_t to = at + stage * Of::BYTES + slice * Of::SLICE_BYTES + in_cluster * SHARE * LINE_BYTES;
        copy_tile_to_all<CLUSTER>(to, &weights, (fill * SLICES + slice) * SLICE_INPUTS, first_output + in_cluster * SHARE, full + stage * sizeof(uint64_t));
      }
    };
    for (int fill = 0; fill < min(STAGES, fills); fill++) copy_weights(fill, fill);
    after_previous(rows);
    for (int fill = 0, stage = 0, phase = 1; fill < fills; fill++) {
      if (fill >= STAGES) {
        wait_for(empty + stage * sizeof(uint64_t), phase);
        copy_weights(fill, stage);
      }
#pragma unroll
      for (int slice = 0; slice < SLICES; slice++) {
        copy_tile(at + stage * Of::BYTES + slice * Of::SLICE_BYTES + Of::WEIGHTS_BYTES, &x, (fill * SLICES + slice) * SLICE_INPUTS, first_row,
                  full + stage * sizeof(uint64_t));
      }
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    leave<CLUSTER>();
    return;
  }

  after_previous(rows);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  float sums[ROWS / 2] = {}, even[ROWS / 2], odd[ROWS / 2];
  int stage = 0, phase = 0, finished_stage = 0;
  const auto submit = [&](float(&products)[ROWS / 2], int slice) {
    if (slice % SLICES == 0) wait_for(full + stage * sizeof(uint64_t), phase);
    const uint32_t tile = at + stage * Of::BYTES + slice % SLICES * Of::SLICE_BYTES;
    const uint64_t weights_tile = tile_descriptor(tile + warp / 4 * GROUP_OUTPUTS * LINE_BYTES);
    const uint64_t rows_tile = tile_descriptor(tile + Of::WEIGHTS_BYTES);
    begin_products();
#pragma unroll
    for (int step = 0; step < SLICE_INPUTS / STEP_INPUTS; step++) {
      multiply_tiles<ROWS>(products, weights_tile + step * STEP_INPUTS / 16, rows_tile + step * STEP_INPUTS / 16, step > 0);
    }
    submit_products();
    if (slice % SLICES == SLICES - 1 && ++stage == STAGES) stage = 0, phase ^= 1;
  };
  const auto add_finished = [&](float(&products)[ROWS / 2], int slice) {
    pin(products);
    if (slice % SLICES == SLICES - 1) {
      __syncwarp();
      if (lane < CLUSTER) arrive_at<CLUSTER>(empty + finished_stage * sizeof(uint64_t), lane);
      if (++finished_stage == STAGES) finished_stage = 0;
    }
#pragma unroll
    for (int i = 0; i < ROWS / 2; i++) sums[i] += products[i];
    pin(products);
  };
  // The products of a slice run while those of the slice before it are added. Even and odd slices have registers of their own, and the loop has no
  // branch, because otherwise the compiler makes every product wait.
  const int slices = fills * SLICES;
  submit(even, 0);
  int slice = 1;
  for (; slice + 1 < slices; slice += 2) {
    submit(odd, slice);
    wait_for_products<1>();
    add_finished(even, slice - 1);
    submit(even, slice + 1);
    wait_for_products<1>();
    add_finished(odd, slice);
  }
  if (slice < slices) {
    submit(odd, slice);
    wait_for_products<1>();
    add_finished(even, slice - 1);
    wait_for_products<0>();
    add_finished(odd, slice);
  } else {
    wait_for_products<0>();
    add_finished(even, slice - 1);
  }

#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int output = first_output + warp * 16 + lane / 4 + 8 * half;
    if (output >= outputs) continue;
    const float scale = output_scales[output];
#pragma unroll
    for (int tile = 0; tile < ROWS / 8; tile++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int row = first_row + 8 * tile + lane % 4 * 2 + i;
        if (row < rows) store(y + static_cast<size_t>(row) * outputs + output, sums[4 * tile + 2 * half + i] * scale * row_scales[row]);
      }
    }
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

template <int ROWS, int GROUPS, int STAGES, int SLICES, int BLOCKS, int CLUSTER, typename Out>
int multiply(const Fp8Products& of, cudaStream_t stream) {
  using Of = Stages<ROWS, GROUPS, STAGES, SLICES>;
  constexpr int BYTES = TILE_ALIGN + STAGES * Of::BYTES;
  CUtensorMap weights, x;
  if (const int error = describe_codes(weights, of.weights, of.outputs, of.inputs, Of::OUTPUTS / CLUSTER)) return error;
  // Copies that end outside of a matrix are slower, so the rows after the last one are copied too.
  if (const int error = describe_codes(x, of.x, CLUSTER * ROWS, of.inputs, ROWS)) return error;
  const auto kernel = few_products<ROWS, GROUPS, STAGES, SLICES, BLOCKS, CLUSTER, Out>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
  if (error != cudaSuccess) return error;
  const int blocks = CLUSTER * ((of.outputs + Of::OUTPUTS - 1) / Of::OUTPUTS);
  return launch_clusters(kernel, CLUSTER, blocks, GROUPS * GROUP + WARP, BYTES, stream, weights, x, of.output_scales, of.row_scales,
                         static_cast<Out*>(of.y), of.rows, of.outputs, of.inputs);
}

// The sizes were measured with Llama-3.1-8B on an H200.
template <typename Out>
int of_size(const Fp8Products& of, cudaStream_t stream) {
  const bool many = of.outputs > OUTPUTS_MANY;
  if (of.rows <= 8) return many ? multiply<8, 2, 6, 1, 2, 1, Out>(of, stream) : multiply<8, 1, 11, 2, 1, 1, Out>(of, stream);
  if (of.rows <= 16) return many ? multiply<16, 2, 5, 1, 2, 1, Out>(of, stream) : multiply<16, 1, 10, 2, 1, 1, Out>(of, stream);
  if (of.rows <= 32) return many ? multiply<32, 2, 5, 1, 2, 1, Out>(of, stream) : multiply<32, 1, 8, 2, 1, 1, Out>(of, stream);
  if (many) return multiply<64, 1, 6, 1, 2, 1, Out>(of, stream);
  const bool few = of.outputs <= OUTPUTS_FEW;
  if (of.rows <= 64) return few ? multiply<32, 1, 8, 2, 1, 2, Out>(of, stream) : multiply<32, 1, 8, 1, 2, 2, Out>(of, stream);
  return few ? multiply<64, 1, 6, 2, 1, 2, Out>(of, stream) : multiply<64, 1, 6, 1, 2, 2, Out>(of, stream);
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
// multiple of 16, the codes are aligned to 16 bytes, and x has room for baton_fp8_products_max(outputs) rows.
int baton_fp8_products(const Fp8Products* arguments, cudaStream_t stream) {
  const Fp8Products& of = *arguments;
  if (of.rows == 0) return cudaSuccess;
  if (of.rows > baton_fp8_products_max(of.outputs) || of.inputs % 16 != 0) return cudaErrorInvalidValue;
  return of.wide ? of_size<float>(of, stream) : of_size<bf16>(of, stream);
}

}  // extern "C"

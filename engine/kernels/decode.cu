// Attention of decode rows, with keys and values in bf16 or e4m3. A row has one position, whose query heads attend to the keys and values of the
// sequence.
//
// A context is divided into pieces, whose length depends only on the context, so a row's rounding does not depend on the other rows. A block
// processes several items, a piece and a KV head each, in sequence. One warp copies tiles of keys and values to a ring of stages, and runs ahead, also to the next piece.
// Four warps compute. Each takes sixteen positions of every tile and keeps its own maxima, sums and outputs; at the end of a piece they are joined.
//
// Products have positions or dimensions as rows and up to eight heads that share the KV head as columns. More heads are several parts, which read
// the same keys and values.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "launch.cuh"
#include "stages.cuh"
#include "wgmma.cuh"

namespace {

constexpr int WARPS = 4, COMPUTE = WARPS * WARP, THREADS = COMPUTE + WARP;
constexpr int TILE_TOKENS = 64, WARP_TOKENS = 16, BLOCKS = 2;
constexpr int HEADS = 8;         // of a product
constexpr int JOINED_DIMS = 64;  // that the warps join at a time
constexpr float LEAST = -1e30f, LOG2_E = 1.44269504f, F16_MAX = 65504.f;

}  // namespace

// The arguments. `engine/src/gpu/arguments.rs` declares the same struct, and a test there compares the two.
struct DecodeRun {
  bf16* partial_out;
  float* partial_sums;
  const int32_t* piece_rows;
  const int32_t* piece_places;
  const int32_t* piece_lengths;
  const bool* piece_flags;
  const int32_t* row_pieces;
  const bf16* q;
  const void* pool;
  const int32_t* page_starts;
  const int32_t* kv_pages;
  const int32_t* last_page_tokens;
  bf16* out;
  int64_t page_lines;
  int64_t head_lines;
  int64_t layer_lines;
  int64_t pool_lines;
  int32_t pieces;
  int32_t rows;
  int32_t page_tokens;
  int32_t heads;
  int32_t kv_heads;
  int32_t head_dim;
  float scale;
  int32_t fp8;
};
static_assert(sizeof(DecodeRun) == 168);

namespace {

// Copies `bytes` bytes, a multiple of 16.
__device__ void copy_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes),
               "r"(barrier)
               : "memory");
}
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

  // A query beyond the range of f16 gets its end. No model has such queries. NaN stays.
  static __device__ float within_f16(float query) { return isnan(query) ? query : fminf(fmaxf(query, -F16_MAX), F16_MAX); }
  static __device__ uint32_t of_queries(uint32_t bf16_pair) {
    const float2 pair = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bf16_pair));
    return of_weights(within_f16(pair.x), within_f16(pair.y));
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
  static constexpr int PART_BYTES = TILE_TOKENS * LINE, KEYS_BYTES = LINES * PART_BYTES, BYTES = 2 * KEYS_BYTES;
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

// Multiplies the outputs of two heads by their factors.
__device__ void scale_by(float (&out)[4], const float (&factors)[2]) {
#pragma unroll
  for (int i = 0; i < 4; i++) out[i] *= factors[i % 2];
}

// out[DIMS][8 heads] = out * factors + values[16 positions][DIMS]^T . weights[16][8], with the values at `values` from position `first` on.
template <int DIMS>
__device__ void multiply_values(Bf16Numbers, float (&out)[DIMS / 16][4], const float (&factors)[2], uint32_t values, int first, uint32_t low,
                                uint32_t high) {
  const int lane = threadIdx.x % WARP, token = first + lane % 8 + lane / 16 * 8;
#pragma unroll
  for (int step = 0; step < DIMS / 16; step++) {
    // The lower and upper eight dimensions, of the lower and then the upper eight positions.
    uint32_t of_values[4];
    load_transposed(of_values, values + TileLayout<Bf16Numbers, DIMS>::offset(token, step * 2 + lane / 8 % 2));
    scale_by(out[step], factors);
    Bf16Numbers::multiply(out[step], of_values, low, high);
  }
}
template <int DIMS>
__device__ void multiply_values(Fp8Numbers, float (&out)[DIMS / 16][4], const float (&factors)[2], uint32_t values, int first, uint32_t low,
                                uint32_t high) {
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
      scale_by(out[step + i], factors);
      Fp8Numbers::multiply(out[step + i], of_values, low, high);
    }
  }
}

// A piece of a row's context, for some heads that share a KV head.
struct Piece {
  int index, kv_head, first_head, heads, row, first, tokens;
  bool is_alone;  // the row has no other piece
  const int32_t* pages;
};

// Piece number `item / parts`, of the heads that `item % parts` stands for. Its index is -1 if there is no such piece; then there are no later ones.
__device__ Piece find(const DecodeRun& of, int item) {
  const int group = of.heads / of.kv_heads, parts_of_group = (group + HEADS - 1) / HEADS, parts = of.kv_heads * parts_of_group;
  const int index = item / parts, part = item % parts;
  Piece piece = {};
  piece.index = -1;
  if (index >= of.pieces || !of.piece_flags[index]) return piece;
  const int row = of.piece_rows[index], length = of.piece_lengths[index], place = of.piece_places[index];
  const int start = of.page_starts[row], end = of.page_starts[row + 1], last = of.last_page_tokens[row];
  piece.index = index, piece.row = row, piece.first = place * length;
  piece.kv_head = part / parts_of_group;
  piece.first_head = piece.kv_head * group + part % parts_of_group * HEADS;
  piece.heads = min(HEADS, (piece.kv_head + 1) * group - piece.first_head);
  piece.tokens = min(length, (end - start - 1) * of.page_tokens + last - piece.first);
  piece.is_alone = of.row_pieces[row + 1] - of.row_pieces[row] == 1;
  piece.pages = of.kv_pages + start;
  return piece;
}

// The description of a tile in shared memory.
struct TileOf {
  int index, first_head, heads, row;  // its piece; index -1 means that no tile follows
  int tokens;                         // its positions
  bool is_first, is_last, is_alone;
};

// The running maximum and sum of two heads.
struct Softmax {
  float most[2], total[2];

  // Takes sixteen positions of the two heads: makes weights of the products, and gives the factors of earlier outputs.
  __device__ void take(float (&sums)[4], float (&factors)[2], float scale) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float largest = fmaxf(sums[i], sums[2 + i]);
      for (int offset = 4; offset < WARP; offset *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
      largest = fmaxf(most[i], largest * scale);
      factors[i] = exp2f(most[i] - largest);
      most[i] = largest;
      sums[i] = exp2f(sums[i] * scale - largest);
      sums[2 + i] = exp2f(sums[2 + i] * scale - largest);
      total[i] = total[i] * factors[i] + sums[i] + sums[2 + i];
    }
  }
};

// DIMS is the head size, STAGES the number of tiles in shared memory.
template <typename Numbers, int DIMS, int STAGES>
__global__ void __launch_bounds__(THREADS, BLOCKS) attend(const __grid_constant__ CUtensorMap pool, const DecodeRun of, int box_tokens) {
  using Tile = TileLayout<Numbers, DIMS>;
  constexpr int STEPS = DIMS / 16;
  extern __shared__ uint8_t memory[];
  __shared__ uint64_t barriers[2 * STAGES];
  __shared__ __align__(16) bf16 queries_of[STAGES][HEADS * DIMS];
  __shared__ TileOf tiles[STAGES];
  __shared__ float maxima[WARPS][HEADS], totals[WARPS][HEADS];
  const uint32_t at = (shared_address(memory) + TILE_ALIGN - 1) / TILE_ALIGN * TILE_ALIGN;
  // Some dimensions of the warps' outputs, [WARPS][HEADS][JOINED_DIMS].
  float* joined = reinterpret_cast<float*>(memory + (at - shared_address(memory)) + STAGES * Tile::BYTES);
  const uint32_t full = shared_address(barriers), empty = full + STAGES * sizeof(uint64_t);
  if (threadIdx.x < 2 * STAGES) initialise_for_copies(full + threadIdx.x * sizeof(uint64_t), threadIdx.x < STAGES ? 1 : WARPS);
  __syncthreads();
  after_previous(of.rows);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  int stage = 0, phase = 0;

  if (warp == WARPS) {
    phase = 1;
    int item = blockIdx.x;
    for (Piece piece = find(of, item), next; piece.index >= 0; piece = next) {
      const int64_t line_of_head = of.layer_lines + piece.kv_head * of.head_lines;
      for (int tile = 0; tile < piece.tokens; tile += TILE_TOKENS) {
        // A lane copies a box of keys or values.
        const int boxes = TILE_TOKENS / box_tokens, box = lane / 2 % boxes, is_value = lane % 2;
        const int token = piece.first + tile + box * box_tokens;
        const bool is_there = lane < 2 * boxes && token < piece.first + piece.tokens;
        const int64_t page = is_there ? piece.pages[token / of.page_tokens] : 0;
        const int line = static_cast<int>(page * of.page_lines + line_of_head + is_value * of.page_tokens + token % of.page_tokens);
        const uint32_t to = at + stage * Tile::BYTES + is_value * Tile::KEYS_BYTES + box * box_tokens * Tile::LINE;
        const uint32_t barrier = full + stage * sizeof(uint64_t);
        wait_for(empty + stage * sizeof(uint64_t), phase);
        if (lane == 0) {
          const int copied = min(boxes, (piece.tokens - tile + box_tokens - 1) / box_tokens);
          const uint32_t query_bytes = tile == 0 ? piece.heads * DIMS * sizeof(bf16) : 0;
          tiles[stage] = {piece.index, piece.first_head, piece.heads, piece.row, min(TILE_TOKENS, piece.tokens - tile), tile == 0,
                          tile + TILE_TOKENS >= piece.tokens, piece.is_alone};
          expect(barrier, copied * box_tokens * 2 * Tile::LINES * Tile::LINE + query_bytes);
          if (tile == 0) {
            const bf16* queries = of.q + (static_cast<int64_t>(piece.row) * of.heads + piece.first_head) * DIMS;
            copy_bytes(shared_address(queries_of[stage]), queries, query_bytes, barrier);
          }
        }
        __syncwarp();
        if (is_there) {
#pragma unroll
          for (int part = 0; part < Tile::LINES; part++) copy_tile(to + part * Tile::PART_BYTES, &pool, part * Tile::LINE_DIMS, line, barrier);
        }
        // While the first copies run.
        if (tile == 0) next = find(of, item += gridDim.x);
        if (++stage == STAGES) stage = 0, phase ^= 1;
      }
    }
    wait_for(empty + stage * sizeof(uint64_t), phase);
    if (lane == 0) {
      tiles[stage].index = -1;
      arrive(full + stage * sizeof(uint64_t));
    }
    return;
  }

  const int column = lane % 4 * 2;  // the thread has the heads `column` and `column + 1` of products
  const int first = warp * WARP_TOKENS;
  uint32_t queries[STEPS][2];
  float out[STEPS][4];
  Softmax softmax;
  while (true) {
    const uint32_t keys = at + stage * Tile::BYTES, values = keys + Tile::KEYS_BYTES;
    wait_for(full + stage * sizeof(uint64_t), phase);
    const TileOf tile = tiles[stage];
    if (tile.index < 0) break;
    if (tile.is_first) {
      const int head = lane / 4;
      const uint32_t* own = reinterpret_cast<const uint32_t*>(queries_of[stage]) + head * DIMS / 2;
#pragma unroll
      for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int pair = step * 8 + Numbers::query_pair(lane % 4, half);
          queries[step][half] = head < tile.heads ? Numbers::of_queries(own[pair]) : 0;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) out[step][i] = 0.f;
      }
      softmax = {{LEAST, LEAST}, {0.f, 0.f}};
    }
    const int left = tile.tokens - first;  // positions of the warp's sixteen and later ones
    if (left > 0) {
      float sums[4] = {}, factors[2];
      multiply_keys<DIMS>(Numbers{}, sums, keys, first, queries);
      if (left < WARP_TOKENS) {
        // Memory after the last position may have any bits.
        if (lane / 4 >= left) sums[0] = sums[1] = -INFINITY;
        if (lane / 4 + 8 >= left) sums[2] = sums[3] = -INFINITY;
        constexpr int OF_TOKEN = Tile::LINES * Tile::VECTORS;
        for (int i = lane; i < (WARP_TOKENS - left) * OF_TOKEN; i += WARP) {
          const uint32_t address = values + Tile::offset(first + left + i / OF_TOKEN, i % OF_TOKEN);
          asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(address), "r"(0) : "memory");
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncwarp();
      }
      softmax.take(sums, factors, of.scale * LOG2_E);
      const uint32_t low = transposed(Numbers::of_weights(sums[0], sums[1])), high = transposed(Numbers::of_weights(sums[2], sums[3]));
      multiply_values<DIMS>(Numbers{}, out, factors, values, first, low, high);
    }
    __syncwarp();
    if (lane == 0) arrive(empty + stage * sizeof(uint64_t));
    if (++stage == STAGES) stage = 0, phase ^= 1;
    if (!tile.is_last) continue;

    // Joins the warps.
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float total = softmax.total[i];
      for (int offset = 4; offset < WARP; offset *= 2) total += __shfl_xor_sync(~0u, total, offset);
      if (lane < 4) maxima[warp][column + i] = softmax.most[i], totals[warp][column + i] = total;
    }
#pragma unroll
    for (int first_dim = 0; first_dim < DIMS; first_dim += JOINED_DIMS) {
#pragma unroll
      for (int step = 0; step < JOINED_DIMS / 16; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int dim = step * 16 + Numbers::dim_of(lane / 4 + i / 2 * 8);
          joined[(warp * HEADS + column + i % 2) * JOINED_DIMS + dim] = out[first_dim / 16 + step][i];
        }
      }
      asm volatile("bar.sync 1, %0;" ::"n"(COMPUTE) : "memory");
      for (int i = threadIdx.x; i < tile.heads * JOINED_DIMS / 2; i += COMPUTE) {
        const int head = i / (JOINED_DIMS / 2), dim = i % (JOINED_DIMS / 2) * 2;
        float largest = maxima[0][head];
#pragma unroll
        for (int other = 1; other < WARPS; other++) largest = fmaxf(largest, maxima[other][head]);
        float sum = 0.f;
        float2 numbers = {0.f, 0.f};
#pragma unroll
        for (int other = 0; other < WARPS; other++) {
          const float factor = exp2f(maxima[other][head] - largest);
          const float2 of_warp = *reinterpret_cast<const float2*>(joined + (other * HEADS + head) * JOINED_DIMS + dim);
          sum += totals[other][head] * factor;
          numbers.x += of_warp.x * factor, numbers.y += of_warp.y * factor;
        }
        const int64_t place = static_cast<int64_t>(tile.is_alone ? tile.row : tile.index) * of.heads + tile.first_head + head;
        bf16* to = (tile.is_alone ? of.out : of.partial_out) + place * DIMS + first_dim + dim;
        *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(numbers.x / sum, numbers.y / sum);
        if (!tile.is_alone && first_dim + dim == 0) of.partial_sums[place] = largest + log2f(sum);
      }
      asm volatile("bar.sync 1, %0;" ::"n"(COMPUTE) : "memory");
    }
  }
}

// A warp joins the pieces of a row's head.
template <int DIMS>
__global__ void __launch_bounds__(256) join_pieces(const DecodeRun of) {
  after_previous(of.rows);
  const int place = blockIdx.x * (256 / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (place >= of.rows * of.heads) return;
  const int row = place / of.heads, head = place % of.heads, first = of.row_pieces[row], count = of.row_pieces[row + 1] - first;
  if (count <= 1) return;
  float largest = -INFINITY;
  for (int piece = 0; piece < count; piece++) largest = fmaxf(largest, of.partial_sums[static_cast<int64_t>(first + piece) * of.heads + head]);
  constexpr int PAIRS = DIMS / 2 / WARP;
  float sum = 0.f, out[PAIRS][2] = {};
  for (int piece = 0; piece < count; piece++) {
    const int64_t at = static_cast<int64_t>(first + piece) * of.heads + head;
    const float weight = exp2f(of.partial_sums[at] - largest);
    sum += weight;
#pragma unroll
    for (int pair = 0; pair < PAIRS; pair++) {
      const float2 numbers = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162*>(of.partial_out + at * DIMS)[pair * WARP + lane]);
      out[pair][0] += weight * numbers.x, out[pair][1] += weight * numbers.y;
    }
  }
#pragma unroll
  for (int pair = 0; pair < PAIRS; pair++) {
    reinterpret_cast<__nv_bfloat162*>(of.out + static_cast<int64_t>(place) * DIMS)[pair * WARP + lane] =
        __floats2bfloat162_rn(out[pair][0] / sum, out[pair][1] / sum);
  }
}

// Describes the pool as lines of a head's numbers, and the box of `box_tokens` positions that is copied at a time.
template <typename Tile>
int describe_pool(CUtensorMap& map, const DecodeRun& of, int box_tokens) {
  const bool is_fp8 = Tile::NUMBER_BYTES == 1;
  return describe(map, is_fp8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, of.pool, of.pool_lines,
                  of.head_dim, Tile::NUMBER_BYTES, box_tokens, Tile::LINE_DIMS);
}

template <typename Numbers, int DIMS, int STAGES>
int run(const DecodeRun& of, cudaStream_t stream) {
  using Tile = TileLayout<Numbers, DIMS>;
  constexpr int BYTES = TILE_ALIGN + STAGES * Tile::BYTES + WARPS * HEADS * JOINED_DIMS * sizeof(float);
  static_assert(BLOCKS * (BYTES + STAGES * (HEADS * DIMS * 2 + 64) + 512 + 1024) <= 228 * 1024);
  const int box_tokens = of.page_tokens % 64 == 0 ? 64 : of.page_tokens % 32 == 0 ? 32 : 16;
  CUtensorMap pool;
  if (const int error = describe_pool<Tile>(pool, of, box_tokens)) return error;
  const auto kernel = attend<Numbers, DIMS, STAGES>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
  if (error != cudaSuccess) return error;
  const int parts = of.kv_heads * ((of.heads / of.kv_heads + HEADS - 1) / HEADS);
  const int blocks = std::min(of.pieces * parts, BLOCKS * multiprocessors());
  if (const int failed = launch(kernel, blocks, THREADS, BYTES, stream, pool, of, box_tokens)) return failed;
  constexpr int JOINERS = 256;
  return launch(join_pieces<DIMS>, (of.rows * of.heads * WARP + JOINERS - 1) / JOINERS, JOINERS, 0, stream, of);
}

}  // namespace

extern "C" {

// Row r attends to the keys and values of sequence r.
// - The pool has `pool_lines` lines of `head_dim` numbers, bf16, or e4m3 codes if `fp8`. The keys of KV head h in page p begin at line
//   p * page_lines + h * head_lines + layer_lines, and the values `page_tokens` lines later. `page_tokens` is a multiple of
//   16.
// - Piece b is piece `piece_places[b]` of row `piece_rows[b]`; this row's pieces have `piece_lengths[b]` tokens. The used pieces come first; the first
//   with a false `piece_flags[b]` ends them.
// - `row_pieces[r]` is the number of pieces before those of row r.
// - `partial_out` has pieces * heads * head_dim bf16 numbers, and `partial_sums` has pieces * heads floats.
int baton_decode_run(const DecodeRun* arguments, cudaStream_t stream) {
  const DecodeRun& of = *arguments;
  if (of.rows == 0) return cudaSuccess;
  if (of.page_tokens % WARP_TOKENS != 0 || of.pool_lines > INT32_MAX) return cudaErrorInvalidValue;
  switch (of.head_dim) {
    case 64: return of.fp8 ? run<Fp8Numbers, 64, 8>(of, stream) : run<Bf16Numbers, 64, 6>(of, stream);
    case 128: return of.fp8 ? run<Fp8Numbers, 128, 5>(of, stream) : run<Bf16Numbers, 128, 3>(of, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // extern "C"

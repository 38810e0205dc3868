// Attention of decode rows, with keys and values in bf16 or e4m3. A row has one position, whose query heads attend to the keys and values of the
// sequence.
//
// A context is divided into pieces, whose length depends only on the context, so a row's rounding does not depend on the other rows. A block
// processes several items, a piece and a KV head each, in sequence. Its warps work at different points of this sequence:
// - One warp copies tiles of keys and values to a ring of stages.
// - Four warps compute. Each takes a quarter of the positions of every tile and keeps its own maxima, sums and outputs. At the end of an item they leave
//   these states in shared memory and go on.
// - One warp joins the four states.
//
// Another kernel joins the pieces of a row.

#include <cuda_bf16.h>

#include <algorithm>

#include "decode_tiles.cuh"
#include "launch.cuh"
#include "rounding.cuh"
#include "stages.cuh"
#include "wgmma.cuh"

namespace {

constexpr int COPYING = WARPS, JOINING = WARPS + 1, THREADS = (WARPS + 2) * WARP;
constexpr int BLOCKS = 2;          // of a multiprocessor
constexpr int COLUMNS = 8;         // heads of a product
constexpr int STATE_FLOATS = 512;  // of a warp, in shared memory
constexpr int PIECES_MAX = 32;     // of a row; `ROW_PIECES_MAX` of engine/src/gpu/plan/pieces.rs
constexpr int JOINERS = 512;       // the most threads that join the pieces of a row
constexpr float LEAST = -1e30f, LOG2_E = 1.44269504f;

}  // namespace

// The arguments. `engine/src/gpu/arguments.rs` declares the same struct, and a test there compares the two.
struct DecodeRun {
  bf16* partial_out;
  float* partial_sums;
  const int32_t* piece_rows;
  const int32_t* piece_starts;
  const int32_t* piece_lengths;
  const int32_t* row_pieces;
  const bf16* q;
  const void* pool;
  const int32_t* page_starts;
  const int32_t* kv_pages;
  const int32_t* last_page_tokens;
  bf16* out;
  uint8_t* codes;
  float* scales;
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
static_assert(sizeof(DecodeRun) == 176);

namespace {

// Copies `bytes` bytes, a multiple of 16.
__device__ void copy_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes),
               "r"(barrier)
               : "memory");
}

// A piece of a row's context, for some heads that share a KV head.
struct Piece {
  int index;  // among the pieces of all rows; -1 stands for the end of a block's work
  int row, first_head, heads;
  bool is_alone;  // the row has no other piece
};

// A piece, and where its keys and values are.
struct Found {
  Piece piece;
  int kv_head, first, tokens;
  int first_page;  // the row's first entry in the list of pages
};

// A tile in shared memory.
struct TileOf {
  Piece piece;
  int tokens;
  bool is_first, is_last;
};

// The number of parts of a KV head's query heads.
__host__ __device__ int parts_of_group(const DecodeRun& of) { return (of.heads / of.kv_heads + COLUMNS - 1) / COLUMNS; }

// Item number `item`: a piece, and up to eight heads of a KV head. Its index is -1 after the last item.
__device__ Found find(const DecodeRun& of, int item) {
  const int group = of.heads / of.kv_heads, of_group = parts_of_group(of), parts = of.kv_heads * of_group;
  const int index = item / parts, part = item % parts;
  Found found = {};
  found.piece.index = -1;
  if (index >= of.row_pieces[of.rows]) return found;
  const int row = of.piece_rows[index], length = of.piece_lengths[index];
  const int start = of.page_starts[row], end = of.page_starts[row + 1], last = of.last_page_tokens[row];
  found.kv_head = part / of_group;
  const int first_head = found.kv_head * group + part % of_group * COLUMNS;
  const bool is_alone = of.row_pieces[row + 1] - of.row_pieces[row] == 1;
  found.piece = {index, row, first_head, min(COLUMNS, (found.kv_head + 1) * group - first_head), is_alone};
  found.first = of.piece_starts[index];
  found.tokens = min(length, (end - start - 1) * of.page_tokens + last - found.first);
  found.first_page = start;
  return found;
}

// The running maximum and sum of two heads.
struct Softmax {
  float most[2], total[2];

  // Adds the products of more positions. Replaces them by weights, and returns the factors of earlier outputs.
  template <int STEPS>
  __device__ void take(float (&sums)[STEPS][4], float (&factors)[2], float scale) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float largest = fmaxf(sums[0][i], sums[0][2 + i]);
#pragma unroll
      for (int step = 1; step < STEPS; step++) largest = fmaxf(largest, fmaxf(sums[step][i], sums[step][2 + i]));
      for (int offset = 4; offset < WARP; offset *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
      largest = fmaxf(most[i], largest * scale);
      factors[i] = exp2f(most[i] - largest);
      most[i] = largest;
      total[i] *= factors[i];
#pragma unroll
      for (int step = 0; step < STEPS; step++) {
        sums[step][i] = exp2f(sums[step][i] * scale - largest);
        sums[step][2 + i] = exp2f(sums[step][2 + i] * scale - largest);
        total[i] += sums[step][i] + sums[step][2 + i];
      }
    }
  }
};

// The states of the computing warps at the end of an item, of at most HEADS heads. The outputs of 8 heads of 128 dimensions do not fit, so the warps hand
// over 64 dimensions in each of two rounds.
template <int DIMS, int HEADS>
struct States {
  static constexpr int ROUND_DIMS = STATE_FLOATS / HEADS < DIMS ? STATE_FLOATS / HEADS : DIMS;
  float out[WARPS][ROUND_DIMS][HEADS];
  float maxima[WARPS][HEADS], totals[WARPS][HEADS];
  Piece piece;
};

// What the joining warp does. It joins the states of each item: waits at `states_full` until all computing warps have written theirs, and arrives at
// `states_empty` when it has read them.
template <int DIMS, int HEADS>
__device__ void join(const DecodeRun& of, const States<DIMS, HEADS>& states, uint32_t states_full, uint32_t states_empty) {
  using Of = States<DIMS, HEADS>;
  const int lane = threadIdx.x % WARP;
  for (int phase = 0;;) {
    Piece piece;
    float largest, total;
    for (int first_dim = 0; first_dim < DIMS; first_dim += Of::ROUND_DIMS) {
      wait_for(states_full, phase);
      phase ^= 1;
      piece = states.piece;
      if (piece.index < 0) return;
      // A lane has the maximum and the sum of a warp's head.
      const int of_warp = lane / HEADS % WARPS, of_head = lane % HEADS;
      const float most = states.maxima[of_warp][of_head];
      largest = most;
      for (int offset = HEADS; offset < WARPS * HEADS; offset *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
      const float scale = exp2f(most - largest);
      total = states.totals[of_warp][of_head] * scale;
      for (int offset = HEADS; offset < WARPS * HEADS; offset *= 2) total += __shfl_xor_sync(~0u, total, offset);
      float factors[WARPS][HEADS];
#pragma unroll
      for (int i = 0; i < WARPS * HEADS; i++) factors[i / HEADS][i % HEADS] = __shfl_sync(~0u, scale / total, i);
      const int64_t place = static_cast<int64_t>(piece.is_alone ? piece.row : piece.index) * of.heads + piece.first_head;
      bf16* to = (piece.is_alone ? of.out : of.partial_out) + place * DIMS + first_dim;
#pragma unroll
      for (int dim = lane; dim < Of::ROUND_DIMS; dim += WARP) {
        float numbers[HEADS] = {};
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
#pragma unroll
          for (int head = 0; head < HEADS; head++) numbers[head] += states.out[warp][dim][head] * factors[warp][head];
        }
#pragma unroll
        for (int head = 0; head < HEADS; head++) {
          if (head < piece.heads) to[head * DIMS + dim] = __float2bfloat16(numbers[head]);
        }
      }
      if (first_dim == 0 && !piece.is_alone && lane < piece.heads) of.partial_sums[place + lane] = largest + log2f(total);
      __syncwarp();
      if (lane == 0) arrive(states_empty);
    }
  }
}

// Broadcasts the item that lane `lane` has found.
__device__ Found broadcast(const Found& found, int lane) {
  const auto from = [lane](int number) { return __shfl_sync(~0u, number, lane); };
  const Piece& piece = found.piece;
  return {{from(piece.index), from(piece.row), from(piece.first_head), from(piece.heads), from(piece.is_alone) != 0},
          from(found.kv_head), from(found.first), from(found.tokens), from(found.first_page)};
}

// What the copying warp does: copies the tiles of all items of its block. The lists of the step, and keys and values of earlier positions, are on the
// device before its first kernel. So before the warp waits for the previous kernel, it looks up the first 32 items and the first pages, and copies the
// first tiles.
template <typename Numbers, int DIMS, int STAGES, int HEADS>
struct Copier {
  using Tile = TileLayout<Numbers, DIMS>;

  const CUtensorMap& pool;
  const DecodeRun& of;
  const int box_tokens;
  const uint32_t at, full, empty;
  TileOf (&tiles)[STAGES];
  bf16 (&queries_of)[STAGES][HEADS * DIMS];
  const int lane = threadIdx.x % WARP;
  int stage = 0, phase = 1;
  Found ahead;  // a lane has one of the next 32 items

  // Where a box begins. Each lane has one of 32.
  struct BoxStart {
    int page, position;  // the position is in the page
  };

  // The block's item number `item`. The caller asks for items 0, 1, 2 and so on.
  __device__ Found item(int item) {
    if (item % WARP == 0) ahead = find(of, blockIdx.x + (item + lane) * gridDim.x);
    return broadcast(ahead, item % WARP);
  }

  // Looks up the 32 boxes from position `from` of the item on.
  __device__ BoxStart look_up(const Found& found, int from) const {
    const int token = from + lane * box_tokens, position = found.first + token, index = position / of.page_tokens;
    const bool is_there = found.piece.index >= 0 && token < found.tokens;
    return {is_there ? of.kv_pages[found.first_page + index] : 0, position - index * of.page_tokens};
  }

  __device__ void copy_queries(const Piece& piece, int to_stage) const {
    const bf16* queries = of.q + (static_cast<int64_t>(piece.row) * of.heads + piece.first_head) * DIMS;
    copy_bytes(shared_address(queries_of[to_stage]), queries, piece.heads * DIMS * sizeof(bf16), full + to_stage * sizeof(uint64_t));
  }

  // Copies the tiles of an item from position `begin` to before `end`. `starts` has the starts of 32 boxes. The first call for an item gets those of its
  // first boxes.
  __device__ void copy_tiles(const Found& found, BoxStart& starts, int begin, int end, bool with_queries) {
    const Piece& piece = found.piece;
    // A lane copies a box of keys or values.
    const int boxes = Tile::TOKENS / box_tokens, box = lane / 2 % boxes, is_value = lane % 2;
    const int64_t first_line = of.layer_lines + found.kv_head * of.head_lines + is_value * of.page_tokens;
    for (int tile = begin; tile < end; tile += Tile::TOKENS) {
      const int index = tile / Tile::TOKENS * boxes % WARP;
      if (index == 0 && tile > 0) starts = look_up(found, tile);
      const int64_t of_page = __shfl_sync(~0u, starts.page, index + box) * of.page_lines;
      const int line = static_cast<int>(of_page + first_line) + __shfl_sync(~0u, starts.position, index + box);
      const uint32_t to = at + stage * Tile::BYTES + is_value * Tile::KEYS_BYTES + box * box_tokens * Tile::LINE;
      const uint32_t barrier = full + stage * sizeof(uint64_t);
      wait_for(empty + stage * sizeof(uint64_t), phase);
      if (lane == 0) {
        const int copied = min(boxes, (found.tokens - tile + box_tokens - 1) / box_tokens);
        const uint32_t query_bytes = tile == 0 ? piece.heads * DIMS * sizeof(bf16) : 0;
        tiles[stage] = {piece, min(Tile::TOKENS, found.tokens - tile), tile == 0, tile + Tile::TOKENS >= found.tokens};
        expect(barrier, copied * box_tokens * 2 * Tile::LINES * Tile::LINE + query_bytes);
        if (tile == 0 && with_queries) copy_queries(piece, stage);
      }
      __syncwarp();
      if (lane < 2 * boxes && tile + box * box_tokens < found.tokens) {
#pragma unroll
        for (int part = 0; part < Tile::LINES; part++) copy_tile(to + part * Tile::PART_BYTES, &pool, part * Tile::LINE_DIMS, line, barrier);
      }
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
  }

  __device__ void copy_items() {
    int number = 0;
    Found found = item(number);
    BoxStart starts = look_up(found, 0);
    // The previous kernel writes the row's own position, which can only be in the last tile of an item.
    int begin = found.piece.index < 0 ? 0 : min(STAGES, (found.tokens - 1) / Tile::TOKENS) * Tile::TOKENS;
    copy_tiles(found, starts, 0, begin, false);
    after_previous();
    if (begin > 0 && lane == 0) copy_queries(found.piece, 0);
    while (found.piece.index >= 0) {
      // These loads run while the item before is copied.
      const Found next = item(++number);
      const BoxStart next_starts = look_up(next, 0);
      copy_tiles(found, starts, begin, found.tokens, begin == 0);
      found = next, starts = next_starts, begin = 0;
    }
    wait_for(empty + stage * sizeof(uint64_t), phase);
    if (lane == 0) {
      tiles[stage].piece.index = -1;
      arrive(full + stage * sizeof(uint64_t));
    }
  }
};

// DIMS is the head size, STAGES the number of tiles in shared memory, and HEADS the most heads of an item, 4 or 8.
template <typename Numbers, int DIMS, int STAGES, int HEADS>
__global__ void __launch_bounds__(THREADS, BLOCKS) attend(const __grid_constant__ CUtensorMap pool, const DecodeRun of, int box_tokens) {
  using Tile = TileLayout<Numbers, DIMS>;
  constexpr int STEPS = DIMS / STEP;
  extern __shared__ uint8_t memory[];
  __shared__ uint64_t barriers[2 * STAGES + 2];
  __shared__ __align__(16) bf16 queries_of[STAGES][HEADS * DIMS];
  __shared__ __align__(16) States<DIMS, HEADS> states;
  __shared__ TileOf tiles[STAGES];
  const uint32_t at = (shared_address(memory) + TILE_ALIGN - 1) / TILE_ALIGN * TILE_ALIGN;
  const uint32_t full = shared_address(barriers), empty = full + STAGES * sizeof(uint64_t), states_full = empty + STAGES * sizeof(uint64_t),
                 states_empty = states_full + sizeof(uint64_t);
  if (threadIdx.x < 2 * STAGES + 2) {
    const int arrivals = threadIdx.x < STAGES || threadIdx.x == 2 * STAGES + 1 ? 1 : WARPS;
    initialise_for_copies(full + threadIdx.x * sizeof(uint64_t), arrivals);
  }
  __syncthreads();
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  if (warp == COPYING) return Copier<Numbers, DIMS, STAGES, HEADS>{pool, of, box_tokens, at, full, empty, tiles, queries_of}.copy_items();
  after_previous();
  if (warp == JOINING) return join(of, states, states_full, states_empty);

  const int column = lane % 4 * 2;  // the thread has the heads `column` and `column + 1` of products
  const int first = warp * Tile::WARP_TOKENS;
  int stage = 0, phase = 0, empty_phase = 1;
  uint32_t queries[STEPS][2];
  float out[STEPS][4];
  Softmax softmax;
  while (true) {
    const uint32_t keys = at + stage * Tile::BYTES, values = keys + Tile::KEYS_BYTES;
    wait_for(full + stage * sizeof(uint64_t), phase);
    const TileOf& tile = tiles[stage];
    if (tile.piece.index < 0) break;
    if (tile.is_first) {
      // Columns after the last head may have any numbers. They are not used.
      const uint32_t* own = reinterpret_cast<const uint32_t*>(queries_of[stage]) + lane / 4 % HEADS * DIMS / 2;
#pragma unroll
      for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int half = 0; half < 2; half++) queries[step][half] = Numbers::of_queries(own[step * 8 + Numbers::query_pair(lane % 4, half)]);
#pragma unroll
        for (int i = 0; i < 4; i++) out[step][i] = 0.f;
      }
      softmax = {{LEAST, LEAST}, {0.f, 0.f}};
    }
    const int there = tile.tokens - first;  // positions of the warp's and later ones
    if (there > 0) {
      float sums[Tile::STEPS][4] = {}, factors[2];
#pragma unroll
      for (int step = 0; step < Tile::STEPS; step++) multiply_keys<DIMS>(Numbers{}, sums[step], keys, first + step * STEP, queries);
      if (there < Tile::WARP_TOKENS) {
        // Memory after the last position may have any bits.
#pragma unroll
        for (int i = 0; i < Tile::STEPS * 4; i++) {
          if (i / 4 * STEP + i / 2 % 2 * 8 + lane / 4 >= there) sums[i / 4][i % 4] = -INFINITY;
        }
        constexpr int OF_TOKEN = Tile::LINES * Tile::VECTORS;
        for (int i = lane; i < (Tile::WARP_TOKENS - there) * OF_TOKEN; i += WARP) {
          const uint32_t address = values + Tile::offset(first + there + i / OF_TOKEN, i % OF_TOKEN);
          asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(address), "r"(0) : "memory");
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncwarp();
      }
      softmax.take(sums, factors, of.scale * LOG2_E);
#pragma unroll
      for (int i = 0; i < STEPS * 4; i++) out[i / 4][i % 4] *= factors[i % 2];
#pragma unroll
      for (int step = 0; step < Tile::STEPS; step++) {
        const uint32_t low = transposed(Numbers::of_weights(sums[step][0], sums[step][1]));
        const uint32_t high = transposed(Numbers::of_weights(sums[step][2], sums[step][3]));
        multiply_values<DIMS>(Numbers{}, out, values, first + step * STEP, low, high);
      }
    }
    const bool is_last = tile.is_last;
    const Piece piece = tile.piece;
    __syncwarp();
    if (lane == 0) arrive(empty + stage * sizeof(uint64_t));
    if (++stage == STAGES) stage = 0, phase ^= 1;
    if (!is_last) continue;

    constexpr int ROUND_DIMS = States<DIMS, HEADS>::ROUND_DIMS;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      for (int offset = 4; offset < WARP; offset *= 2) softmax.total[i] += __shfl_xor_sync(~0u, softmax.total[i], offset);
    }
#pragma unroll
    for (int first_dim = 0; first_dim < DIMS; first_dim += ROUND_DIMS) {
      wait_for(states_empty, empty_phase);
      empty_phase ^= 1;
      if (column < HEADS) {
#pragma unroll
        for (int i = 0; i < ROUND_DIMS / 8; i++) {
          const int dim = i / 2 * STEP + Numbers::dim_of(lane / 4 + i % 2 * 8);
          const float(&from)[4] = out[first_dim / STEP + i / 2];
          *reinterpret_cast<float2*>(&states.out[warp][dim][column]) = {from[i % 2 * 2], from[i % 2 * 2 + 1]};
        }
        if (lane < 4) {
          *reinterpret_cast<float2*>(&states.maxima[warp][column]) = {softmax.most[0], softmax.most[1]};
          *reinterpret_cast<float2*>(&states.totals[warp][column]) = {softmax.total[0], softmax.total[1]};
        }
      }
      if (threadIdx.x == 0) states.piece = piece;
      __syncwarp();
      if (lane == 0) arrive(states_full);
    }
  }
  wait_for(states_empty, empty_phase);
  if (threadIdx.x == 0) states.piece.index = -1;
  __syncwarp();
  if (lane == 0) arrive(states_full);
}

// A block joins the pieces of a row. With `codes` it rounds every row to FP8, also a row of one piece. Without, it writes rows of several pieces to `out`.
template <int DIMS, int PER_THREAD>
__global__ void __launch_bounds__(JOINERS) join_pieces(const DecodeRun of) {
  // WIDTH threads join a head. Each loads the sums of up to OWN pieces.
  constexpr int WIDTH = DIMS / VECTOR, OWN = PIECES_MAX / WIDTH;
  const int row = blockIdx.x, first = of.row_pieces[row], pieces = of.row_pieces[row + 1] - first, count = of.heads * WIDTH;
  after_previous(of.rows);
  if (pieces == 1 && of.codes == nullptr) return;
  Vector kept[PER_THREAD];
#pragma unroll
  for (int n = 0; n < PER_THREAD; n++) {
    // Threads after the last vector repeat it, because all lanes take part in the shuffles.
    const int i = min(static_cast<int>(n * blockDim.x + threadIdx.x), count - 1), head = i / WIDTH;
    if (pieces == 1) {
      kept[n] = vectors(of.out)[int64_t{row} * count + i];
      continue;
    }
    float weights[OWN], largest = -INFINITY, sum = 0.f;
#pragma unroll
    for (int k = 0; k < OWN; k++) {
      const int piece = k * WIDTH + threadIdx.x % WIDTH;
      weights[k] = piece < pieces ? of.partial_sums[int64_t{first + piece} * of.heads + head] : -INFINITY;
      largest = fmaxf(largest, weights[k]);
    }
    for (int offset = 1; offset < WIDTH; offset *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
#pragma unroll
    for (int k = 0; k < OWN; k++) sum += weights[k] = exp2f(weights[k] - largest);
    for (int offset = 1; offset < WIDTH; offset *= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    Floats out = {};
#pragma unroll
    for (int k = 0; k < OWN; k++) {
      const int end = min(WIDTH, pieces - k * WIDTH);
#pragma unroll 4
      for (int j = 0; j < end; j++) {
        const float weight = __shfl_sync(~0u, weights[k], j, WIDTH);
        const Floats numbers = widen(vectors(of.partial_out)[int64_t{first + k * WIDTH + j} * count + i]);
#pragma unroll
        for (int m = 0; m < VECTOR; m++) out.at[m] += weight * numbers.at[m];
      }
    }
#pragma unroll
    for (int m = 0; m < VECTOR; m++) out.at[m] /= sum;
    kept[n] = narrow(out);
  }
  if (of.codes != nullptr) return round_row(kept, row, count, of.codes, of.scales);
#pragma unroll
  for (int n = 0; n < PER_THREAD; n++) {
    const int i = n * blockDim.x + threadIdx.x;
    if (i < count) vectors(of.out)[int64_t{row} * count + i] = kept[n];
  }
}

// Describes the pool as lines of a head's numbers, and the box of `box_tokens` positions that is copied at a time.
template <typename Tile>
int describe_pool(CUtensorMap& map, const DecodeRun& of, int box_tokens) {
  const bool is_fp8 = Tile::NUMBER_BYTES == 1;
  return describe(map, is_fp8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, of.pool, of.pool_lines,
                  of.head_dim, Tile::NUMBER_BYTES, box_tokens, Tile::LINE_DIMS);
}

template <typename Numbers, int DIMS, int STAGES, int HEADS>
int run(const DecodeRun& of, cudaStream_t stream) {
  using Tile = TileLayout<Numbers, DIMS>;
  constexpr int BYTES = TILE_ALIGN + STAGES * Tile::BYTES;
  // 16: the barriers of a stage. 128: the other barriers and padding. 1,024: what the system reserves for a block.
  static_assert(BLOCKS * (BYTES + STAGES * (HEADS * DIMS * sizeof(bf16) + sizeof(TileOf) + 16) + sizeof(States<DIMS, HEADS>) + 128 + 1024) <= 228 * 1024);
  int box_tokens = Tile::TOKENS;
  while (of.page_tokens % box_tokens != 0) box_tokens /= 2;
  CUtensorMap pool;
  if (const int error = describe_pool<Tile>(pool, of, box_tokens)) return error;
  const auto kernel = attend<Numbers, DIMS, STAGES, HEADS>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
  if (error != cudaSuccess) return error;
  const int blocks = std::min(of.pieces * of.kv_heads * parts_of_group(of), BLOCKS * multiprocessors());
  if (const int failed = launch(kernel, blocks, THREADS, BYTES, stream, pool, of, box_tokens)) return failed;
  const int count = of.heads * DIMS / VECTOR, joiners = std::min(JOINERS, (count + WARP - 1) / WARP * WARP);
  if (count <= JOINERS) return launch(join_pieces<DIMS, 1>, of.rows, joiners, 0, stream, of);
  if (count <= 2 * JOINERS) return launch(join_pieces<DIMS, 2>, of.rows, joiners, 0, stream, of);
  if (count <= 4 * JOINERS) return launch(join_pieces<DIMS, 4>, of.rows, joiners, 0, stream, of);
  return cudaErrorInvalidValue;
}

template <typename Numbers, int DIMS, int STAGES>
int run_for_group(const DecodeRun& of, cudaStream_t stream) {
  return of.heads / of.kv_heads <= 4 ? run<Numbers, DIMS, STAGES, 4>(of, stream) : run<Numbers, DIMS, STAGES, 8>(of, stream);
}

}  // namespace

extern "C" {

// Row r attends to the keys and values of sequence r.
// - The pool has `pool_lines` lines of `head_dim` numbers, bf16, or e4m3 codes if `fp8`. The keys of KV head h in page p begin at line
//   p * page_lines + h * head_lines + layer_lines, and the values `page_tokens` lines later. `page_tokens` is a multiple of
//   16.
// - Piece b begins at position `piece_starts[b]` of row `piece_rows[b]`; this row's pieces have `piece_lengths[b]` tokens.
// - `row_pieces[r]` is the number of pieces before those of row r. `row_pieces[rows]` is the number of all pieces, at most `pieces`. The lists of pieces
//   have room for `pieces` pieces. A row has at most 32.
// - `partial_out` has pieces * heads * head_dim bf16 numbers, and `partial_sums` has pieces * heads floats.
// - With `codes` and `scales`, the rows are rounded to FP8 and written there. Then rows of several pieces are undefined in `out`.
// - A row has at most 16384 numbers.
int baton_decode_run(const DecodeRun* arguments, cudaStream_t stream) {
  const DecodeRun& of = *arguments;
  if (of.rows == 0) return cudaSuccess;
  if (of.page_tokens % STEP != 0 || of.pool_lines > INT32_MAX) return cudaErrorInvalidValue;
  switch (of.head_dim) {
    case 64: return of.fp8 ? run_for_group<Fp8Numbers, 64, 5>(of, stream) : run_for_group<Bf16Numbers, 64, 5>(of, stream);
    case 128: return of.fp8 ? run_for_group<Fp8Numbers, 128, 3>(of, stream) : run_for_group<Bf16Numbers, 128, 3>(of, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // extern "C"

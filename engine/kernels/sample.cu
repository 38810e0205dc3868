// Samples the next token of each row, bit for bit as `engine/src/sampling.rs` defines it: the largest logit, or a draw among the
// most probable tokens, after the row's biases and penalties. The logits in memory stay as they are.
//
// A cluster of eight blocks computes a row. Each block has an eighth of the vocabulary. It reads the logits once and keeps their
// weights in shared memory until the draw. The weight at which `top_k` or `top_p` cuts off is found by a radix search: blocks
// count tokens and sum units by one digit of the weights, each block sums the eight histograms, and the search continues with
// the next digit. Units are integers, so neither the order of the sums nor the number of blocks affects the result.

#include <cooperative_groups.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "counts.cuh"
#include "launch.cuh"
#include "rank.cuh"

namespace cg = cooperative_groups;

// The arguments. `engine/src/gpu/arguments.rs` declares the same struct, and a test there compares the two.
struct SampleRows {
  const float* logits;
  const void* settings;
  const int32_t* mask_of;
  const uint32_t* masks;
  const int32_t* place_of;
  const int32_t* bias_starts;
  const uint32_t* biases;
  uint16_t* counts;
  int32_t* out;
  int32_t rows;
  int32_t vocabulary;
};
static_assert(sizeof(SampleRows) == 80);

namespace {

constexpr int BLOCKS = 8;  // per cluster: the largest portable cluster size
constexpr int WARP = 32;
constexpr int THREADS = 1024;
// A weight of at most 1 has 30 bits that may be set. They are three digits of ten bits. Each thread has one value of a digit.
constexpr int DIGIT_BITS = 10;
constexpr int DIGITS = 3;
static_assert(1 << DIGIT_BITS == THREADS);
constexpr float UNITS = 0x1p44f;
// The most logits in an eighth of a vocabulary. The other shared memory of a block takes the rest of its 227 KiB.
constexpr int IDS_MAX = 48 << 10;

// The sampling settings of a row, in the host's layout.
struct Settings {
  float temperature;  // 0: the largest logit
  float top_p;
  float min_p;
  uint32_t top_k;
  uint32_t seed[2];  // the lower half first
  uint32_t position;
  float repetition;
  float presence;
  float frequency;
  uint32_t nothing[2];
};
static_assert(sizeof(Settings) == 12 * sizeof(uint32_t));

// The entry of `mask_of` of a row that is not sampled.
constexpr int32_t LATE = -2;

// A number of tokens, and the sum of their units.
struct alignas(16) Sums {
  uint64_t count;
  uint64_t units;
};

__device__ Sums operator+(Sums a, Sums b) { return {a.count + b.count, a.units + b.units}; }
__device__ Sums operator-(Sums a, Sums b) { return {a.count - b.count, a.units - b.units}; }

// Units have 45 bits. Their sums are in three parts of 32 bits, because shared memory adds only 32 bits at once.
constexpr int PARTS = 3;
constexpr int PART_BITS = 15;
static_assert((uint64_t{IDS_MAX} << PART_BITS) <= uint64_t{1} << 32);

// Tokens and units of a block by the values of one digit.
struct Histogram {
  uint32_t count[THREADS];
  uint32_t units[PARTS][THREADS];
};

struct Shared {
  Histogram histogram;
  // The sums of all blocks by digit, the largest digit first.
  Sums of_digits[THREADS];
  Sums warps[THREADS / WARP];
  uint64_t best_of_warp[THREADS / WARP];
  // The other blocks of the cluster read these two.
  uint64_t best;
  Sums above;
  // The digit of the cut-off weight, the sums of the larger digits, and whether all tokens with the digit may be drawn.
  uint32_t digit;
  Sums over_digit;
  bool takes_all;
};

// The tokens that may be drawn: all with a larger weight, and the first `ties` tokens with this weight.
struct Limit {
  float weight;
  uint64_t ties;
};

__device__ uint64_t units(float weight) { return __float2ull_rz(__fmul_rn(weight, UNITS)); }

// e to the power of x, with the same operations as on the host. The intrinsics prevent contraction to fused multiply-adds.
__device__ float exp_of(float x) {
  if (!(x > -31.f)) return 0.f;
  const float power = rintf(__fmul_rn(x, 0x1.715476p+0f));
  const float rest =
      __fsub_rn(__fsub_rn(x, __fmul_rn(power, 0x1.63p-1f)), __fmul_rn(power, -0x1.bd0106p-13f));
  constexpr float POLYNOMIAL[] = {0x1.a0d2cep-13f, 0x1.6e879ep-10f, 0x1.111210p-7f,
                                  0x1.555382p-5f,  0x1.555554p-3f,  0x1p-1f};
  float sum = POLYNOMIAL[0];
#pragma unroll
  for (int i = 1; i < 6; i++) sum = __fadd_rn(__fmul_rn(sum, rest), POLYNOMIAL[i]);
  const float scale = __uint_as_float(static_cast<uint32_t>(static_cast<int>(power) + 127) << 23);
  return __fmul_rn(__fadd_rn(__fadd_rn(__fmul_rn(sum, __fmul_rn(rest, rest)), rest), 1.f), scale);
}

__device__ uint64_t mix(uint64_t z) {
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

__device__ uint64_t draw(const Settings& how) {
  constexpr uint64_t K = 0x9E3779B97F4A7C15u;
  const uint64_t state = mix((uint64_t{how.seed[1]} << 32 | how.seed[0]) + K);
  return mix(state ^ (uint64_t{how.position} + 1) * K);
}

// The inclusive prefix sums over the block's threads.
__device__ Sums scanned(Sums value, Shared& shared) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  for (int offset = 1; offset < WARP; offset *= 2) {
    const Sums lower = {__shfl_up_sync(~0u, value.count, offset), __shfl_up_sync(~0u, value.units, offset)};
    if (lane >= offset) value = value + lower;
  }
  __syncthreads();
  if (lane == WARP - 1) shared.warps[warp] = value;
  __syncthreads();
  // Every warp sums up the sums of the warps before it.
  Sums before = lane < warp ? shared.warps[lane] : Sums{0, 0};
  for (int offset = 1; offset < WARP; offset *= 2) {
    before = before + Sums{__shfl_xor_sync(~0u, before.count, offset), __shfl_xor_sync(~0u, before.units, offset)};
  }
  return value + before;
}

struct Row {
  cg::cluster_group cluster;
  Shared& shared;
  // The block's weights and their number.
  const float* weights;
  int ids;
  // The smallest weight that histograms count.
  float least;

  // Finds the limit of the first tokens, by weight and then by id, that reach `wanted` tokens, or units if BY_UNITS. `wanted` is at least 1 and at most the
  // total of all counted tokens. `own` is the histogram of the first digit. The search ends at the digit with which all tokens may be drawn.
  template <bool BY_UNITS>
  __device__ Limit limit(uint64_t wanted, Sums own) {
    uint32_t leading = 0;
    Sums above = {0, 0};
    for (int digit = 0; digit < DIGITS; digit++) {
      if (digit > 0) own = list<BY_UNITS>(leading, (DIGITS - 1 - digit) * DIGIT_BITS);
      // Thread 0 has the largest digit, so the prefix sums start with the largest weights.
      const Sums sum = above + scanned(own, shared), before = sum - own;
      const bool reached = (BY_UNITS ? sum.units : sum.count) >= wanted;
      if (reached && (BY_UNITS ? before.units : before.count) < wanted) {
        shared.digit = THREADS - 1 - threadIdx.x;
        shared.over_digit = before;
        shared.takes_all = own.count == 1 || (!BY_UNITS && sum.count == wanted);
      }
      __syncthreads();
      leading = leading << DIGIT_BITS | shared.digit;
      above = shared.over_digit;
      const bool takes_all = shared.takes_all;
      __syncthreads();
      // The largest weight below those that are counted and have these leading digits.
      if (takes_all) return {__uint_as_float(max(leading << (DIGITS - 1 - digit) * DIGIT_BITS, __float_as_uint(least)) - 1), 0};
    }
    const float weight = __uint_as_float(leading);
    const uint64_t each = units(weight);
    return {weight, BY_UNITS ? (wanted - above.units + each - 1) / each : wanted - above.count};
  }

  // The histogram of the whole row by the digit at `shift`, over the weights with the leading digits `leading`. Thread t returns
  // the sums of digit THREADS - 1 - t, without units unless WITH_UNITS.
  template <bool WITH_UNITS>
  __device__ Sums list(uint32_t leading, int shift) {
    constexpr int UNIT_PARTS = WITH_UNITS ? PARTS : 0;
    Histogram& mine = shared.histogram;
    mine.count[threadIdx.x] = 0;
    for (int part = 0; part < UNIT_PARTS; part++) mine.units[part][threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < ids; i += THREADS) {
      const uint32_t bits = __float_as_uint(weights[i]);
      if (bits == 0 || weights[i] < least || bits >> shift >> DIGIT_BITS != leading) continue;
      const uint32_t digit = bits >> shift & (THREADS - 1);
      atomicAdd(&mine.count[digit], 1);
      const uint64_t all = units(weights[i]);
      for (int part = 0; part < UNIT_PARTS; part++) {
        atomicAdd(&mine.units[part][digit], static_cast<uint32_t>(all >> part * PART_BITS) & ((1u << PART_BITS) - 1));
      }
    }
    cluster.sync();
    // A block adds up the digits of its share, and writes their sums to all blocks. A thread reads a digit of one block.
    const int digit = cluster.block_rank() * (THREADS / BLOCKS) + threadIdx.x / BLOCKS, other = threadIdx.x % BLOCKS;
    const Histogram* of_block = cluster.map_shared_rank(&mine, other);
    Sums sum = {of_block->count[digit], 0};
    for (int part = 0; part < UNIT_PARTS; part++) sum.units += uint64_t{of_block->units[part][digit]} << part * PART_BITS;
    for (int offset = 1; offset < BLOCKS; offset *= 2) {
      sum = sum + Sums{__shfl_xor_sync(~0u, sum.count, offset), __shfl_xor_sync(~0u, sum.units, offset)};
    }
    cluster.map_shared_rank(shared.of_digits, other)[THREADS - 1 - digit] = sum;
    cluster.sync();
    return shared.of_digits[threadIdx.x];
  }

  // The sums over all digits of a histogram.
  __device__ Sums total(Sums own) {
    // The last thread has them.
    const Sums all = scanned(own, shared);
    if (threadIdx.x == THREADS - 1) shared.over_digit = all;
    __syncthreads();
    const Sums total = shared.over_digit;
    __syncthreads();
    return total;
  }
};

// Adds the biases from `begin` to before `end` to the block's logits, which start with token `first`. A bias is a token and a float. Equal
// tokens are neighbours, and one thread adds their biases in order.
__device__ void add_biases(float* logits, int first, int ids, const uint32_t* biases, int begin, int end) {
  for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += THREADS) {
    const uint32_t token = biases[2 * i], at = token - first;
    if (at >= static_cast<uint32_t>(ids) || (i > begin && biases[2 * i - 2] == token)) continue;
    float logit = logits[at];
    for (int next = i; next < end && biases[2 * next] == token; next++) {
      logit = __fadd_rn(logit, __uint_as_float(biases[2 * next + 1]));
    }
    logits[at] = logit;
  }
}

// The logit of a token that has this count, after the penalties.
__device__ float penalised(float logit, uint16_t count, const Settings& how) {
  if (count == 0) return logit;
  const float repeated =
      logit > 0.f ? __fdiv_rn(logit, how.repetition) : __fmul_rn(logit, how.repetition);
  const int sampled = count & COUNT_MAX;
  if (sampled == 0) return repeated;
  return __fsub_rn(repeated, __fadd_rn(how.presence, __fmul_rn(how.frequency, static_cast<float>(sampled))));
}

__global__ void __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(THREADS, 2) sample(const SampleRows of) {
  extern __shared__ float weights[];
  __shared__ Shared shared;
  const cg::cluster_group cluster = cg::this_cluster();
  const int block = cluster.block_rank(), row = blockIdx.x / BLOCKS, vocabulary = of.vocabulary;
  const int share = (vocabulary + BLOCKS - 1) / BLOCKS;
  const int first = min(block * share, vocabulary), ids = min(share, vocabulary - first);
  const Settings how = static_cast<const Settings*>(of.settings)[row];
  after_previous(gridDim.x / BLOCKS);

  const int mask_number = of.mask_of == nullptr ? -1 : of.mask_of[row];
  if (mask_number == LATE) {
    // The whole cluster returns. Kernels may read the token, so it is one of the vocabulary.
    if (block == 0 && threadIdx.x == 0) of.out[row] = 0;
    return;
  }
  // The mask of the row; null if all tokens are allowed.
  const int mask_words = (vocabulary + 31) / 32;
  const uint32_t* mask = mask_number < 0 ? nullptr : of.masks + int64_t{mask_number} * mask_words;
  const auto allowed = [&](int i) {
    const int token = first + i;
    return mask == nullptr || (mask[token / 32] >> (token % 32) & 1) != 0;
  };

  const float* mine = of.logits + int64_t{row} * vocabulary + first;
  for (int i = threadIdx.x; i < ids; i += THREADS) weights[i] = mine[i];
  // The counts of the row's sequence; null if the row has no penalties.
  uint16_t* counts = nullptr;
  if (of.place_of != nullptr) {
    const int begin = of.bias_starts[row], end = of.bias_starts[row + 1];
    if (begin < end) {
      __syncthreads();
      add_biases(weights, first, ids, of.biases, begin, end);
      __syncthreads();
    }
    const int32_t place = of.place_of[row];
    if (place >= 0) {
      counts = of.counts + int64_t{place} * counts_stride(vocabulary);
      for (int i = threadIdx.x; i < ids; i += THREADS) weights[i] = penalised(weights[i], counts[first + i], how);
    }
  }
  // Each thread reads the weights that it has written. Rank 0 is below the rank of every allowed token.
  uint64_t best = 0;
  for (int i = threadIdx.x; i < ids; i += THREADS) {
    if (allowed(i)) best = max(best, rank(weights[i], first + i));
  }
  for (int offset = WARP / 2; offset > 0; offset /= 2) best = max(best, __shfl_xor_sync(~0u, best, offset));
  if (threadIdx.x % WARP == 0) shared.best_of_warp[threadIdx.x / WARP] = best;
  __syncthreads();
  for (int warp = 0; warp < THREADS / WARP; warp++) best = max(best, shared.best_of_warp[warp]);
  if (threadIdx.x == 0) shared.best = best;
  cluster.sync();
  for (int other = 0; other < BLOCKS; other++) best = max(best, *cluster.map_shared_rank(&shared.best, other));

  // One thread of the cluster calls this. No other thread reads the counts any more: all have passed a `sync` since.
  const auto chosen = [&](uint32_t token) {
    of.out[row] = static_cast<int32_t>(token);
    if (counts != nullptr && (counts[token] & COUNT_MAX) < COUNT_MAX) counts[token]++;
  };

  // All blocks of a cluster take the same branches.
  uint64_t total = 0;
  if (!(how.temperature <= 0.f)) {
    const float most = ranked(best);
    for (int i = threadIdx.x; i < ids; i += THREADS) {
      const float logit = weights[i];
      const float weight = logit == most ? 1.f : exp_of(__fdiv_rn(__fsub_rn(logit, most), how.temperature));
      weights[i] = allowed(i) && weight >= how.min_p && weight >= 1.f / UNITS ? weight : 0.f;
    }
    __syncthreads();
    Row of_row = {cluster, shared, weights, ids, 0.f};
    Limit limit = {0.f, 0};
    constexpr int SHIFT = (DIGITS - 1) * DIGIT_BITS;
    if (how.top_k > 0) {
      const Sums of_digit = of_row.list<false>(0, SHIFT);
      const uint64_t count = of_row.total(of_digit).count;
      if (how.top_k < count) limit = of_row.limit<false>(how.top_k, of_digit);
      of_row.least = limit.weight;
    }
    if (how.top_p < 1.f) {
      const Sums of_digit = of_row.list<true>(0, SHIFT), all = of_row.total(of_digit);
      // Tokens with the limit's weight that may not be drawn.
      const uint64_t over = limit.weight > 0.f ? all.count - how.top_k : 0;
      const uint64_t kept = all.units - over * units(limit.weight);
      const uint64_t wanted = __umul64hi(__double2ull_rz(static_cast<double>(how.top_p) * 0x1p64), kept);
      if (kept > 0) limit = of_row.limit<true>(max(wanted, uint64_t{1}), of_digit);
    }

    // Each thread has an odd number of consecutive ids, so the threads of a warp read from different banks.
    const int of_thread = (ids + THREADS - 1) / THREADS | 1;
    const int begin = min(static_cast<int>(threadIdx.x) * of_thread, ids), end = min(begin + of_thread, ids);
    const uint64_t each = units(limit.weight);
    Sums own = {0, 0};
    for (int i = begin; i < end; i++) {
      if (weights[i] < limit.weight || weights[i] == 0.f) continue;
      if (weights[i] > limit.weight) own.units += units(weights[i]);
      else own.count++;
    }
    // Here `count` counts the tokens with the limit's weight. The first of them may be drawn.
    const Sums upto = scanned(own, shared);
    if (threadIdx.x == THREADS - 1) shared.above = upto;
    cluster.sync();
    Sums before = {0, 0}, all = {0, 0};
    for (int other = 0; other < BLOCKS; other++) {
      const Sums theirs = *cluster.map_shared_rank(&shared.above, other);
      if (other < block) before = before + theirs;
      all = all + theirs;
    }
    const auto drawable = [&](Sums sums) { return sums.units + min(sums.count, limit.ties) * each; };
    total = drawable(all);
    const uint64_t drawn = __umul64hi(draw(how), total);
    Sums sums = before + upto - own;
    if (drawable(sums) <= drawn && drawn < drawable(sums + own)) {
      int i = begin;
      while (true) {
        if (weights[i] > limit.weight) sums.units += units(weights[i]);
        if (weights[i] == limit.weight) sums.count++;
        if (drawable(sums) > drawn) break;
        i++;
      }
      chosen(first + i);
    }
  }
  if (total == 0 && block == 0 && threadIdx.x == 0) chosen(~static_cast<uint32_t>(best));
  // A block must not exit while other blocks read its shared memory.
  cluster.sync();
}

}  // namespace

// The largest vocabulary.
extern "C" int baton_vocabulary_max() { return IDS_MAX * BLOCKS; }

// out[r] = the token sampled from row r of the logits with `settings[r]`, which has twelve words. If `mask_of` is not null, only tokens that
// mask number mask_of[r] allows are sampled; -1 allows all, and -2 samples nothing. A mask has a bit per token, the lowest bit of a word first.
// If `place_of` is not null:
// - Row r has the biases bias_starts[r] to bias_starts[r + 1] - 1, ordered by token.
// - place_of[r] is the place of the row's sequence in the counts. The sampled token is counted there. -1: the row has no penalties.
extern "C" int baton_sample_rows(const SampleRows* arguments, cudaStream_t stream) {
  const int vocabulary = arguments->vocabulary;
  if (arguments->rows == 0) return cudaSuccess;
  if (vocabulary > IDS_MAX * BLOCKS) return cudaErrorInvalidValue;
  const int bytes = (vocabulary + BLOCKS - 1) / BLOCKS * sizeof(float);
  // The attribute is per process, so it is set to the size for the largest vocabulary.
  const int most = IDS_MAX * sizeof(float);
  const cudaError_t error = cudaFuncSetAttribute(sample, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error != cudaSuccess) return error;
  return launch(sample, arguments->rows * BLOCKS, THREADS, bytes, stream, *arguments);
}

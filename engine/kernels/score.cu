// Log probabilities of given tokens, as `logprobs` in `engine/src/sampling.rs` defines them: of the token that follows a row, its rank, and the
// most probable tokens at its place.
//
// A block computes a row. It reads the row's logits once for the largest logit, once for the sum, and once for each of the most probable
// tokens. The logits of a slice of rows fit in the L2 cache.

#include <cuda_runtime.h>
#include <stdint.h>

#include "launch.cuh"
#include "rank.cuh"

namespace {

constexpr int WARP = 32;
constexpr int THREADS = 1024;
constexpr int WARPS = THREADS / WARP;
// The words of a row in the output: log probability, rank, and pairs of a token and its log probability.
constexpr int TOP_MAX = 20;
constexpr int ROW_WORDS = 2 + 2 * TOP_MAX;

// The largest value over the block's threads, in all threads.
__device__ uint64_t largest(uint64_t value, uint64_t* of_warps) {
  for (int offset = WARP / 2; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(~0u, value, offset));
  __syncthreads();
  if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = value;
  __syncthreads();
  for (int warp = 0; warp < WARPS; warp++) value = max(value, of_warps[warp]);
  return value;
}

__global__ void __launch_bounds__(THREADS, 2)
    score(const float* logits, const int32_t* targets, uint32_t* out, int vocabulary, int top) {
  __shared__ uint64_t ranks[WARPS];
  __shared__ double sums[WARPS];
  __shared__ uint32_t counts[WARPS];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  after_previous(gridDim.x);
  const float* row = logits + int64_t{blockIdx.x} * vocabulary;
  uint32_t* of_row = out + int64_t{blockIdx.x} * ROW_WORDS;

  uint64_t best = 0;
  for (int i = threadIdx.x; i < vocabulary; i += THREADS) best = max(best, rank(row[i], i));
  best = largest(best, ranks);
  const float most = ranked(best), own = row[targets[blockIdx.x]];

  // The sum does not depend on the number of rows: each thread has the same tokens, and the order of the additions is fixed.
  double sum = 0;
  uint32_t count = 0;
  for (int i = threadIdx.x; i < vocabulary; i += THREADS) {
    sum += exp(static_cast<double>(row[i] - most));
    count += row[i] >= own;
  }
  for (int offset = WARP / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(~0u, sum, offset);
    count += __shfl_xor_sync(~0u, count, offset);
  }
  if (lane == 0) {
    sums[warp] = sum;
    counts[warp] = count;
  }
  __syncthreads();
  sum = 0;
  count = 0;
  for (int i = 0; i < WARPS; i++) {
    sum += sums[i];
    count += counts[i];
  }
  const double log_sum = log(sum);
  const auto logprob = [&](float logit) {
    return __float_as_uint(static_cast<float>(static_cast<double>(logit - most) - log_sum));
  };
  if (threadIdx.x == 0) {
    of_row[0] = logprob(own);
    of_row[1] = count;
  }
  for (int n = 0; n < top; n++) {
    if (threadIdx.x == 0) {
      of_row[2 + 2 * n] = ~static_cast<uint32_t>(best);
      of_row[3 + 2 * n] = logprob(ranked(best));
    }
    const uint64_t before = best;
    best = 0;
    for (int i = threadIdx.x; i < vocabulary; i += THREADS) {
      const uint64_t next = rank(row[i], i);
      if (next < before) best = max(best, next);
    }
    best = largest(best, ranks);
  }
}

}  // namespace

// The arguments. `engine/src/gpu/arguments.rs` declares the same struct, and a test there compares the two.
struct ScoreRows {
  const float* logits;
  const int32_t* targets;
  uint32_t* out;
  int32_t rows;
  int32_t vocabulary;
  int32_t top;
};
static_assert(sizeof(ScoreRows) == 40);

// Row r of the output, which has 42 words: the log probability of targets[r] at row r of the logits, its rank, and `top` pairs of a token
// and its log probability, the most probable first. `top` is at most 20 and at most the vocabulary.
extern "C" int baton_score_rows(const ScoreRows* arguments, cudaStream_t stream) {
  const auto [logits, targets, out, rows, vocabulary, top] = *arguments;
  if (rows == 0) return cudaSuccess;
  if (top > TOP_MAX || top > vocabulary) return cudaErrorInvalidValue;
  return launch(score, rows, THREADS, 0, stream, logits, targets, out, vocabulary, top);
}

// Log probabilities of given tokens, as `logprobs` in `engine/src/sampling.rs` defines them: of the token that follows a row, its rank, and the
// most probable tokens at its place.
//
// A block computes a row. It reads the row's logits once for the largest logit and once for the sum. Each thread knows the most probable of its
// tokens that is not reported yet. When a token is reported, the warp of its thread reads the tokens of this thread again for the next one.

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
    score(const float* logits, const int32_t* which, const int32_t* targets, uint32_t* out, int vocabulary, int top) {
  __shared__ uint64_t ranks[WARPS];
  __shared__ double sums[WARPS];
  __shared__ uint32_t counts[WARPS];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  after_previous(gridDim.x);
  const int index = which == nullptr ? blockIdx.x : which[blockIdx.x];
  const float* row = logits + int64_t{index} * vocabulary;
  uint32_t* of_row = out + int64_t{blockIdx.x} * ROW_WORDS;

  // The largest rank of the thread's tokens that are not reported yet.
  uint64_t mine = 0;
  for (int i = threadIdx.x; i < vocabulary; i += THREADS) mine = max(mine, rank(row[i], i));
  uint64_t best = largest(mine, ranks);
  const float most = ranked(best), own = row[targets[index]];

  // The sum does not depend on the number of rows: each thread has the same tokens, and the order of the additions is fixed. Powers in 32 bits are exact
  // enough, because their errors nearly cancel in the sum, and in 64 bits they would take most of the time.
  double sum = 0;
  uint32_t count = 0;
  for (int i = threadIdx.x; i < vocabulary; i += THREADS) {
    sum += expf(row[i] - most);
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
    const uint32_t token = ~static_cast<uint32_t>(best);
    if (threadIdx.x == 0) {
      of_row[2 + 2 * n] = token;
      of_row[3 + 2 * n] = logprob(ranked(best));
    }
    if (n + 1 == top) break;
    const int reported = token % THREADS;
    if (warp == reported / WARP) {
      uint64_t next = 0;
      for (int i = reported + lane * THREADS; i < vocabulary; i += WARP * THREADS) {
        const uint64_t other = rank(row[i], i);
        if (other < best) next = max(next, other);
      }
      for (int offset = WARP / 2; offset > 0; offset /= 2) next = max(next, __shfl_xor_sync(~0u, next, offset));
      if (lane == reported % WARP) mine = next;
    }
    best = largest(mine, ranks);
  }
}

}  // namespace

// The arguments. `engine/src/gpu/arguments.rs` declares the same struct, and a test there compares the two.
struct ScoreRows {
  const float* logits;
  const int32_t* which;
  const int32_t* targets;
  uint32_t* out;
  int32_t rows;
  int32_t vocabulary;
  int32_t top;
};
static_assert(sizeof(ScoreRows) == 48);

// Row r of the output, which has 42 words: the log probability of targets[n] at row n of the logits, its rank, and `top` pairs of a token
// and its log probability, the most probable first. n is which[r], or r if `which` is null. `top` is at most 20 and at most the vocabulary.
extern "C" int baton_score_rows(const ScoreRows* arguments, cudaStream_t stream) {
  const auto [logits, which, targets, out, rows, vocabulary, top] = *arguments;
  if (rows == 0) return cudaSuccess;
  if (top > TOP_MAX || top > vocabulary) return cudaErrorInvalidValue;
  return launch(score, rows, THREADS, 0, stream, logits, which, targets, out, vocabulary, top);
}

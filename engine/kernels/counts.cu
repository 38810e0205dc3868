// Fills places of the token counts from the tokens of their sequences.
//
// Eight blocks count a sequence. Each has an eighth of the vocabulary in shared memory, and reads all tokens.

#include <cuda_runtime.h>
#include <stdint.h>

#include "counts.cuh"
#include "launch.cuh"

// The arguments. `engine/src/gpu/arguments.rs` declares the same struct, and a test there compares the two.
struct CountTokens {
  const int32_t* sequences;
  const uint32_t* tokens;
  uint16_t* counts;
  int32_t count;
  int32_t vocabulary;
};
static_assert(sizeof(CountTokens) == 32);

namespace {

constexpr int BLOCKS = 8;
constexpr int THREADS = 1024;
// As many tokens of a block as `sample.cu` supports.
constexpr int IDS_MAX = 48 << 10;
// In shared memory, the highest bit says that the prompt has the token.
constexpr uint32_t PROMPT_BIT = 1u << 31;

// A sequence to count.
struct Counted {
  int32_t place;
  int32_t first;   // its tokens are those from here
  int32_t prompt;  // to before here: its prompt
  int32_t end;     // to before here: sampled
};
static_assert(sizeof(Counted) == 4 * sizeof(int32_t));

__global__ void __launch_bounds__(THREADS) count(const CountTokens of) {
  extern __shared__ uint32_t own[];
  const int block = blockIdx.x % BLOCKS, vocabulary = of.vocabulary;
  const int share = (vocabulary + BLOCKS - 1) / BLOCKS;
  const int begin = min(block * share, vocabulary), ids = min(share, vocabulary - begin);
  for (int i = threadIdx.x; i < ids; i += THREADS) own[i] = 0;
  after_previous(gridDim.x / BLOCKS);
  const Counted sequence = reinterpret_cast<const Counted*>(of.sequences)[blockIdx.x / BLOCKS];
  __syncthreads();
  for (int i = sequence.first + static_cast<int>(threadIdx.x); i < sequence.end; i += THREADS) {
    const uint32_t at = of.tokens[i] - begin;
    if (at >= static_cast<uint32_t>(ids)) continue;
    if (i < sequence.prompt) {
      atomicOr(&own[at], PROMPT_BIT);
    } else {
      atomicAdd(&own[at], 1);
    }
  }
  __syncthreads();
  uint16_t* counts = of.counts + int64_t{sequence.place} * counts_stride(vocabulary) + begin;
  for (int i = threadIdx.x; i < ids; i += THREADS) {
    const uint32_t sampled = min(own[i] & ~PROMPT_BIT, COUNT_MAX);
    counts[i] = static_cast<uint16_t>(sampled | (own[i] & PROMPT_BIT ? IN_PROMPT : 0));
  }
}

}  // namespace

// Place p of the counts = the counts of sequence s, for each sequence. A sequence has four words: p, and the offsets in `tokens` at which its prompt
// begins, its sampled tokens begin, and they end. Tokens outside the vocabulary are not counted.
extern "C" int baton_count_tokens(const CountTokens* arguments, cudaStream_t stream) {
  const int vocabulary = arguments->vocabulary;
  if (arguments->count == 0) return cudaSuccess;
  if (vocabulary > IDS_MAX * BLOCKS) return cudaErrorInvalidValue;
  const int bytes = (vocabulary + BLOCKS - 1) / BLOCKS * sizeof(uint32_t);
  const int most = IDS_MAX * sizeof(uint32_t);
  const cudaError_t error = cudaFuncSetAttribute(count, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error != cudaSuccess) return error;
  return launch(count, arguments->count * BLOCKS, THREADS, bytes, stream, *arguments);
}

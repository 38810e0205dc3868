// Counts of the tokens of sequences, for penalties.
//
// A place has a 16-bit count for each token of the vocabulary. The highest bit says that the prompt has the token. The other bits count how
// often it was sampled, up to the largest number.
#pragma once

#include <stdint.h>

namespace {

constexpr uint32_t COUNT_MAX = 0x7FFF;
constexpr uint32_t IN_PROMPT = 0x8000;

// Counts from one place to the next.
__device__ __host__ constexpr int counts_stride(int vocabulary) { return (vocabulary + 7) / 8 * 8; }

}  // namespace

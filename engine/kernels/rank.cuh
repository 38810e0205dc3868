// Ranks of logits: numbers that order by logit and then by token.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace {

// A number that orders by value, then by descending index. So the largest rank has the largest value and the lowest index. NaN
// has the smallest rank.
__device__ uint64_t rank(float value, uint32_t index) {
  const uint32_t bits = __float_as_uint(value + 0.f);  // one zero for both
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t{isnan(value) ? 0u : ordered} << 32 | ~index;
}

// The value of a rank. NaN for rank 0.
__device__ float ranked(uint64_t rank) {
  const uint32_t ordered = static_cast<uint32_t>(rank >> 32);
  return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7FFFFFFFu : ~ordered);
}

}  // namespace

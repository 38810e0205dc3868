// Shared code of the attention kernels: function names by head size, error handling across the C ABI, and the encoding of
// an FA3 plan as 32 numbers that the caller stores.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#define JOIN_NOW(name, head_dim) name##head_dim
#define JOIN(name, head_dim) JOIN_NOW(name, head_dim)

namespace {

// Words of a plan. The last word holds the number of words in use.
constexpr size_t PLAN_PLACES = 32;

// Catches exceptions: FlashInfer throws if an argument or the size of a workspace is wrong, and no exception may reach Rust.
template <typename Body>
int guarded(Body body) {
  try {
    return static_cast<int>(body());
  } catch (...) {
    return -1;
  }
}

template <typename Info>
void store(const Info& info, int64_t* plan) {
  const std::vector<int64_t> numbers = info.ToVector();
  if (numbers.size() >= PLAN_PLACES) throw std::length_error("the plan has more numbers than places");
  std::copy(numbers.begin(), numbers.end(), plan);
  plan[PLAN_PLACES - 1] = static_cast<int64_t>(numbers.size());
}

// Throws if the numbers are not a plan of this type.
template <typename Info>
Info load(const int64_t* plan) {
  const int64_t count = plan[PLAN_PLACES - 1];
  if (count < 0 || count >= static_cast<int64_t>(PLAN_PLACES)) throw std::length_error("not a plan");
  Info info;
  info.FromVector(std::vector<int64_t>(plan, plan + count));
  return info;
}

}  // namespace

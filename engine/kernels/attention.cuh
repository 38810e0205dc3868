// What the attention files share: names by head size, errors across the C ABI, and, for FA3, a plan as 32 numbers that the caller keeps.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#define JOIN_NOW(name, head_dim) name##head_dim
#define JOIN(name, head_dim) JOIN_NOW(name, head_dim)

namespace {

// Places in a plan; the last one holds how many of the others are used.
constexpr size_t PLAN_PLACES = 32;

// FlashInfer throws where an argument or a workspace's size is wrong; no exception may reach Rust.
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

// Throws for numbers that are no plan of this kind.
template <typename Info>
Info load(const int64_t* plan) {
  const int64_t count = plan[PLAN_PLACES - 1];
  if (count < 0 || count >= static_cast<int64_t>(PLAN_PLACES)) throw std::length_error("not a plan");
  Info info;
  info.FromVector(std::vector<int64_t>(plan, plan + count));
  return info;
}

}  // namespace

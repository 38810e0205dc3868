// Vectors of eight numbers: 16 bytes of bf16.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

using bf16 = __nv_bfloat16;

namespace {

constexpr int VECTOR = 8;

struct alignas(16) Vector {
  __nv_bfloat162 pairs[VECTOR / 2];
};

struct alignas(16) Floats {
  float at[VECTOR];
};

__device__ inline Floats widen(const Vector& vector) {
  Floats floats;
#pragma unroll
  for (int i = 0; i < VECTOR / 2; i++) {
    const float2 pair = __bfloat1622float2(vector.pairs[i]);
    floats.at[2 * i] = pair.x;
    floats.at[2 * i + 1] = pair.y;
  }
  return floats;
}

__device__ inline Vector narrow(const Floats& floats) {
  Vector vector;
#pragma unroll
  for (int i = 0; i < VECTOR / 2; i++) {
    vector.pairs[i] = __floats2bfloat162_rn(floats.at[2 * i], floats.at[2 * i + 1]);
  }
  return vector;
}

__device__ inline const Vector* vectors(const bf16* numbers) { return reinterpret_cast<const Vector*>(numbers); }
__device__ inline Vector* vectors(bf16* numbers) { return reinterpret_cast<Vector*>(numbers); }

__device__ inline float largest_of(const Floats& floats) {
  float largest = 0.f;
#pragma unroll
  for (int k = 0; k < VECTOR; k++) largest = fmaxf(largest, fabsf(floats.at[k]));
  return largest;
}

}  // namespace

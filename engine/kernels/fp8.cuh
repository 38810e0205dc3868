// The format of FP8 weights on the device: four e4m3 codes in a word, so that a few operations make two pairs of bf16 numbers.
//
// A matrix is [outputs][inputs / 16] groups of four words. Word t of a group has the codes of inputs 2t, 2t + 1, 2t + 8 and 2t + 9: those that thread
// t of a quad has in `mma.m16n8k16`. A code's sign and its other seven bits go to the places that bf16's sign, the lower four bits of its exponent
// and the upper three of its mantissa have. The first pair is in place. The second pair has the bits between: its signs at 11 and 27, and its
// other bits at 0 to 3, 12 to 14, 16 to 19 and 28 to 30.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

namespace {

constexpr int GROUP_INPUTS = 16;

// Two codes as bf16 bits, in the halves of a word.
__device__ uint32_t in_place(uint32_t first, uint32_t second) {
  const auto half = [](uint32_t code) { return (code & 0x80u) << 8 | (code & 0x7fu) << 4; };
  return half(first) | half(second) << 16;
}

// The word of four codes.
__device__ uint32_t packed(const uint32_t (&codes)[4]) {
  const uint32_t between = in_place(codes[2], codes[3]);
  return in_place(codes[0], codes[1]) | (between & 0x80f080f0u) >> 4 | (between & 0x07000700u) << 4;
}

// The numbers of two codes in place. Their exponent is too small by the difference of the two formats' biases, and a product with a power of two is
// exact, also for numbers without a leading one.
__device__ uint32_t numbers(uint32_t bits) {
  const __nv_bfloat16 factor = __ushort_as_bfloat16(0x7b80);  // 2^120
  const __nv_bfloat162 product = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&bits), __nv_bfloat162(factor, factor));
  return *reinterpret_cast<const uint32_t*>(&product);
}

// The numbers of inputs 2t and 2t + 1 of a word.
__device__ uint32_t first_pair(uint32_t word) { return numbers(word & 0x87f087f0u); }

// The numbers of inputs 2t + 8 and 2t + 9.
__device__ uint32_t second_pair(uint32_t word) { return numbers((word << 4 & 0x80f080f0u) | (word >> 4 & 0x07000700u)); }

}  // namespace

// FP8 keys and values: e4m3 codes. A number is the value of its code times `KvDtype::SCALE` of `engine/src/kv.rs`, which is 1.
//
// Numbers are rounded to nearest even and beyond ±448 become ±448; NaN gets the code 0x7f. `engine/src/e4m3.rs` gives the same codes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <stdint.h>

namespace {

// The codes of two numbers. The first one is in the low byte.
__device__ __nv_fp8x2_storage_t codes_of(float first, float second) {
  return __nv_cvt_float2_to_fp8x2({first, second}, __NV_SATFINITE, __NV_E4M3);
}

// The numbers of two codes, which are exact in bf16.
__device__ __nv_bfloat162 numbers_of(__nv_fp8x2_storage_t codes) {
  const float2 numbers = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(codes, __NV_E4M3)));
  return __floats2bfloat162_rn(numbers.x, numbers.y);
}

}  // namespace

// Hopper's copies of tiles (TMA), for `decode.cu` and `fp8_products.cu`, and products of warpgroups (wgmma) with FP8 numbers, for `fp8_products.cu`.
//
// A tile in shared memory has lines of 64 or 128 bytes, and the copy swizzles the lines: of 128 bytes, vector v of line l is at v ^ l % 8; of 64 bytes, at
// v ^ l / 2 % 4. A tile starts at a multiple of 1,024 bytes. wgmma reads lines of 128 bytes.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "stages.cuh"

namespace {

constexpr int LINE_BYTES = 128, TILE_ALIGN = 1024;

// Initialises a barrier that copies of tiles arrive at. The caller's block, or its cluster, synchronises after it.
__device__ void initialise_for_copies(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
  // Copies see the barrier through another proxy.
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives at the barrier, which then also waits for `bytes` bytes of copies.
__device__ void expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Copies the box of a matrix whose first number is (column, line). Numbers outside of the matrix are zero.
__device__ void copy_tile(uint32_t to, const CUtensorMap* matrix, int column, int line, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(matrix),
      "r"(column), "r"(line), "r"(barrier)
      : "memory");
}

// Copies a box to the same place in the COUNT blocks of a cluster that `blocks` has a bit for, and to the barrier of each. With COUNT = 1
// it copies to the caller's block.
template <int COUNT>
__device__ void copy_tile_to(uint32_t to, const CUtensorMap* matrix, int column, int line, uint32_t barrier, uint32_t blocks) {
  if constexpr (COUNT == 1) {
    copy_tile(to, matrix, column, line, barrier);
  } else {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(matrix), "r"(column), "r"(line), "r"(barrier), "h"(static_cast<uint16_t>(blocks))
        : "memory");
  }
}

// Arrives at the barrier of block `block` of the cluster.
template <int CLUSTER>
__device__ void arrive_at(uint32_t barrier, int block) {
  if constexpr (CLUSTER == 1) {
    arrive(barrier);
  } else {
    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier),
                 "r"(block)
                 : "memory");
  }
}

// Waits for all threads of the block, or of the cluster if it has several blocks.
template <int CLUSTER>
__device__ void synchronise() {
  if constexpr (CLUSTER == 1) {
    __syncthreads();
  } else {
    asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
  }
}

// Waits for all threads of the cluster that have not returned. It is a thread's last call: a block must not end while others copy to it or arrive at its
// barriers.
template <int CLUSTER>
__device__ void leave() {
  if constexpr (CLUSTER > 1) asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
}

// How wgmma reads a tile: swizzled lines of 128 bytes, eight lines in 1,024 bytes. Adding 2 moves 32 bytes along the lines.
__device__ uint64_t tile_descriptor(uint32_t address) {
  constexpr uint64_t SWIZZLED_128 = uint64_t{1} << 62, EIGHT_LINES = uint64_t{1024 >> 4} << 32, UNUSED = 1 << 16;
  return SWIZZLED_128 | EIGHT_LINES | UNUSED | (address & 0x3ffff) >> 4;
}

__device__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void submit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `count` submitted groups of products are not finished.
template <int COUNT>
__device__ void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(COUNT) : "memory"); }

// Keeps the compiler from moving reads or writes of the sums across this place.
template <int COUNT>
__device__ void pin(float (&sums)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(sums[i])::"memory");
}

#define SUMS_4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define SUMS_16(i) SUMS_4(i), SUMS_4(i + 4), SUMS_4(i + 8), SUMS_4(i + 12)
#define NAMES_4 "%0,%1,%2,%3"
#define NAMES_8 NAMES_4 ",%4,%5,%6,%7"
#define NAMES_16 NAMES_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define NAMES_32 NAMES_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define PRODUCTS(ROWS, NAMES, WEIGHTS_NAME, ROWS_NAME, ADD_NAME, ...)                                                   \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " ADD_NAME ", 0;\nwgmma.mma_async.sync.aligned.m64n" ROWS         \
               "k32.f32.e4m3.e4m3 {" NAMES "}, " WEIGHTS_NAME ", " ROWS_NAME ", add, 1, 1;\n}"                          \
               : __VA_ARGS__                                                                                          \
               : "l"(weights), "l"(rows), "r"(add));

// sums[64 outputs][ROWS] = weights[64][32] . rows[ROWS][32]^T, plus the sums if `add`. The warpgroup must not touch the sums before it has waited.
template <int ROWS>
__device__ void multiply_tiles(float (&sums)[ROWS / 2], uint64_t weights, uint64_t rows, int add) {
  static_assert(ROWS == 8 || ROWS == 16 || ROWS == 32 || ROWS == 64);
  if constexpr (ROWS == 8) PRODUCTS("8", NAMES_4, "%4", "%5", "%6", SUMS_4(0))
  if constexpr (ROWS == 16) PRODUCTS("16", NAMES_8, "%8", "%9", "%10", SUMS_4(0), SUMS_4(4))
  if constexpr (ROWS == 32) PRODUCTS("32", NAMES_16, "%16", "%17", "%18", SUMS_16(0))
  if constexpr (ROWS == 64) PRODUCTS("64", NAMES_32, "%32", "%33", "%34", SUMS_16(0), SUMS_16(16))
}

#undef SUMS_4
#undef SUMS_16
#undef NAMES_4
#undef NAMES_8
#undef NAMES_16
#undef NAMES_32
#undef PRODUCTS

// Describes a matrix [lines][columns] of numbers, and the box that is copied at a time. `box_columns` numbers take 64 or 128 bytes.
inline int describe(CUtensorMap& map, CUtensorMapDataType type, const void* numbers, int64_t lines, int columns, int number_bytes, int box_lines,
                    int box_columns) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    return reinterpret_cast<Encode>(found);
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(lines)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(columns) * number_bytes};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_lines)}, steps[2] = {1, 1};
  const auto swizzle = box_columns * number_bytes == LINE_BYTES ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  const CUresult status = encode(&map, type, 2, const_cast<void*>(numbers), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return status == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// The number of multiprocessors of the current device.
inline int multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess ? count : 1;
}

}  // namespace

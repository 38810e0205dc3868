// Copies to shared memory in stages and products of tiles, for the kernels that multiply a few rows and for attention of decode rows.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "vectors.cuh"

namespace {

constexpr int WARP = 32;
constexpr int VECTOR_BYTES = sizeof(Vector);
constexpr int TILE_OUTPUTS = 16, TILE_ROWS = 8;

__device__ void store(bf16* at, float value) { *at = __float2bfloat16(value); }
__device__ void store(float* at, float value) { *at = value; }

__device__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ void initialise(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// The thread arrives at the barrier when all its copies so far have finished.
__device__ void arrive_when_copied(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
__device__ void wait_for(uint32_t barrier, uint32_t phase) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(barrier),
      "r"(phase)
      : "memory");
}
// Copies 16 bytes asynchronously. Only the first `bytes` bytes are read; the rest are zero.
__device__ void copy(uint32_t to, const uint4* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ void load(uint32_t (&matrices)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}
// sums[16 outputs][8 rows] += weights[16][16] . rows[8][16]^T
__device__ void multiply_add(float (&sums)[4], const uint32_t (&weights)[4], uint32_t rows_low, uint32_t rows_high) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "r"(rows_low), "r"(rows_high));
}

// The byte offset of a vector in its line. The swizzle puts vectors with the same index in eight lines into different banks.
__device__ uint32_t within(int line, int vector) { return (vector ^ line % 8) * VECTOR_BYTES; }

// A ring of stages in shared memory. A stage is full when all threads of the copying warps have arrived, and empty when the multiplying warps
// have arrived.
template <int STAGES>
struct Ring {
  uint32_t at;           // the shared address of the first stage
  uint32_t stage_bytes;
  uint32_t full, empty;  // the shared addresses of the barriers
  int slices;            // how often a stage is filled in all

  __device__ Ring(const void* memory, uint64_t (&barriers)[2 * STAGES], uint32_t stage_bytes, int slices, int copiers, int multipliers)
      : at(shared_address(memory)), stage_bytes(stage_bytes), full(shared_address(barriers)),
        empty(full + STAGES * sizeof(uint64_t)), slices(slices) {
    if (threadIdx.x < 2 * STAGES) {
      initialise(full + threadIdx.x * sizeof(uint64_t), threadIdx.x < STAGES ? copiers * WARP : multipliers);
    }
    __syncthreads();
  }

  // Copies a warp's share of every stage: `lines` lines of LINE_VECTORS vectors at `offset`, from `lines` rows of `matrix`, which have `vectors`
  // vectors. `last` is the last row.
  template <int LINE_VECTORS>
  __device__ void fill(const uint4* matrix, uint32_t offset, int lines, int last, int vectors) const {
    // The warp copies one line or more at a time, and neighbouring threads copy neighbouring vectors.
    constexpr int LINES = WARP / LINE_VECTORS;
    static_assert(LINES >= 1 && WARP % LINE_VECTORS == 0);
    const int in_line = threadIdx.x % LINE_VECTORS, first = threadIdx.x % WARP / LINE_VECTORS;
    for (int slice = 0, stage = 0, phase = 1; slice < slices; slice++) {
      if (slice >= STAGES) wait_for(empty + stage * sizeof(uint64_t), phase);
      const uint32_t to = at + stage * stage_bytes + offset;
      const int vector = slice * LINE_VECTORS + in_line;
      const bool there = vector < vectors;
#pragma unroll 16
      for (int line = first; line < lines; line += LINES) {
        // A line past the last row copies the last row; its result is not stored.
        const uint4* from = matrix + static_cast<size_t>(min(line, last)) * vectors + (there ? vector : 0);
        copy(to + line * LINE_VECTORS * VECTOR_BYTES + within(line, in_line), from, there ? VECTOR_BYTES : 0);
      }
      arrive_when_copied(full + stage * sizeof(uint64_t));
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
  }

  // Calls `multiply` with the shared address of every stage when it is full. All threads of a multiplying warp call it.
  template <typename Multiply>
  __device__ void drain(Multiply multiply) const {
    for (int slice = 0, stage = 0, phase = 0; slice < slices; slice++) {
      wait_for(full + stage * sizeof(uint64_t), phase);
      multiply(at + stage * stage_bytes);
      __syncwarp();
      if (threadIdx.x % WARP == 0) arrive(empty + stage * sizeof(uint64_t));
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
  }
};

}  // namespace

// How our kernels are launched: each may begin while the one before it ends.
//
// Where rows are few all kernels of a step are ours, or FlashInfer's, which are launched as always; so one may begin before even the last but one has
// ended. Where they are many a kernel of the matrix library follows, which is launched like ours and whose kernels share a workspace that they read before
// they wait: it may begin only when everything before the kernel that it follows is over.
//
// A kernel calls `after_previous` before it touches anything that an earlier kernel of the step writes or reads. What it does before that, such as
// reading weights, or lists that were copied to the device before the step's first kernel, overlaps the end of the kernel before it.
#pragma once

#include <cuda_runtime.h>

namespace {

// The most rows that `row_products` takes.
constexpr int ROWS_FEW = 32;

// Lets the next kernel begin, which computes as many rows, and waits for all of the previous one, with what it has written.
__device__ inline void after_previous(int rows) {
  if (rows <= ROWS_FEW) cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  if (rows > ROWS_FEW) cudaTriggerProgrammaticLaunchCompletion();
}

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, Arguments... arguments) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace

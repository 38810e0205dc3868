// Launches our kernels with programmatic dependent launch: a kernel may start while the previous kernel, and even the one before it, still runs.
//
// FlashInfer's kernels are launched without overlap. cublasLt's are launched with overlap, and they share a workspace that they read before they wait. So
// between two kernels of cublasLt, at least one kernel is launched without overlap, or lets the next one start only when everything before itself has
// finished. With many rows, the kernels that may precede one of cublasLt's do so.
//
// A kernel calls `after_previous` before it accesses memory that an earlier kernel of the step writes or reads. The work before
// that call overlaps the end of the previous kernel: for example reading weights, or lists that were copied to the device
// before the step's first kernel.
#pragma once

#include <cuda_runtime.h>

namespace {

// With up to this many rows, a step has no kernel of cublasLt: `row_products` computes its products, also with bf16 weights.
constexpr int ROWS_FEW = 16;

// Lets the next kernel start, and waits until the previous kernel has finished and its writes are visible. For kernels that a cublasLt kernel never directly
// follows.
__device__ inline void after_previous() {
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
}

// The same for a kernel of `rows` rows that a cublasLt kernel may follow.
__device__ inline void after_previous(int rows) {
  if (rows <= ROWS_FEW) cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  if (rows > ROWS_FEW) cudaTriggerProgrammaticLaunchCompletion();
}

template <typename... Parameters, typename... Arguments>
int launch_clusters(void (*kernel)(Parameters...), unsigned cluster, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                    Arguments... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, Arguments... arguments) {
  return launch_clusters(kernel, 1, grid, block, shared_bytes, stream, arguments...);
}

}  // namespace

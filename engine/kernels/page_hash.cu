// Computes the content sum of KV pages, bit for bit as `connector/src/page_hash.rs` defines it. The CPU makes the page's hash
// from the sum by mixing in the page's identity.
//
//   segment  4 KiB in eight lanes of 64 bits. Word w at place p adds lo32(w ^ key[p]) * hi32(w ^ key[p]) to its own lane, and
//            w to the neighbouring lane. Lanes start at the first keys. The segment's hash is the sum of
//            mix(lane + number * K).
//   content  the sum of mix(segment hash + index * K)
//
// A warp computes one segment at a time. Each thread has 8 loads of 16 bytes in flight. 16 bytes are two neighbouring lanes, so
// a thread needs no data of other threads until the lanes are summed.
//
// The receiver waits for the hash of the last page, so the whole operation is one launch. The list of pages is a kernel
// argument. The last block of a page writes the page's sum to host memory and resets the page's total for the next launch.

#include <cuda_runtime.h>
#include <stdint.h>

#include <algorithm>

namespace {

constexpr uint64_t SEGMENT = 4096;
constexpr int WARP = 32;
constexpr int LANES = 8;
// Threads of a warp that hold different lanes. The other threads hold the same lanes of other 64-byte stripes.
constexpr int LANE_PAIRS = LANES / 2;
constexpr int LOAD_BYTES = 16;
// A thread's loads from one segment.
constexpr int LOADS = SEGMENT / (WARP * LOAD_BYTES);
constexpr int WARPS = 8;
// BLOCKS_MIN is the number of blocks that an H100 runs at once. A launch has more blocks, at most four times as many, if a
// warp would otherwise have more than SEGMENTS_MANY segments. More blocks shorten the tail of the launch, but each block computes all
// keys.
constexpr uint64_t BLOCKS_MIN = 4 * 132;
constexpr uint64_t BLOCKS_MAX = 4 * BLOCKS_MIN;
constexpr uint64_t SEGMENTS_MANY = 16;
// The most pages of one launch. The list is a kernel argument, and kernel arguments have at most 4 KiB.
constexpr int PAGES_MAX = 256;
// 2^64 divided by the golden ratio, rounded to an odd number.
constexpr uint64_t K = 0x9E3779B97F4A7C15u;

// The finaliser of splitmix64 (Sebastiano Vigna).
__device__ uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

// The key of the word at a place in a segment.
__device__ uint64_t key(uint64_t place) { return mix((place + 1) * K); }

// Loads 16 bytes from any address. Only the first `readable` bytes are read; the others are 0. This is the slow path for
// unaligned pages and incomplete segments.
__device__ __noinline__ ulonglong2 load_bytes(const uint8_t* from, int64_t readable) {
  uint64_t words[2] = {0, 0};
  for (int i = 0; i < LOAD_BYTES && i < readable; i++) words[i / 8] |= uint64_t{from[i]} << (i % 8 * 8);
  return {words[0], words[1]};
}

__device__ uint64_t keyed_product(uint64_t word, uint64_t key) {
  const uint64_t keyed = word ^ key;
  return uint64_t{static_cast<uint32_t>(keyed)} * static_cast<uint32_t>(keyed >> 32);
}

// Sums over the threads of the warp whose indices differ in the bits from `low` up to but excluding `high`.
__device__ uint64_t warp_sum(uint64_t value, int low, int high) {
  for (int offset = low; offset < high; offset *= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

struct PageList {
  uint32_t page[PAGES_MAX];
};

// The sum of a page's blocks so far, and the number of blocks that have finished. Both are zero between launches.
struct Total {
  unsigned long long sum;
  unsigned blocks;
};

// The grid's x dimension is the page. The blocks of its y dimension share the segments of the page.
__global__ void __launch_bounds__(WARPS * WARP) page_contents(const uint8_t* base, uint64_t page_bytes,
                                                              const __grid_constant__ PageList pages, Total* totals,
                                                              unsigned long long* out) {
  const int thread = threadIdx.x % WARP;
  const uint8_t* page = base + pages.page[blockIdx.x] * page_bytes;
  const bool aligned = reinterpret_cast<uintptr_t>(page) % LOAD_BYTES == 0;
  const uint64_t segments = (page_bytes + SEGMENT - 1) / SEGMENT;

  __shared__ ulonglong2 keys[LOADS * WARP];
  for (int pair = threadIdx.x; pair < LOADS * WARP; pair += blockDim.x) keys[pair] = {key(2 * pair), key(2 * pair + 1)};
  __syncthreads();
  const uint64_t lane = thread % LANE_PAIRS * 2;
  const ulonglong2 start = keys[thread % LANE_PAIRS];

  uint64_t content = 0;
  for (uint64_t index = uint64_t{blockIdx.y} * WARPS + threadIdx.x / WARP; index < segments;
       index += uint64_t{gridDim.y} * WARPS) {
    const uint64_t offset = index * SEGMENT + thread * LOAD_BYTES;
    ulonglong2 words[LOADS];
    if (aligned && (index + 1) * SEGMENT <= page_bytes) {
#pragma unroll
      for (int n = 0; n < LOADS; n++) {
        words[n] = *reinterpret_cast<const ulonglong2*>(page + offset + n * (WARP * LOAD_BYTES));
      }
    } else {
#pragma unroll
      for (int n = 0; n < LOADS; n++) {
        const uint64_t at = offset + n * (WARP * LOAD_BYTES);
        words[n] = load_bytes(page + at, static_cast<int64_t>(page_bytes - at));
      }
    }
    ulonglong2 sums = {0, 0};
#pragma unroll
    for (int n = 0; n < LOADS; n++) {
      const ulonglong2 two = keys[n * WARP + thread];
      sums.x += keyed_product(words[n].x, two.x) + words[n].y;
      sums.y += keyed_product(words[n].y, two.y) + words[n].x;
    }
    sums.x = warp_sum(sums.x, LANE_PAIRS, WARP) + start.x;
    sums.y = warp_sum(sums.y, LANE_PAIRS, WARP) + start.y;
    const uint64_t hash = mix(sums.x + (lane + 1) * K) + mix(sums.y + (lane + 2) * K);
    content += mix(warp_sum(hash, 1, LANE_PAIRS) + index * K);
  }
  Total& total = totals[blockIdx.x];
  if (thread == 0) atomicAdd(&total.sum, static_cast<unsigned long long>(content));
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    // Counts the finished blocks. The last block wraps the counter to 0.
    if (atomicInc(&total.blocks, gridDim.y - 1) == gridDim.y - 1) {
      __threadfence();
      out[blockIdx.x] = atomicExch(&total.sum, 0);
    }
  }
}

}  // namespace

// Bytes of the totals of a launch. The caller zeroes them before the first launch. Launches that share them must not overlap.
extern "C" uint64_t baton_page_totals_bytes() { return PAGES_MAX * sizeof(Total); }

// The most pages of one launch.
extern "C" int baton_pages_max() { return PAGES_MAX; }

// The arguments. `engine/src/gpu/arguments.rs` declares the same struct, and a test there compares the two.
struct PageContents {
  const void* base;
  uint64_t page_bytes;
  const uint32_t* host_pages;
  void* totals;
  uint64_t* host_out;
  int32_t count;
};
static_assert(sizeof(PageContents) == 48);

// host_out[n] = the content sum of the `page_bytes` bytes at base + host_pages[n] * page_bytes. `host_pages` is host memory that
// this call reads. `host_out` is pinned host memory that the kernel writes.
extern "C" int baton_page_contents(const PageContents* arguments, cudaStream_t stream) {
  const auto [base, page_bytes, host_pages, totals, host_out, count] = *arguments;
  if (count == 0) return cudaSuccess;
  if (count > PAGES_MAX) return cudaErrorInvalidValue;
  PageList list;
  std::copy_n(host_pages, count, list.page);
  // At least one block per page, and no block without a segment.
  const uint64_t of_page = (page_bytes + SEGMENT * WARPS - 1) / (SEGMENT * WARPS);
  const uint64_t many = of_page * count / SEGMENTS_MANY;
  const uint64_t wanted = (std::min(std::max(many, BLOCKS_MIN), BLOCKS_MAX) + count - 1) / count;
  const unsigned blocks = static_cast<unsigned>(std::max<uint64_t>(1, std::min(of_page, wanted)));
  page_contents<<<dim3(count, blocks), WARPS * WARP, 0, stream>>>(
      static_cast<const uint8_t*>(base), page_bytes, list, static_cast<Total*>(totals),
      reinterpret_cast<unsigned long long*>(host_out));
  return cudaGetLastError();
}

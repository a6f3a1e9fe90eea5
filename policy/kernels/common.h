// What the kernels share: element types, vectorised arithmetic, dynamic parallel loops, scratch memory.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

// A function so marked is compiled for each of these instruction sets and the loader picks the best
// that the processor has. Its loops are plain C++; the compiler vectorises them.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define ARRIERO_CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define ARRIERO_CLONES
#endif

namespace arriero {

using bf16 = c10::BFloat16;

inline float widen(float x) { return x; }
inline float widen(bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.x) << 16); }

template <typename T>
inline T narrow(float x);
template <>
inline float narrow<float>(float x) { return x; }
/// Rounds to the nearest, ties to even, by bits so that loops of it vectorise.
template <>
inline bf16 narrow<bf16>(float x) {
  uint32_t bits = std::bit_cast<uint32_t>(x);
  bits += 0x7fff + ((bits >> 16) & 1);
  return bf16(static_cast<uint16_t>(bits >> 16), bf16::from_bits());
}

/// e^x with a relative error below 2e-7 for x <= 88; 0 below -87. Cody and Waite's reduction, then
/// Taylor's polynomial on [-ln 2 / 2, ln 2 / 2].
inline float exponential(float x) {
  const float clamped = std::min(std::max(x, -87.0f), 88.0f);
  const float n = __builtin_floorf(clamped * 1.44269504f + 0.5f);
  const float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float scale = std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  return x < -87.0f ? 0.0f : p * scale;
}

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

/// Runs work(task) for every task, each thread taking the next free one. Which thread runs a task
/// must not matter to its result.
template <typename Work>
void each_task(int64_t tasks, const Work& work) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(tasks, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; thread++) {
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) work(task);
    }
  });
}

/// A thread's scratch memory of one type and purpose; it grows and is kept. Contents are whatever was there.
/// Sums in f32 count from 100, so that they never share a place with operands that happen to be f32.
template <typename T, int purpose>
T* scratch(int64_t count) {
  thread_local std::vector<T> memory;
  if (static_cast<int64_t>(memory.size()) < count) memory.resize(count);
  return memory.data();
}

}  // namespace arriero

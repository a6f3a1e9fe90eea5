// What the kernels share: element types, parallel loops, scratch memory.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

#include "rows.h"

namespace arriero {

/// libtorch's name of an element type.
template <typename T>
constexpr at::ScalarType scalar_type = std::is_same_v<T, int16_t> ? at::kShort : sizeof(T) == 2 ? at::kBFloat16 : at::kFloat;

/// A tensor's elements; null where it is undefined.
template <typename T>
const T* in(const at::Tensor& x) {
  if (x.defined()) TORCH_CHECK(x.scalar_type() == scalar_type<T> && x.is_contiguous(), "expected a contiguous tensor of ", scalar_type<T>, ", found ", x.scalar_type());
  return x.defined() ? static_cast<const T*>(x.const_data_ptr()) : nullptr;
}
template <typename T>
T* out(const at::Tensor& x) {
  return const_cast<T*>(in<T>(x));
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

/// A thread's scratch memory of one type and purpose, which begins on a cache line; it grows and is kept. Contents are
/// whatever was there.
/// Sums in f32 count from 100, so that they never share a place with operands that happen to be f32.
template <typename T, int purpose>
T* scratch(int64_t count) {
  thread_local std::vector<T> memory;
  constexpr int64_t line = 64;
  if (static_cast<int64_t>(memory.size()) < count + line) memory.resize(count + line);
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory.data()) + line - 1) / line * line);
}

}  // namespace arriero

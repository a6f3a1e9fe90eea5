#include "elementwise.h"

#include <cmath>

namespace arriero {

namespace {

/// Elements of a task of the passes over flat memory.
constexpr int64_t range = 1 << 15;

/// Runs work(row range, thread) with the rows dealt out in equal shares, so that sums over a thread's
/// rows do not depend on timing.
template <typename Work>
void each_share(int64_t count, const Work& work) {
  const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), count / 8));
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) work(count * t / threads, count * (t + 1) / threads, t);
  });
}

int64_t shares() { return at::get_num_threads(); }

}  // namespace

template <typename T>
void rms_norm_forward(const float* x, const float* weight, float eps, int64_t m, int64_t n, T* y, float* scales) {
  each_share(m, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t i = first; i < last; i++) {
      const float mean = static_cast<float>(flat_rows().square_sum(x + i * n, n) / static_cast<double>(n));
      scales[i] = 1.0f / std::sqrt(mean + eps);
      rows<T>().norm_scale(x + i * n, weight, scales[i], n, y + i * n);
    }
  });
}

template <typename T>
void rms_norm_backward(const T* dy, const float* beside, const float* x, const float* scales, const float* weight,
                       int64_t m, int64_t n, float* dx, float* weight_gradient) {
  std::vector<std::vector<float>> parts(weight_gradient ? shares() : 0);
  each_share(m, [&](int64_t first, int64_t last, int64_t share) {
    std::vector<float> part(weight_gradient ? n : 0);
    for (int64_t i = first; i < last; i++) {
      rows<T>().norm_backward(dy + i * n, beside ? beside + i * n : nullptr, x + i * n, weight, scales[i], n, dx + i * n,
                              weight_gradient ? part.data() : nullptr);
    }
    if (weight_gradient) parts[share] = std::move(part);
  });
  for (const auto& part : parts) {
    for (int64_t j = 0; j < static_cast<int64_t>(part.size()); j++) weight_gradient[j] += part[j];
  }
}

template <typename T>
void rotate(T* qkv, int64_t m, int64_t ld, int64_t heads, int64_t head_dim, const int64_t* positions,
            const float* cos, const float* sin, float direction) {
  each_share(m, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t i = first; i < last; i++) {
      const int64_t angle = positions[i] * head_dim;
      for (int64_t head = 0; head < heads; head++) {
        rows<T>().rotate(qkv + i * ld + head * head_dim, head_dim / 2, cos + angle, sin + angle, direction);
      }
    }
  });
}

template <typename T>
void rotate_sums(const float* sums, int64_t m, int64_t ld, int64_t heads, int64_t head_dim, const int64_t* positions,
                 const float* cos, const float* sin, T* out) {
  each_share(m, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t i = first; i < last; i++) {
      const int64_t angle = positions[i] * head_dim;
      for (int64_t at = 0; at < heads * head_dim; at += head_dim) {
        rows<T>().rotate_sums(sums + i * ld + at, head_dim / 2, cos + angle, sin + angle, out + i * ld + at);
      }
      const int64_t at = i * ld + heads * head_dim;
      rows<T>().scale(sums + at, 1.0f, ld - heads * head_dim, out + at);
    }
  });
}

template <typename T>
void swiglu_forward(const T* gate_up, int64_t m, int64_t n, T* y) {
  each_share(m, [&](int64_t first, int64_t last, int64_t) {
    std::vector<float> wide(2 * n);
    for (int64_t i = first; i < last; i++) {
      std::fill(wide.begin(), wide.end(), 0.0f);
      rows<T>().add(gate_up + 2 * i * n, 2 * n, wide.data());
      rows<T>().swiglu(wide.data(), wide.data() + n, n, y + i * n);
    }
  });
}

template <typename T>
void swiglu_backward(const T* dy, const T* gate_up, int64_t m, int64_t n, T* d_gate_up) {
  each_share(m, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t i = first; i < last; i++) {
      const int64_t gate = 2 * i * n, up = gate + n;
      rows<T>().swiglu_backward(dy + i * n, gate_up + gate, gate_up + up, n, d_gate_up + gate, d_gate_up + up);
    }
  });
}

template <typename T>
void add_column_sums(const T* x, int64_t m, int64_t n, int64_t ld, float* sums) {
  for (int64_t i = 0; i < m; i++) rows<T>().add(x + i * ld, n, sums);
}

void adamw_step(float* master, const float* gradient, float* first, float* second, bf16* leaf, int64_t n,
                const AdamW& options) {
  each_task((n + range - 1) / range, [&](int64_t task) {
    const int64_t i = task * range;
    flat_rows().adamw(master + i, gradient + i, first + i, second + i,
                      leaf ? leaf + i : nullptr, static_cast<uint32_t>(i), std::min(range, n - i), options);
  });
}

void round_weights(const float* x, int64_t n, bf16* out) {
  each_task((n + range - 1) / range, [&](int64_t task) {
    const int64_t i = task * range;
    flat_rows().round_weights(x + i, static_cast<uint32_t>(i), std::min(range, n - i), out + i);
  });
}

double square_sum(const float* x, int64_t n) {
  const int64_t tasks = (n + range - 1) / range;
  std::vector<double> sums(tasks);
  each_task(tasks, [&](int64_t task) { sums[task] = flat_rows().square_sum(x + task * range, std::min(range, n - task * range)); });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

#define ARRIERO_INSTANTIATE(T)                                                                                     \
  template void rms_norm_forward<T>(const float*, const float*, float, int64_t, int64_t, T*, float*);              \
  template void rms_norm_backward<T>(const T*, const float*, const float*, const float*, const float*, int64_t,    \
                                     int64_t, float*, float*);                                                     \
  template void rotate<T>(T*, int64_t, int64_t, int64_t, int64_t, const int64_t*, const float*, const float*,      \
                          float);                                                                                  \
  template void rotate_sums<T>(const float*, int64_t, int64_t, int64_t, int64_t, const int64_t*, const float*,     \
                               const float*, T*);                                                                  \
  template void swiglu_forward<T>(const T*, int64_t, int64_t, T*);                                                 \
  template void swiglu_backward<T>(const T*, const T*, int64_t, int64_t, T*);                                      \
  template void add_column_sums<T>(const T*, int64_t, int64_t, int64_t, float*);
ARRIERO_INSTANTIATE(float)
ARRIERO_INSTANTIATE(bf16)

}  // namespace arriero

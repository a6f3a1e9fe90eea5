#include "elementwise.h"

#include <cmath>

namespace arriero {

namespace {

// The row functions stand alone, for each element type, because the compiler clones them for several
// instruction sets and templates cannot be cloned.
#define ARRIERO_ROWS(T)                                                                                            \
  ARRIERO_CLONES float norm_sum_row(const T* x, const T* delta, int64_t n, T* sum) {                               \
    float squares = 0;                                                                                             \
    for (int64_t j = 0; j < n; j++) {                                                                              \
      const T total = delta ? narrow<T>(widen(x[j]) + widen(delta[j])) : x[j];                                     \
      sum[j] = total;                                                                                              \
      squares += widen(total) * widen(total);                                                                      \
    }                                                                                                              \
    return squares;                                                                                                \
  }                                                                                                                \
  ARRIERO_CLONES void norm_scale_row(const T* x, const T* weight, float scale, int64_t n, T* y) {                  \
    for (int64_t j = 0; j < n; j++) y[j] = narrow<T>(widen(x[j]) * scale * widen(weight[j]));                      \
  }                                                                                                                \
  ARRIERO_CLONES void norm_backward_row(const T* dy, const T* d_sum, const T* x, const T* weight, float scale,     \
                                        int64_t n, T* dx, float* weight_gradient) {                                \
    float dot = 0;                                                                                                 \
    for (int64_t j = 0; j < n; j++) dot += widen(dy[j]) * widen(weight[j]) * widen(x[j]);                          \
    const float shift = dot / static_cast<float>(n) * scale * scale;                                               \
    for (int64_t j = 0; j < n; j++) {                                                                              \
      const float through = scale * (widen(dy[j]) * widen(weight[j]) - widen(x[j]) * shift);                       \
      dx[j] = narrow<T>(d_sum ? through + widen(d_sum[j]) : through);                                              \
    }                                                                                                              \
    if (weight_gradient) {                                                                                         \
      for (int64_t j = 0; j < n; j++) weight_gradient[j] += widen(dy[j]) * widen(x[j]) * scale;                    \
    }                                                                                                              \
  }                                                                                                                \
  ARRIERO_CLONES void rotate_head(T* x, int64_t half, const float* cos, const float* sin, float direction) {       \
    for (int64_t j = 0; j < half; j++) {                                                                           \
      const float a = widen(x[j]), b = widen(x[j + half]);                                                         \
      x[j] = narrow<T>(a * cos[j] - b * sin[j] * direction);                                                       \
      x[j + half] = narrow<T>(b * cos[j] + a * sin[j] * direction);                                                \
    }                                                                                                              \
  }                                                                                                                \
  ARRIERO_CLONES void swiglu_row(const T* gate, const T* up, int64_t n, T* y) {                                    \
    for (int64_t j = 0; j < n; j++) {                                                                              \
      const float g = widen(gate[j]);                                                                              \
      y[j] = narrow<T>(g / (1.0f + exponential(-g)) * widen(up[j]));                                               \
    }                                                                                                              \
  }                                                                                                                \
  ARRIERO_CLONES void swiglu_backward_row(const T* dy, const T* gate, const T* up, int64_t n, T* d_gate,           \
                                          T* d_up) {                                                               \
    for (int64_t j = 0; j < n; j++) {                                                                              \
      const float g = widen(gate[j]), d = widen(dy[j]);                                                            \
      const float sigmoid = 1.0f / (1.0f + exponential(-g));                                                       \
      d_up[j] = narrow<T>(d * g * sigmoid);                                                                        \
      d_gate[j] = narrow<T>(d * widen(up[j]) * sigmoid * (1.0f + g * (1.0f - sigmoid)));                           \
    }                                                                                                              \
  }                                                                                                                \
  ARRIERO_CLONES void add_row(const T* x, int64_t n, float* sums) {                                                \
    for (int64_t j = 0; j < n; j++) sums[j] += widen(x[j]);                                                        \
  }
ARRIERO_ROWS(float)
ARRIERO_ROWS(bf16)

ARRIERO_CLONES void adamw_range(float* master, const float* gradient, float* first, float* second, uint16_t* leaf,
                                int64_t n, const AdamW& options) {
  const AdamW o = options;
  const float keep = 1.0f - o.rate * o.decay, step = o.rate / o.correction1, inverse = 1.0f / o.correction2_sqrt;
  for (int64_t i = 0; i < n; i++) {
    const float g = gradient[i] * o.gradient_scale;
    const float m = first[i] + (g - first[i]) * (1.0f - o.beta1);
    const float v = second[i] * o.beta2 + g * g * (1.0f - o.beta2);
    first[i] = m;
    second[i] = v;
    master[i] = master[i] * keep - step * m / (std::sqrt(v) * inverse + o.eps);
  }
  if (leaf) {
    for (int64_t i = 0; i < n; i++) leaf[i] = narrow<bf16>(master[i]).x;
  }
}

ARRIERO_CLONES double square_range(const float* x, int64_t n) {
  // Sixteen sums in f64, so that the loop vectorises and the order is fixed.
  double sums[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int64_t j = 0; j < 16; j++) sums[j] += static_cast<double>(x[i + j]) * x[i + j];
  }
  double total = 0;
  for (; i < n; i++) total += static_cast<double>(x[i]) * x[i];
  for (double sum : sums) total += sum;
  return total;
}

/// Elements of a task of the passes over flat memory.
constexpr int64_t range = 1 << 15;

/// Runs work(row range, thread) with the rows dealt out in equal shares, so that sums over a thread's
/// rows do not depend on timing.
template <typename Work>
void each_share(int64_t rows, const Work& work) {
  const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), rows / 8));
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) work(rows * t / threads, rows * (t + 1) / threads, t);
  });
}

int64_t shares() { return at::get_num_threads(); }

}  // namespace

template <typename T>
void rms_norm_forward(const T* x, const T* delta, const T* weight, float eps, int64_t m, int64_t n, T* sum, T* y,
                      float* scales) {
  each_share(m, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t i = first; i < last; i++) {
      const float squares = norm_sum_row(x + i * n, delta ? delta + i * n : nullptr, n, sum + i * n);
      scales[i] = 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);
      norm_scale_row(sum + i * n, weight, scales[i], n, y + i * n);
    }
  });
}

template <typename T>
void rms_norm_backward(const T* dy, const T* d_sum, const T* sum, const float* scales, const T* weight, int64_t m,
                       int64_t n, T* dx, float* weight_gradient) {
  std::vector<std::vector<float>> parts(weight_gradient ? shares() : 0);
  each_share(m, [&](int64_t first, int64_t last, int64_t share) {
    std::vector<float> part(weight_gradient ? n : 0);
    for (int64_t i = first; i < last; i++) {
      norm_backward_row(dy + i * n, d_sum ? d_sum + i * n : nullptr, sum + i * n, weight, scales[i], n, dx + i * n,
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
        rotate_head(qkv + i * ld + head * head_dim, head_dim / 2, cos + angle, sin + angle, direction);
      }
    }
  });
}

template <typename T>
void swiglu_forward(const T* gate_up, int64_t m, int64_t n, T* y) {
  each_share(m, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t i = first; i < last; i++) swiglu_row(gate_up + 2 * i * n, gate_up + (2 * i + 1) * n, n, y + i * n);
  });
}

template <typename T>
void swiglu_backward(const T* dy, const T* gate_up, int64_t m, int64_t n, T* d_gate_up) {
  each_share(m, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t i = first; i < last; i++) {
      const int64_t gate = 2 * i * n, up = gate + n;
      swiglu_backward_row(dy + i * n, gate_up + gate, gate_up + up, n, d_gate_up + gate, d_gate_up + up);
    }
  });
}

template <typename T>
void add_column_sums(const T* x, int64_t m, int64_t n, int64_t ld, float* sums) {
  for (int64_t i = 0; i < m; i++) add_row(x + i * ld, n, sums);
}

void adamw_step(float* master, const float* gradient, float* first, float* second, bf16* leaf, int64_t n,
                const AdamW& options) {
  each_task((n + range - 1) / range, [&](int64_t task) {
    const int64_t i = task * range;
    adamw_range(master + i, gradient + i, first + i, second + i,
                leaf ? reinterpret_cast<uint16_t*>(leaf) + i : nullptr, std::min(range, n - i), options);
  });
}

double square_sum(const float* x, int64_t n) {
  const int64_t tasks = (n + range - 1) / range;
  std::vector<double> sums(tasks);
  each_task(tasks, [&](int64_t task) { sums[task] = square_range(x + task * range, std::min(range, n - task * range)); });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

#define ARRIERO_INSTANTIATE(T)                                                                                     \
  template void rms_norm_forward<T>(const T*, const T*, const T*, float, int64_t, int64_t, T*, T*, float*);        \
  template void rms_norm_backward<T>(const T*, const T*, const T*, const float*, const T*, int64_t, int64_t, T*,   \
                                     float*);                                                                      \
  template void rotate<T>(T*, int64_t, int64_t, int64_t, int64_t, const int64_t*, const float*, const float*,      \
                          float);                                                                                  \
  template void swiglu_forward<T>(const T*, int64_t, int64_t, T*);                                                 \
  template void swiglu_backward<T>(const T*, const T*, int64_t, int64_t, T*);                                      \
  template void add_column_sums<T>(const T*, int64_t, int64_t, int64_t, float*);
ARRIERO_INSTANTIATE(float)
ARRIERO_INSTANTIATE(bf16)

}  // namespace arriero

#include "gemm.h"

#include <ATen/native/CPUBlas.h>

#include <array>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace arriero {

namespace {

// A row of 32-bit numbers becomes a column. Blocks of 16 by 16 stay in registers where there are 32 of
// 512 bits; the source is read once, in lines.
#if defined(__x86_64__)
__attribute__((target("avx512f"))) void transpose_block_avx512(const uint32_t* in, int64_t ld, uint32_t* out,
                                                              int64_t ld_out) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(in + i * ld);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    _mm512_storeu_si512(out + i * ld_out, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
    _mm512_storeu_si512(out + (i + 8) * ld_out, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
    _mm512_storeu_si512(out + (i + 4) * ld_out, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
    _mm512_storeu_si512(out + (i + 12) * ld_out, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
  }
}
#endif

void transpose_words(const uint32_t* in, int64_t count, int64_t columns, int64_t ld, uint32_t* out,
                     int64_t ld_out) {
  int64_t whole_rows = 0, whole_columns = 0;
#if defined(__x86_64__)
  static const bool wide = __builtin_cpu_supports("avx512f");
  if (wide) {
    whole_rows = count / 16 * 16;
    whole_columns = columns / 16 * 16;
    for (int64_t i = 0; i < whole_rows; i += 16) {
      for (int64_t j = 0; j < whole_columns; j += 16) {
        transpose_block_avx512(in + i * ld + j, ld, out + j * ld_out + i, ld_out);
      }
    }
  }
#endif
  for (int64_t i = 0; i < count; i++) {
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; j++) out[j * ld_out + i] = in[i * ld + j];
  }
}

/// Rows of a task in the products of a training step: packing a panel is paid once for them.
constexpr int64_t chunk_rows = 512;

}  // namespace

namespace {

template <typename T>
T one();
template <>
float one<float>() { return 1.0f; }
template <>
bf16 one<bf16>() { return bf16{0x3f80}; }

}  // namespace

template <typename T>
bool has_microkernel() {
  static const bool has = [] {
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("avx512f")) return false;
    if (sizeof(T) == 2 && !__builtin_cpu_supports("avx512bf16")) return false;
#endif
    if (!at::globalContext().userEnabledMkldnn()) return false;
    try {
      const std::vector<T> ones(32 * 32, one<T>());
      std::vector<float> sums(32 * 32);
      microkernel<T>(32, 32, 32, ones.data(), 32, ones.data(), 32, sums.data(), 32, false);
      return std::all_of(sums.begin(), sums.end(), [](float sum) { return sum == 32.0f; });
    } catch (const std::exception&) {
      return false;
    }
  }();
  return has;
}

template <typename T>
void microkernel(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, float* c,
                 int64_t ldc, bool add) {
  using Element = std::conditional_t<sizeof(T) == 2, at::BFloat16, float>;
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, reinterpret_cast<const Element*>(a),
                              reinterpret_cast<const Element*>(b), c, pair<T> == 2);
}

template <typename T>
const T* padded_rows(const T* a, int64_t count, int64_t k) {
  if (count % row_step == 0) return a;
  T* copy = scratch<T, 20>(block_rows * k);
  std::memcpy(static_cast<void*>(copy), a, count * k * sizeof(T));
  // The rest is whatever was there before: what it makes is not read.
  return copy;
}

template <>
void pack_transposed<bf16>(const bf16* w, int64_t n, int64_t k, int64_t ld, int64_t width, bf16* out) {
  if (n < width) std::memset(static_cast<void*>(out), 0, k * width * sizeof(bf16));
  // Two neighbours of a row are one 32-bit word. A row stride is even, as k is.
  transpose_words(reinterpret_cast<const uint32_t*>(w), n, k / 2, ld / 2, reinterpret_cast<uint32_t*>(out), width);
}

template <>
void pack_transposed<float>(const float* w, int64_t n, int64_t k, int64_t ld, int64_t width, float* out) {
  if (n < width) std::memset(out, 0, k * width * sizeof(float));
  transpose_words(reinterpret_cast<const uint32_t*>(w), n, k, ld, reinterpret_cast<uint32_t*>(out), width);
}

template <>
void pack_rows<bf16>(const bf16* w, int64_t k, int64_t n, int64_t ld, int64_t depth, int64_t width, bf16* out) {
  if (n < width || k < depth) std::memset(static_cast<void*>(out), 0, depth * width * sizeof(bf16));
  const bf16* zeros = scratch<bf16, 0>(n);
  if (k % 2) std::fill_n(scratch<bf16, 0>(n), n, bf16{0});
  for (int64_t i = 0; i < k; i += 2) {
    const bf16* second = i + 1 < k ? w + (i + 1) * ld : zeros;
    flat_rows().interleave(reinterpret_cast<const uint16_t*>(w + i * ld), reinterpret_cast<const uint16_t*>(second), n,
               reinterpret_cast<uint16_t*>(out + i * width));
  }
}

template <>
void pack_rows<float>(const float* w, int64_t k, int64_t n, int64_t ld, int64_t depth, int64_t width, float* out) {
  if (n < width || k < depth) std::memset(out, 0, depth * width * sizeof(float));
  for (int64_t i = 0; i < k; i++) std::memcpy(out + i * width, w + i * ld, n * sizeof(float));
}

template <>
void transpose<bf16>(const bf16* w, int64_t k, int64_t n, int64_t ld, int64_t depth, bf16* out) {
  bf16* pairs = scratch<bf16, 1>(depth * n);
  pack_rows<bf16>(w, k, n, ld, depth, n, pairs);
  transpose_words(reinterpret_cast<const uint32_t*>(pairs), depth / 2, n, n, reinterpret_cast<uint32_t*>(out),
                  depth / 2);
}

template <>
void transpose<float>(const float* w, int64_t k, int64_t n, int64_t ld, int64_t depth, float* out) {
  if (k < depth) std::memset(out, 0, depth * n * sizeof(float));
  transpose_words(reinterpret_cast<const uint32_t*>(w), k, n, ld, reinterpret_cast<uint32_t*>(out), depth);
}

at::Tensor pack_weight(const at::Tensor& weight) {
  const int64_t n = weight.size(0), k = weight.size(1);
  const int64_t panels = (n + panel - 1) / panel;
  at::Tensor packed = at::empty({panels, k, panel}, weight.options());
  const auto pack = [&](auto* from, auto* to) {
    each_task(panels, [&](int64_t index) {
      const int64_t first = index * panel;
      pack_transposed(from + first * k, std::min(panel, n - first), k, k, panel, to + index * k * panel);
    });
  };
  if (weight.scalar_type() == at::kBFloat16) {
    pack(in<bf16>(weight), out<bf16>(packed));
  } else {
    pack(in<float>(weight), out<float>(packed));
  }
  return packed;
}

namespace {

/// Products of x with several matrices of n rows, panel by panel: store(row, column, width, sums) gets those of each.
template <typename T, size_t count, typename Store>
void products(const T* x, int64_t m, int64_t k, const std::array<Matrix<T>, count>& matrices, bool packed, int64_t n,
              const Store& store) {
  const int64_t panels = (n + panel - 1) / panel, chunks = (m + chunk_rows - 1) / chunk_rows;
  each_task(panels * chunks, [&](int64_t task) {
    const int64_t column = task % panels * panel, width = std::min(panel, n - column);
    std::array<const T*, count> b;
    std::array<float*, count> sums;
    for (size_t i = 0; i < count; i++) {
      b[i] = matrices[i].weight + column * k;
      if (!packed) {
        T* own = scratch<T, 2>(count * k * panel) + i * k * panel;
        pack_transposed(b[i], width, k, k, panel, own);
        b[i] = own;
      }
      sums[i] = scratch<float, 103>(count * block_rows * panel) + i * block_rows * panel;
    }
    const int64_t first = task / panels * chunk_rows, last = std::min(m, first + chunk_rows);
    for (int64_t row = first; row < last; row += block_rows) {
      const int64_t rows_here = std::min(block_rows, last - row);
      const T* a = padded_rows(x + row * k, rows_here, k);
      for (size_t i = 0; i < count; i++) {
        microkernel(round_up(rows_here, row_step), panel, k, a, k, b[i], panel, sums[i], panel, false);
      }
      for (int64_t at = 0; at < rows_here; at++) {
        std::array<float*, count> own;
        for (size_t i = 0; i < count; i++) {
          own[i] = sums[i] + at * panel;
          if (matrices[i].bias) rows<T>().add(matrices[i].bias + column, width, own[i]);
        }
        store(row + at, column, width, own);
      }
    }
  });
}

}  // namespace

template <typename T, typename Out>
void linear_forward(const T* x, int64_t m, int64_t k, const Matrix<T>& matrix, bool packed, int64_t n, const float* onto,
                    Out* out, int64_t ld) {
  const auto store = [&](int64_t row, int64_t column, int64_t width, const std::array<float*, 1>& sums) {
    if (onto) rows<float>().add(onto + row * ld + column, width, sums[0]);
    rows<Out>().scale(sums[0], 1.0f, width, out + row * ld + column);
  };
  products<T, 1>(x, m, k, {matrix}, packed, n, store);
}

template <typename T>
void gated_forward(const T* x, int64_t m, int64_t k, const Matrix<T>& gate, const Matrix<T>& up, bool packed, int64_t n,
                   T* gate_up, T* y) {
  const auto store = [&](int64_t row, int64_t column, int64_t width, const std::array<float*, 2>& sums) {
    for (int64_t i = 0; gate_up && i < 2; i++) rows<T>().scale(sums[i], 1.0f, width, gate_up + (2 * row + i) * n + column);
    rows<T>().swiglu(sums[0], sums[1], width, y + row * n + column);
  };
  products<T, 2>(x, m, k, {gate, up}, packed, n, store);
}

template <typename T>
void linear_backward_input(const T* dy, int64_t m, int64_t ld, const std::vector<at::Tensor>& weights, T* dx) {
  const int64_t k = weights[0].size(1);
  const int64_t panels = (k + panel - 1) / panel, chunks = (m + chunk_rows - 1) / chunk_rows;
  int64_t depth = 0;
  for (const auto& weight : weights) depth += round_up(weight.size(0), pair<T>);
  each_task(panels * chunks, [&](int64_t task) {
    const int64_t column = task % panels * panel, width = std::min(panel, k - column);
    T* b = scratch<T, 2>(depth * panel);
    int64_t at = 0;
    for (const auto& weight : weights) {
      const int64_t n = weight.size(0), even = round_up(n, pair<T>);
      pack_rows(in<T>(weight) + column, n, width, k, even, panel, b + at * panel);
      at += even;
    }
    const int64_t first = task / panels * chunk_rows, last = std::min(m, first + chunk_rows);
    float* sums = scratch<float, 103>(block_rows * panel);
    for (int64_t row = first; row < last; row += block_rows) {
      const int64_t count = std::min(block_rows, last - row);
      const T* a = padded_rows(dy + row * ld, count, ld);
      int64_t from = 0, packed = 0;
      for (const auto& weight : weights) {
        const int64_t n = weight.size(0);
        microkernel(round_up(count, row_step), panel, n, a + from, ld, b + packed * panel, panel, sums, panel, from > 0);
        from += n;
        packed += round_up(n, pair<T>);
      }
      for (int64_t i = 0; i < count; i++) rows<T>().scale(sums + i * panel, 1.0f, width, dx + (row + i) * k + column);
    }
  });
}

template <typename T>
void linear_backward_weight(const T* dy, int64_t m, int64_t n, int64_t ld, const T* x, int64_t k, float* dw) {
  // The contracted axis is that of the tokens.
  const int64_t depth = round_up(m, depth_step), step = 512;
  const int64_t panels = (k + panel - 1) / panel, blocks = (n + block_rows - 1) / block_rows;
  at::Tensor packed = at::empty({panels, depth, panel}, scalar_type<T>);
  T* b = out<T>(packed);
  each_task(panels, [&](int64_t index) {
    const int64_t column = index * panel;
    pack_rows(x + column, m, std::min(panel, k - column), k, depth, panel, b + index * depth * panel);
  });
  each_task(blocks, [&](int64_t block) {
    const int64_t row = block * block_rows, count = std::min(block_rows, n - row);
    T* a = scratch<T, 2>(block_rows * depth);
    transpose(dy + row, m, count, ld, depth, a);
    for (int64_t index = 0; index < panels; index++) {
      const int64_t column = index * panel, width = std::min(panel, k - column);
      // A narrow last panel is summed aside: its padding has no place in dw.
      float* c = width == panel ? dw + row * k + column : scratch<float, 103>(block_rows * panel);
      const int64_t ldc = width == panel ? k : panel;
      for (int64_t at = 0; at < depth; at += step) {
        microkernel(count, panel, std::min(step, depth - at), a + at, depth,
                    b + index * depth * panel + at * panel, panel, c, ldc, width == panel || at > 0);
      }
      if (width < panel) {
        for (int64_t i = 0; i < count; i++) {
          for (int64_t j = 0; j < width; j++) dw[(row + i) * k + column + j] += c[i * panel + j];
        }
      }
    }
  });
}

#define ARRIERO_INSTANTIATE(T)                                                                                     \
  template bool has_microkernel<T>();                                                                              \
  template void microkernel<T>(int64_t, int64_t, int64_t, const T*, int64_t, const T*, int64_t, float*, int64_t,   \
                               bool);                                                                              \
  template const T* padded_rows<T>(const T*, int64_t, int64_t);                                                    \
  template void linear_forward<T, T>(const T*, int64_t, int64_t, const Matrix<T>&, bool, int64_t, const float*, T*, \
                                     int64_t);                                                                     \
  template void gated_forward<T>(const T*, int64_t, int64_t, const Matrix<T>&, const Matrix<T>&, bool, int64_t, T*, \
                                 T*);                                                                              \
  template void linear_backward_input<T>(const T*, int64_t, int64_t, const std::vector<at::Tensor>&, T*);          \
  template void linear_backward_weight<T>(const T*, int64_t, int64_t, int64_t, const T*, int64_t, float*);
ARRIERO_INSTANTIATE(float)
ARRIERO_INSTANTIATE(bf16)
template void linear_forward<bf16, float>(const bf16*, int64_t, int64_t, const Matrix<bf16>&, bool, int64_t,
                                          const float*, float*, int64_t);

}  // namespace arriero

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

/// How many parts rows are cut into: as few as there may be, for packing a panel is paid for each, but so that no thread waits
/// for long while another does the last task.
int64_t parts_of(int64_t rows, int64_t panels) {
  constexpr int64_t most_rows = 2048, few_rows = 256;
  const int64_t parts = (rows + most_rows - 1) / most_rows, threads = at::get_num_threads();
  const auto idle = [&](int64_t tasks) { return static_cast<double>(round_up(tasks, threads)) / static_cast<double>(tasks); };
  const bool uneven = idle(panels * parts) > 1.05 && idle(panels * (parts + 1)) < idle(panels * parts);
  return uneven && rows > few_rows ? parts + 1 : parts;
}

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

namespace {

/// Packs pairs of rows, of which there may be an odd number.
template <typename From, typename Pair>
void pack_pairs(const From* w, int64_t k, int64_t n, int64_t ld, int64_t depth, int64_t width, bf16* out, const Pair& pair) {
  if (n < width || k < depth) std::memset(static_cast<void*>(out), 0, depth * width * sizeof(bf16));
  const From* zeros = scratch<From, 0>(n);
  if (k % 2) std::fill_n(scratch<From, 0>(n), n, From{});
  for (int64_t i = 0; i < k; i += 2) pair(w + i * ld, i + 1 < k ? w + (i + 1) * ld : zeros, n, out + i * width);
}

}  // namespace

template <>
void pack_rows<bf16, bf16>(const bf16* w, int64_t k, int64_t n, int64_t ld, int64_t depth, int64_t width, bf16* out) {
  pack_pairs(w, k, n, ld, depth, width, out, [](const bf16* a, const bf16* b, int64_t count, bf16* to) {
    flat_rows().interleave(reinterpret_cast<const uint16_t*>(a), reinterpret_cast<const uint16_t*>(b), count,
                           reinterpret_cast<uint16_t*>(to));
  });
}

template <>
void pack_rows<float, bf16>(const float* w, int64_t k, int64_t n, int64_t ld, int64_t depth, int64_t width, bf16* out) {
  pack_pairs(w, k, n, ld, depth, width, out, flat_rows().interleave_rounded);
}

template <>
void pack_rows<float, float>(const float* w, int64_t k, int64_t n, int64_t ld, int64_t depth, int64_t width, float* out) {
  if (n < width || k < depth) std::memset(out, 0, depth * width * sizeof(float));
  for (int64_t i = 0; i < k; i++) std::memcpy(out + i * width, w + i * ld, n * sizeof(float));
}

template <>
void transpose<bf16>(const bf16* w, int64_t k, int64_t n, int64_t ld, int64_t depth, bf16* out) {
  bf16* pairs = scratch<bf16, 1>(depth * n);
  pack_rows(w, k, n, ld, depth, n, pairs);
  transpose_words(reinterpret_cast<const uint32_t*>(pairs), depth / 2, n, n, reinterpret_cast<uint32_t*>(out),
                  depth / 2);
}

template <>
void transpose<float>(const float* w, int64_t k, int64_t n, int64_t ld, int64_t depth, float* out) {
  if (k < depth) std::memset(out, 0, depth * n * sizeof(float));
  transpose_words(reinterpret_cast<const uint32_t*>(w), k, n, ld, reinterpret_cast<uint32_t*>(out), depth);
}

void fix_transposed(const float* w, int64_t n, int64_t k, int64_t ld, int64_t width, int16_t* out, float* scales) {
  const int64_t depth = round_up(k, fixed_depth), blocks = depth / fixed_depth;
  int16_t* fixed = scratch<int16_t, 21>(panel * depth);
  if (n < width) {
    std::memset(out, 0, depth * width * sizeof(int16_t));
    std::memset(scales, 0, blocks * width * sizeof(float));
  }
  for (int64_t i = 0; i < n; i++) {
    fixed_point()->fix(w + i * ld, k, fixed_depth, column_limit, fixed + i * depth, fixed_depth, scales + i, width);
  }
  // Two neighbours of a row are one 32-bit word.
  transpose_words(reinterpret_cast<const uint32_t*>(fixed), n, depth / 2, depth / 2, reinterpret_cast<uint32_t*>(out), width);
}

template <typename T>
FixedRows fix_rows(const T* x, int64_t m, int64_t k, bf16* copy) {
  const int64_t blocks = (k + fixed_depth - 1) / fixed_depth;
  FixedRows rows{at::empty({blocks, m, fixed_depth}, at::kShort), at::empty({blocks, m}, at::kFloat)};
  int16_t* numbers = out<int16_t>(rows.numbers);
  float* scales = out<float>(rows.scales);
  at::parallel_for(0, m, 16, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i++) {
      const auto fix = [&](const auto& how) {
        how(x + i * k, k, fixed_depth, row_limit, numbers + i * fixed_depth, m * fixed_depth, scales + i, m);
      };
      if constexpr (sizeof(T) == 2) {
        fix(fixed_point()->fix_bf16);
      } else {
        fix(fixed_point()->fix);
        if (copy) arriero::rows<bf16>().scale(x + i * k, 1.0f, k, copy + i * k);
      }
    }
  });
  return rows;
}

Operand operand(const at::Tensor& x, bool fixed, at::Tensor* kept) {
  Operand made{x.size(0), x.size(1)};
  const bool narrow = x.scalar_type() == at::kBFloat16;
  if (kept) *kept = fixed && !narrow ? at::empty(x.sizes(), x.options().dtype(at::kBFloat16)) : x;
  if (!fixed) {
    made.wide = in<float>(x);
  } else if (narrow) {
    made.fixed = fix_rows(in<bf16>(x), made.m, made.k, nullptr);
  } else {
    made.fixed = fix_rows(in<float>(x), made.m, made.k, kept ? out<bf16>(*kept) : nullptr);
  }
  return made;
}

Packed pack_weight(const at::Tensor& weight, bool fixed) {
  const int64_t n = weight.size(0), k = weight.size(1);
  const int64_t panels = (n + panel - 1) / panel, depth = fixed ? round_up(k, fixed_depth) : k;
  const int64_t blocks = depth / fixed_depth;
  Packed packed{at::empty({panels, depth, panel}, weight.options().dtype(fixed ? at::kShort : at::kFloat)), {}};
  if (fixed) packed.scales = at::empty({panels, blocks, panel}, weight.options());
  const float* from = in<float>(weight);
  each_task(panels, [&](int64_t index) {
    const int64_t first = index * panel, width = std::min(panel, n - first);
    if (fixed) {
      fix_transposed(from + first * k, width, k, k, panel, out<int16_t>(packed.matrix) + index * depth * panel,
                     out<float>(packed.scales) + index * blocks * panel);
    } else {
      pack_transposed(from + first * k, width, k, k, panel, out<float>(packed.matrix) + index * k * panel);
    }
  });
  return packed;
}

Panel Packed::at(int64_t index) const {
  const int64_t size = matrix.size(1) * panel;
  if (!scales.defined()) return {in<float>(matrix) + index * size};
  return {nullptr, in<int16_t>(matrix) + index * size, in<float>(scales) + index * size / fixed_depth};
}

Panel pack_panel(const Operand& x, const float* w, int64_t width, int64_t place, int64_t places) {
  const int64_t depth = x.wide ? x.k : x.fixed.depth(), size = depth * panel, scale_count = size / fixed_depth;
  if (x.wide) {
    float* own = scratch<float, 2>(places * size) + place * size;
    pack_transposed(w, width, x.k, x.k, panel, own);
    return {own};
  }
  int16_t* own = scratch<int16_t, 2>(places * size) + place * size;
  float* scales = scratch<float, 111>(places * scale_count) + place * scale_count;
  fix_transposed(w, width, x.k, x.k, panel, own, scales);
  return {nullptr, own, scales};
}

namespace {

/// out [count, panel] = rows from `row` on (+ below, of as many), ld numbers from one row to the next of both.
void multiply_fixed(const Operand& x, int64_t row, int64_t count, const Panel& b, const float* below, float* sums, float* out,
                    int64_t ld) {
  fixed_point()->multiply(count, panel, fixed_depth, x.fixed.blocks(), in<int16_t>(x.fixed.numbers) + row * fixed_depth,
                          in<float>(x.fixed.scales) + row, x.m, b.numbers, b.scales, below, sums, out, ld);
}

}  // namespace

void multiply_rows(const Operand& x, int64_t row, int64_t count, const Panel& b, float* sums) {
  if (!x.wide) {
    multiply_fixed(x, row, count, b, nullptr, sums, sums, panel);
    return;
  }
  const float* a = padded_rows(x.wide + row * x.k, count, x.k);
  microkernel(round_up(count, row_step), panel, x.k, a, x.k, b.wide, panel, sums, panel, false);
}

namespace {

/// Calls work(panels, column, width, row, rows) for all panels of several matrices of n rows and some rows of x, at most
/// block_rows.
template <size_t count, typename Work>
void each_product(const Operand& x, const std::array<Matrix, count>& matrices, int64_t n, const Work& work) {
  // Rows that are multiplied while a block of the panel is in the first cache; tiles of fixed-point numbers have 6.
  const int64_t step = x.wide ? block_rows : block_rows / 6 * 6;
  const int64_t panels = (n + panel - 1) / panel, parts = parts_of(x.m, panels);
  const int64_t part_rows = round_up((x.m + parts - 1) / parts, step);
  each_task(panels * parts, [&](int64_t task) {
    const int64_t index = task % panels, column = index * panel, width = std::min(panel, n - column);
    std::array<Panel, count> b;
    for (size_t i = 0; i < count; i++) {
      const Matrix& matrix = matrices[i];
      b[i] = matrix.packed ? matrix.packed->at(index) : pack_panel(x, matrix.weight + column * x.k, width, i, count);
    }
    const int64_t first = task / panels * part_rows, last = std::min(x.m, first + part_rows);
    for (int64_t row = first; row < last; row += step) work(b, column, width, row, std::min(step, last - row));
  });
}

/// A thread's sums of a product, [block_rows, panel], as one of `places`.
float* sums_of(int64_t place, int64_t places) {
  return scratch<float, 103>(places * block_rows * panel) + place * block_rows * panel;
}

}  // namespace

void linear_forward(const Operand& x, const Matrix& matrix, int64_t n, const float* onto, float* out, int64_t ld) {
  each_product<1>(x, {matrix}, n, [&](const auto& b, int64_t column, int64_t width, int64_t row, int64_t count) {
    const int64_t at = row * ld + column;
    float* sums = sums_of(0, 1);
    if (!x.wide && width == panel && !matrix.bias) {
      multiply_fixed(x, row, count, b[0], onto ? onto + at : nullptr, sums, out + at, ld);
      return;
    }
    multiply_rows(x, row, count, b[0], sums);
    for (int64_t i = 0; i < count; i++) {
      float* own = sums + i * panel;
      if (matrix.bias) rows<float>().add(matrix.bias + column, width, own);
      if (onto) rows<float>().add(onto + at + i * ld, width, own);
      std::memcpy(out + at + i * ld, own, width * sizeof(float));
    }
  });
}

template <typename T>
void gated_forward(const Operand& x, const Matrix& gate, const Matrix& up, int64_t n, T* gate_up, float* y) {
  const std::array<Matrix, 2> both{gate, up};
  each_product<2>(x, both, n, [&](const auto& b, int64_t column, int64_t width, int64_t row, int64_t count) {
    float* sums[] = {sums_of(0, 2), sums_of(1, 2)};
    for (int64_t side = 0; side < 2; side++) multiply_rows(x, row, count, b[side], sums[side]);
    for (int64_t i = 0; i < count; i++) {
      for (int64_t side = 0; side < 2; side++) {
        float* own = sums[side] + i * panel;
        if (both[side].bias) rows<float>().add(both[side].bias + column, width, own);
        if (gate_up) rows<T>().scale(own, 1.0f, width, gate_up + (2 * (row + i) + side) * n + column);
      }
      rows<float>().swiglu(sums[0] + i * panel, sums[1] + i * panel, width, y + (row + i) * n + column);
    }
  });
}

template <typename T, typename Out>
void linear_backward_input(const T* dy, int64_t m, int64_t ld, const std::vector<at::Tensor>& weights, Out* dx) {
  const int64_t k = weights[0].size(1);
  const int64_t panels = (k + panel - 1) / panel, parts = parts_of(m, panels);
  const int64_t part_rows = round_up((m + parts - 1) / parts, block_rows);
  int64_t depth = 0;
  for (const auto& weight : weights) depth += round_up(weight.size(0), pair<T>);
  each_task(panels * parts, [&](int64_t task) {
    const int64_t column = task % panels * panel, width = std::min(panel, k - column);
    T* b = scratch<T, 2>(depth * panel);
    int64_t at = 0;
    for (const auto& weight : weights) {
      const int64_t n = weight.size(0), even = round_up(n, pair<T>);
      pack_rows(in<float>(weight) + column, n, width, k, even, panel, b + at * panel);
      at += even;
    }
    const int64_t first = task / panels * part_rows, last = std::min(m, first + part_rows);
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
      for (int64_t i = 0; i < count; i++) rows<Out>().scale(sums + i * panel, 1.0f, width, dx + (row + i) * k + column);
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
  template FixedRows fix_rows<T>(const T*, int64_t, int64_t, bf16*);                                                      \
  template void gated_forward<T>(const Operand&, const Matrix&, const Matrix&, int64_t, T*, float*);               \
  template void linear_backward_input<T, float>(const T*, int64_t, int64_t, const std::vector<at::Tensor>&, float*); \
  template void linear_backward_weight<T>(const T*, int64_t, int64_t, int64_t, const T*, int64_t, float*);
ARRIERO_INSTANTIATE(float)
ARRIERO_INSTANTIATE(bf16)
template void linear_backward_input<bf16, bf16>(const bf16*, int64_t, int64_t, const std::vector<at::Tensor>&, bf16*);

}  // namespace arriero

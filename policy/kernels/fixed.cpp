// See fixed.h. Compiled for AVX512-VNNI alone; rows_table.cpp asks the processor.
#include "fixed.h"

#include <immintrin.h>

#include <cmath>

namespace arriero {
namespace {

inline __m512 load(const float* x, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, x); }
inline __m512 load(const bf16* x, __mmask16 mask) {
  const __m256i halves = _mm256_maskz_loadu_epi16(mask, x);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline __mmask16 first(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1 << count) - 1);
}

/// Factor and scale of a block whose largest number is `top`. One that is next to 0 is 0: its factor has no f32.
struct Scaling {
  float factor, scale;
  Scaling(float top, bool broken, float limit)
      : factor(top > 1e-30f ? limit / top : 0.0f), scale(broken ? NAN : top > 1e-30f ? top / limit : 0.0f) {}
};

template <typename T>
void fix(const T* x, int64_t n, int64_t depth, float limit, int16_t* out, int64_t stride, float* scales,
         int64_t scales_stride) {
  for (int64_t at = 0; at < n; at += depth, out += stride, scales += scales_stride) {
    __m512 v[fixed_depth / 16], top = _mm512_setzero_ps();
    __mmask16 broken = 0;
    const int64_t parts = depth / 16;
    for (int64_t i = 0; i < parts; i++) {
      v[i] = load(x + at + 16 * i, first(n - at - 16 * i));
      // What comes after a row is most often the next one.
      _mm_prefetch(reinterpret_cast<const char*>(x + at + 16 * i + 512), _MM_HINT_T0);
      top = _mm512_max_ps(top, _mm512_abs_ps(v[i]));
      broken |= _mm512_cmp_ps_mask(v[i], v[i], _CMP_UNORD_Q);
    }
    const Scaling scaling(_mm512_reduce_max_ps(top), broken, limit);
    const __m512 factor = _mm512_set1_ps(scaling.factor);
    for (int64_t i = 0; i < parts; i++) {
      const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], factor));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 16 * i), _mm512_cvtsepi32_epi16(whole));
    }
    *scales = scaling.scale;
  }
}

void fix_columns(const float* w, int64_t k, int64_t n, int64_t ld, int64_t depth, int64_t width, int16_t* out,
                 float* scales) {
  for (int64_t column = 0; column < width; column += 16) {
    const __mmask16 mask = first(n - column);
    __m512 top = _mm512_setzero_ps();
    __mmask16 broken = 0;
    for (int64_t i = 0; i < k; i++) {
      const __m512 v = load(w + i * ld + column, mask);
      top = _mm512_max_ps(top, _mm512_abs_ps(v));
      broken |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    }
    alignas(64) float tops[16], factors[16];
    _mm512_store_ps(tops, top);
    for (int j = 0; j < 16; j++) {
      const Scaling scaling(tops[j], broken >> j & 1, column_limit);
      factors[j] = scaling.factor;
      scales[column + j] = scaling.scale;
    }
    const __m512 factor = _mm512_load_ps(factors);
    const auto row = [&](int64_t i) {
      return _mm512_cvtps_epi32(_mm512_mul_ps(load(w + i * ld + column, i < k ? mask : 0), factor));
    };
    for (int64_t i = 0; i < depth; i += 2) {
      const __m512i even = _mm512_and_si512(row(i), _mm512_set1_epi32(0xffff));
      _mm512_storeu_si512(out + (i / 2 * width + column) * 2, _mm512_or_si512(even, _mm512_slli_epi32(row(i + 1), 16)));
    }
  }
}

/// One block's share of R rows and 16 V columns, on top of what was there before.
template <int R, int V>
void tile(int64_t depth, const int16_t* a, const float* a_scales, const int16_t* b, int64_t width, const float* b_scales,
          const float* before, int64_t ld_before, float* c, int64_t ldc) {
  __m512i sums[R][V];
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) {
#pragma GCC unroll 8
    for (int j = 0; j < V; j++) sums[i][j] = _mm512_setzero_si512();
  }
  for (int64_t k = 0; k < depth; k += 2) {
    __m512i line[V];
#pragma GCC unroll 8
    for (int j = 0; j < V; j++) line[j] = _mm512_loadu_si512(b + k * width + 32 * j);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
      int32_t both;
      __builtin_memcpy(&both, a + i * depth + k, sizeof(both));
      const __m512i pair = _mm512_set1_epi32(both);
      // As an instruction: of the intrinsic GCC 12 keeps the sums in memory.
#pragma GCC unroll 8
      for (int j = 0; j < V; j++) asm("vpdpwssd %2, %1, %0" : "+v"(sums[i][j]) : "v"(pair), "v"(line[j]));
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < V; j++) {
    const __m512 column = _mm512_loadu_ps(b_scales + 16 * j);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
      const __m512 scale = _mm512_mul_ps(column, _mm512_set1_ps(a_scales[i]));
      const __m512 sum = before ? _mm512_loadu_ps(before + i * ld_before + 16 * j) : _mm512_setzero_ps();
      _mm512_storeu_ps(c + i * ldc + 16 * j, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i][j]), scale, sum));
    }
  }
}

using Tile = void (*)(int64_t, const int16_t*, const float*, const int16_t*, int64_t, const float*,
                      const float*, int64_t, float*, int64_t);
constexpr int most_rows = 6, most_vectors = 4;
constexpr Tile tiles[most_vectors][most_rows] = {
    {tile<1, 1>, tile<2, 1>, tile<3, 1>, tile<4, 1>, tile<5, 1>, tile<6, 1>},
    {tile<1, 2>, tile<2, 2>, tile<3, 2>, tile<4, 2>, tile<5, 2>, tile<6, 2>},
    {tile<1, 3>, tile<2, 3>, tile<3, 3>, tile<4, 3>, tile<5, 3>, tile<6, 3>},
    {tile<1, 4>, tile<2, 4>, tile<3, 4>, tile<4, 4>, tile<5, 4>, tile<6, 4>},
};

/// A block of B stays in the first cache while all rows go by, and so do the sums, which C's rows might not: they may be so far
/// apart that they share a place in it. Few rows take less time than the next block takes from memory, which is called for
/// meanwhile.
void multiply(int64_t m, int64_t width, int64_t depth, int64_t blocks, const int16_t* a, const float* a_scales, int64_t rows,
              const int16_t* b, const float* b_scales, const float* below, float* sums, float* c, int64_t ldc) {
  constexpr int64_t few_rows = 64;
  const int64_t size = depth * width, share = (size + m - 1) / m * most_rows;
  for (int64_t block = 0; block < blocks; block++) {
    const bool is_first = block == 0, is_last = block + 1 == blocks;
    const int16_t* next = b + (block + 1) * size;
    const int16_t* const end = !is_last && m <= few_rows ? next + size : next;
    const float* from = is_first ? below : sums;
    float* to = is_last ? c : sums;
    const int64_t ld_from = is_first ? ldc : width, ld_to = is_last ? ldc : width;
    for (int64_t column = 0; column < width; column += 16 * most_vectors) {
      const int64_t vectors = width - column < 16 * most_vectors ? (width - column) / 16 : most_vectors;
      for (int64_t row = 0; row < m; row += most_rows) {
        for (const int16_t* stop = next + share < end ? next + share : end; next < stop; next += 32) {
          _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
        }
        const int64_t count = m - row < most_rows ? m - row : most_rows, first = block * rows + row;
        tiles[vectors - 1][count - 1](depth, a + first * depth, a_scales + first, b + block * size + 2 * column, width,
                                      b_scales + block * width + column, from ? from + row * ld_from + column : nullptr,
                                      ld_from, to + row * ld_to + column, ld_to);
      }
    }
  }
}

}  // namespace

extern const FixedPoint vnni;
const FixedPoint vnni = {fix<float>, fix<bf16>, fix_columns, multiply};

}  // namespace arriero

// Products of 16-bit fixed-point numbers: the processor multiplies as many of them at once as of bf16, and they keep
// about three bits more (docs/adr/0008-fixed-point.md).
//
// The contracted axis is cut into blocks. Within a block a row of A has one scale and numbers of 13 bits and a sign, a
// column of B one scale and numbers of 12 bits and a sign, so that the products of `fixed_depth` pairs fit a sum of 32 bits,
// which is exact. Sums of blocks are f32. A number that is none makes the block's scale one, and so what comes of it.
#pragma once

#include "rows.h"

namespace arriero {

/// The longest block.
constexpr int64_t fixed_depth = 64;
/// What a block's largest number becomes. Both are prime: the numbers of a quantised or a bf16 file are whole multiples of
/// something, and would otherwise often lie on the steps, where a small change does nothing, or midway between two, where it does
/// far too much (docs/adr/0006-rounding-weights.md).
constexpr float row_limit = 8191, column_limit = 4093;
static_assert(8191LL * 4093 * fixed_depth <= INT32_MAX);

/// What a processor with AVX512-VNNI does. Blocks have `depth` numbers, a multiple of 16.
struct FixedPoint {
  /// n numbers as blocks, the last one filled with 0, with a scale for each: from one block to the next it is `stride` numbers
  /// in `out` and `scales_stride` in `scales`.
  void (*fix)(const float* x, int64_t n, int64_t depth, float limit, int16_t* out, int64_t stride, float* scales,
              int64_t scales_stride);
  void (*fix_bf16)(const bf16* x, int64_t n, int64_t depth, float limit, int16_t* out, int64_t stride, float* scales,
                   int64_t scales_stride);
  /// A block of B from k <= depth rows of n <= width columns (ld elements a row): out [depth / 2][width][2] and a scale for
  /// each column; width is a multiple of 16.
  void (*fix_columns)(const float* w, int64_t k, int64_t n, int64_t ld, int64_t depth, int64_t width, int16_t* out,
                      float* scales);
  /// C[m, width] = A B (+ below, where there is one, ldc numbers a row as C has) for m of A's rows, of which there are `rows`:
  /// [blocks][rows][depth] with scales [blocks][rows], and B as [blocks][depth / 2][width][2] with scales [blocks][width].
  /// `sums` [m, width] is room for what is not complete; it may be C.
  void (*multiply)(int64_t m, int64_t width, int64_t depth, int64_t blocks, const int16_t* a, const float* a_scales,
                   int64_t rows, const int16_t* b, const float* b_scales, const float* below, float* sums, float* c,
                   int64_t ldc);
};

/// Null where the processor lacks the instructions.
const FixedPoint* fixed_point();

}  // namespace arriero

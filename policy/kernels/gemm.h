// Matrix products. Operands are f32 and multiplied in one of two ways. As they are: by libtorch's microkernel (oneDNN's
// brgemm). Or in 16 bits: forwards as fixed-point numbers (fixed.h), backwards as bf16 ones by libtorch's microkernel; T of a
// backward is that of its arithmetic.
//
// The microkernel's product C[m, n] = A[m, k] B[k, n] takes A row by row, and B in panels of `panel` columns, each
// [k / pair][panel][pair]: `pair` neighbours of the contracted axis stand together (2 for bf16, 1 for
// f32), columns that do not exist are 0. Sums are f32 and run over k in one order, whatever m is, so
// that a row's result does not depend on its neighbours.
#pragma once

#include "common.h"
#include "fixed.h"

namespace arriero {

template <typename T>
constexpr int64_t pair = sizeof(T) == 2 ? 2 : 1;

/// Columns of a panel.
constexpr int64_t panel = 64;
/// Rows that go through the microkernel at once.
constexpr int64_t block_rows = 64;
/// The contracted axis is padded to a multiple of this where its length changes from call to call,
/// so that few microkernels are generated.
constexpr int64_t depth_step = 32;

/// Whether this processor has the microkernel for T.
template <typename T>
bool has_microkernel();

/// C[m, n] (+)= A[m, k] B, f32. B is one packed panel or a part of it, `ldb` elements of T pairs wide.
template <typename T>
void microkernel(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, float* c,
                 int64_t ldc, bool add);

/// Rows are padded to a multiple of this: generating a microkernel takes longer than the rows that it saves.
constexpr int64_t row_step = 16;

/// `count` rows of a (k elements each), or a copy of them, from which round_up(count, row_step) may be read.
template <typename T>
const T* padded_rows(const T* a, int64_t count, int64_t k);

/// Packs B = Wᵀ, where W is [n, k] row by row: `out` is [k / pair][width][pair]. n <= width.
template <typename T>
void pack_transposed(const T* w, int64_t n, int64_t k, int64_t ld, int64_t width, T* out);

/// Packs B = W, where W is [k, n] row by row: `out` is [depth / pair][width][pair], rows from k to
/// depth and columns from n to width are 0. From f32 to bf16 numbers are rounded to the nearest.
template <typename From, typename T>
void pack_rows(const From* w, int64_t k, int64_t n, int64_t ld, int64_t depth, int64_t width, T* out);

/// out[n][depth] = W[k, n]ᵀ; columns from k to depth are 0.
template <typename T>
void transpose(const T* w, int64_t k, int64_t n, int64_t ld, int64_t depth, T* out);

/// B = Wᵀ of `FixedPoint::multiply`, blocks of fixed_depth, where W is [n, k] row by row (ld numbers apart): out
/// [round_up(k, fixed_depth) / 2][width][2] and scales [blocks][width]. n <= width.
void fix_transposed(const float* w, int64_t n, int64_t k, int64_t ld, int64_t width, int16_t* out, float* scales);

/// m rows as `FixedPoint::multiply` takes them for A, of blocks of fixed_depth.
struct FixedRows {
  at::Tensor numbers;  // int16 [blocks, m, fixed_depth]
  at::Tensor scales;   // f32 [blocks, m]
  int64_t blocks() const { return numbers.size(0); }
  int64_t depth() const { return blocks() * fixed_depth; }
};
/// Where there is a copy, it gets the rows as they are.
template <typename T>
FixedRows fix_rows(const T* x, int64_t m, int64_t k, bf16* copy);

/// Rows [m, k] that are multiplied: f32, or fixed.
struct Operand {
  int64_t m, k;
  const float* wide = nullptr;
  FixedRows fixed = {};
};
/// f32, or bf16 where they are to be fixed; `kept`, where it is wanted, becomes x as a backward multiplies it.
Operand operand(const at::Tensor& x, bool fixed, at::Tensor* kept = nullptr);

/// A panel of Wᵀ for products with an operand: packed as it wants it.
struct Panel {
  const float* wide = nullptr;
  const int16_t* numbers = nullptr;
  const float* scales = nullptr;
};
/// Packs `width` rows of W (as many as a panel has, or fewer), as one of `places` that the thread holds at once.
Panel pack_panel(const Operand& x, const float* w, int64_t width, int64_t place, int64_t places);

/// sums [count, panel] = rows from `row` on, at most block_rows; there is room for round_up(count, row_step) rows.
void multiply_rows(const Operand& x, int64_t row, int64_t count, const Panel& b, float* sums);

/// All panels of Wᵀ for W [n, k], one after the other: [n / panel][k][panel] in f32, or fixed,
/// [n / panel][depth / 2][panel][2] and scales [n / panel][blocks][panel].
struct Packed {
  at::Tensor matrix, scales;
  Panel at(int64_t index) const;
};
Packed pack_weight(const at::Tensor& weight, bool fixed);

/// W [n, k] as it stands, or what pack_weight made of it; and a bias [n], where there is one.
struct Matrix {
  const float* weight = nullptr;
  const Packed* packed = nullptr;
  const float* bias = nullptr;
};

/// out[m, n] = x[m, k] Wᵀ + bias (+ onto). `out` and `onto` may be wider than n (ld elements a row).
void linear_forward(const Operand& x, const Matrix& matrix, int64_t n, const float* onto, float* out, int64_t ld);

/// y[m, n] = silu(x Gᵀ + bias) * (x Uᵀ + bias); gate_up (where it is wanted) keeps the two products of a row side by side,
/// as T.
template <typename T>
void gated_forward(const Operand& x, const Matrix& gate, const Matrix& up, int64_t n, T* gate_up, float* y);

/// dx[m, k] = dy[m, n] W for W [n, k], multiplied as T and summed in f32; dy has ld
/// elements a row. `weights` are consecutive blocks of dy's columns.
template <typename T, typename Out>
void linear_backward_input(const T* dy, int64_t m, int64_t ld, const std::vector<at::Tensor>& weights, Out* dx);

/// dw[n, k] += dyᵀ x, f32.
template <typename T>
void linear_backward_weight(const T* dy, int64_t m, int64_t n, int64_t ld, const T* x, int64_t k, float* dw);

}  // namespace arriero

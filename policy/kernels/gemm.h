// Matrix products on libtorch's microkernel (oneDNN's brgemm), with operands packed as it wants them.
//
// A product C[m, n] = A[m, k] B[k, n] takes A row by row, and B in panels of `panel` columns, each
// [k / pair][panel][pair]: `pair` neighbours of the contracted axis stand together (2 for bf16, 1 for
// f32), columns that do not exist are 0. Sums are f32 and run over k in one order, whatever m is, so
// that a row's result does not depend on its neighbours.
#pragma once

#include "common.h"

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
/// depth and columns from n to width are 0.
template <typename T>
void pack_rows(const T* w, int64_t k, int64_t n, int64_t ld, int64_t depth, int64_t width, T* out);

/// out[n][depth] = W[k, n]ᵀ; columns from k to depth are 0.
template <typename T>
void transpose(const T* w, int64_t k, int64_t n, int64_t ld, int64_t depth, T* out);

/// All panels of Wᵀ for W [n, k], one after the other: [n / panel][k / pair][panel][pair].
at::Tensor pack_weight(const at::Tensor& weight);

/// W, as it stands ([n, k]) or packed by `pack_weight`, and a bias [n], where there is one.
template <typename T>
struct Matrix {
  const T* weight;
  const T* bias;
};

/// out[m, n] = x[m, k] Wᵀ + bias (+ onto), rounded once where Out is bf16. `out` and `onto` may be wider than n (ld
/// elements a row).
template <typename T, typename Out>
void linear_forward(const T* x, int64_t m, int64_t k, const Matrix<T>& matrix, bool packed, int64_t n, const float* onto,
                    Out* out, int64_t ld);

/// y[m, n] = silu(x Gᵀ + bias) * (x Uᵀ + bias), rounded once; gate_up (where it is wanted) keeps the two products of a row
/// side by side, each rounded.
template <typename T>
void gated_forward(const T* x, int64_t m, int64_t k, const Matrix<T>& gate, const Matrix<T>& up, bool packed, int64_t n,
                   T* gate_up, T* y);

/// dx[m, k] (+)= dy[m, n] W for W [n, k], summed in f32 and rounded to T at the end; dy has ld
/// elements a row. `weights` are consecutive blocks of dy's columns.
template <typename T>
void linear_backward_input(const T* dy, int64_t m, int64_t ld, const std::vector<at::Tensor>& weights, T* dx);

/// dw[n, k] += dyᵀ x, f32.
template <typename T>
void linear_backward_weight(const T* dy, int64_t m, int64_t n, int64_t ld, const T* x, int64_t k, float* dw);

}  // namespace arriero

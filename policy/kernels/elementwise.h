// RMS norm, rotary positions, SwiGLU and AdamW: each one pass over memory, forward and backward.
#pragma once

#include "common.h"

namespace arriero {

/// y = x / sqrt(mean(x²) + eps) * weight, row by row; scales[m] keeps 1 / sqrt(…).
template <typename T>
void rms_norm_forward(const float* x, const float* weight, float eps, int64_t m, int64_t n, T* y, float* scales);

/// dx = beside (where there is one) + the gradient through y; weight_gradient[n] += (where it is wanted).
template <typename T>
void rms_norm_backward(const T* dy, const float* beside, const float* x, const float* scales, const float* weight,
                       int64_t m, int64_t n, float* dx, float* weight_gradient);

/// Rotates the first `heads` heads of each row of `qkv` (ld elements) in place by the angles of its
/// position; direction −1 turns back. cos and sin are [positions, head_dim], each angle in both halves.
template <typename T>
void rotate(T* qkv, int64_t m, int64_t ld, int64_t heads, int64_t head_dim, const int64_t* positions,
            const float* cos, const float* sin, float direction);

/// Rows of ld sums as T, of which the first `heads` heads are rotated.
template <typename T>
void rotate_sums(const float* sums, int64_t m, int64_t ld, int64_t heads, int64_t head_dim, const int64_t* positions,
                 const float* cos, const float* sin, T* out);

/// y[m, n] = silu(gate) * up for rows (gate, up) of 2 n elements.
template <typename T>
void swiglu_forward(const T* gate_up, int64_t m, int64_t n, T* y);
template <typename T>
void swiglu_backward(const T* dy, const T* gate_up, int64_t m, int64_t n, T* d_gate_up);

/// sums[n] += the sum of x's rows.
template <typename T>
void add_column_sums(const T* x, int64_t m, int64_t n, int64_t ld, float* sums);

/// One step of AdamW in one pass; `leaf` gets the new weights in bf16 where it is not null.
void adamw_step(float* master, const float* gradient, float* first, float* second, bf16* leaf, int64_t n,
                const AdamW& options);

/// Weights as bf16, each rounded up or down by a threshold that is its place's own.
void round_weights(const float* x, int64_t n, bf16* out);

/// Σ x², in f64, in one order whatever the number of threads.
double square_sum(const float* x, int64_t n);

}  // namespace arriero

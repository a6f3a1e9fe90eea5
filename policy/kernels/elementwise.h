// RMS norm, rotary positions, SwiGLU and AdamW: each one pass over memory, forward and backward.
#pragma once

#include "common.h"

namespace arriero {

/// sum = x + delta (where there is a delta), y = sum / sqrt(mean(sum²) + eps) * weight, row by row. Sums are f32
/// whatever T is: errors of rounding would add up from layer to layer. scales[m] keeps 1 / sqrt(…).
template <typename T>
void rms_norm_forward(const float* x, const T* delta, const float* weight, float eps, int64_t m, int64_t n, float* sum,
                      T* y, float* scales);

/// dx = d_sum + the gradient through y, and the same as T in d_delta (where it is wanted); weight_gradient[n] +=
/// (f32, where it is wanted).
template <typename T>
void rms_norm_backward(const T* dy, const float* d_sum, const float* sum, const float* scales, const float* weight,
                       int64_t m, int64_t n, float* dx, T* d_delta, float* weight_gradient);

/// Rotates the first `heads` heads of each row of `qkv` (ld elements) in place by the angles of its
/// position; direction −1 turns back. cos and sin are [positions, head_dim], each angle in both halves.
template <typename T>
void rotate(T* qkv, int64_t m, int64_t ld, int64_t heads, int64_t head_dim, const int64_t* positions,
            const float* cos, const float* sin, float direction);

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

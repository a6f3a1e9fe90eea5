// Arithmetic on rows of numbers: plain loops that the compiler vectorises. rows.cpp is compiled once for each
// instruction set, and `rows<T>()` is the table of the best that the processor has. It includes nothing of
// libtorch, so that no code for a newer processor gets into what others share.
#pragma once

#include <cstdint>

namespace arriero {

/// The upper half of an f32.
struct bf16 {
  uint16_t bits;
};

/// The numbers of one AdamW step (Loshchilov and Hutter, 2019); the gradient is multiplied by
/// `gradient_scale` as it is read.
struct AdamW {
  float rate, beta1, beta2, eps, decay, correction1, correction2_sqrt, gradient_scale;
};

/// What is known of a row of logits after some of them: the highest, Σ e^(z − highest) and
/// Σ e^(z − highest) (z − highest).
struct Running {
  float highest, sum, moment;
};

/// Key columns of an attention block, and tokens of a page of the decoding cache.
constexpr int64_t columns = 32;
constexpr int64_t page_tokens = 16;

template <typename T>
struct Rows {
  /// y = x * scale * weight.
  void (*norm_scale)(const float* x, const float* weight, float scale, int64_t n, T* y);
  /// dx = beside (where there is one) + the gradient through y; weight_gradient (where wanted) += its share.
  void (*norm_backward)(const T* dy, const float* beside, const float* x, const float* weight, float scale, int64_t n,
                        float* dx, float* weight_gradient);
  /// Rotates a head of 2 * half numbers in place; direction −1 turns back.
  void (*rotate)(T* x, int64_t half, const float* cos, const float* sin, float direction);
  /// The same of a product's sums.
  void (*rotate_sums)(const float* x, int64_t half, const float* cos, const float* sin, T* out);
  /// y = silu(gate) * up of a product's sums, and back.
  void (*swiglu)(const float* gate, const float* up, int64_t n, T* y);
  void (*swiglu_backward)(const T* dy, const T* gate, const T* up, int64_t n, T* d_gate, T* d_up);
  /// sums += x.
  void (*add)(const T* x, int64_t n, float* sums);
  /// out = x * factor.
  void (*scale)(const float* x, float factor, int64_t n, T* out);
  float (*dot)(const T* a, const T* b, int64_t n);
  /// d z_j = −p_j (d_logp + (log p_j + entropy) d_entropy).
  void (*logit_gradients)(const float* logits, int64_t n, float log_sum, float d_logp, float entropy, float d_entropy,
                          T* d);
  /// p = e^(scale (s − highest)) for columns within [low, high), else 0; returns the sum.
  float (*attention_weights)(const float* s, int64_t low, int64_t high, float scale, float highest, T* p);
  /// p = e^(scale s − log_sum) and ds = p (dp − d) scale within [low, high), else 0.
  void (*score_gradients)(const float* s, const float* dp, int64_t low, int64_t high, float scale, float log_sum,
                          float d, T* p, T* ds);
  /// The scores of `group` queries, which share a head of keys, over a page of them: rows of `stride` numbers.
  void (*page_scores)(const T* q, int64_t group, const T* keys, int64_t head_dim, float* scores, int64_t stride);
  /// As attention_weights, over n columns, a multiple of a page's.
  float (*page_weights)(const float* s, int64_t n, int64_t low, int64_t high, float scale, float highest, T* p);
  /// A page of values summed by each query's weights (rows of `stride` numbers) onto the rows of out.
  void (*page_sum)(const T* weights, int64_t stride, int64_t group, const T* values, int64_t head_dim, float* out);
};

/// What does not depend on an element type.
struct FlatRows {
  /// `place` is where the first of these numbers stands in its tensor.
  void (*adamw)(float* master, const float* gradient, float* first, float* second, bf16* leaf, uint32_t place,
                int64_t n, const AdamW& options);
  /// Weights as bf16; see round_at.
  void (*round_weights)(const float* x, uint32_t place, int64_t n, bf16* out);
  double (*square_sum)(const float* x, int64_t n);
  void (*update)(const float* logits, int64_t n, Running* running);
  float (*highest)(const float* x, int64_t low, int64_t high, float highest);
  /// out = e^(scale (x − highest)), and the sum of these.
  void (*exponentials)(const float* x, int64_t n, float scale, float highest, float* out);
  float (*exp_sum)(const float* x, int64_t n, float scale, float highest);
  /// out[2 j], out[2 j + 1] = a[j], b[j].
  void (*interleave)(const uint16_t* a, const uint16_t* b, int64_t n, uint16_t* out);
  /// The same of numbers that are rounded to the nearest on the way.
  void (*interleave_rounded)(const float* a, const float* b, int64_t n, bf16* out);
};

template <typename T>
const Rows<T>& rows();
const FlatRows& flat_rows();

}  // namespace arriero

// The output layer fused with log-softmax: statistics of each row's target, and the gradient back,
// without the logits of the batch. See policy/src/head.rs for the equations.
#pragma once

#include "common.h"

namespace arriero {

/// For rows h [m, k] and the output matrix w [v, k]: the target's logit, log Σ exp of the logits, the
/// entropy of their softmax and the highest logit, f32 [m] each.
template <typename T>
void head_forward(const T* h, int64_t m, int64_t k, const T* w, int64_t v, const int64_t* targets, float* target_logits,
                  float* log_sums, float* entropies, float* highest);

/// dh [m, k], and dw [v, k] += (where it is wanted), from the gradients of the targets' log-probabilities
/// and (where not null) of the entropies.
template <typename T>
void head_backward(const T* h, int64_t m, int64_t k, const T* w, int64_t v, const int64_t* targets,
                   const float* log_sums, const float* entropies, const float* d_logps, const float* d_entropies, T* dh,
                   float* dw);

}  // namespace arriero

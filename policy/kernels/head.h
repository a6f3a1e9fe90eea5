// The output layer fused with log-softmax: statistics of each row's target, and the gradient back,
// without the logits of the batch. See policy/src/head.rs for the equations.
#pragma once

#include "gemm.h"

namespace arriero {

/// For rows h [m, k] and the output matrix w [v, k]: the target's logit, log Σ exp of the logits, the
/// entropy of their softmax and the highest logit, f32 [m] each.
void head_forward(const Operand& h, const Matrix& w, int64_t v, const int64_t* targets, float* target_logits, float* log_sums,
                  float* entropies, float* highest);

/// dh [m, k], and dw [v, k] += (where it is wanted), from the gradients of the targets' log-probabilities
/// and (where not null) of the entropies. `rows` are h's, which is multiplied as T on the way back.
template <typename T>
void head_backward(const Operand& h, const float* rows, const float* w, int64_t v, const int64_t* targets,
                   const float* log_sums, const float* entropies, const float* d_logps, const float* d_entropies, float* dh,
                   float* dw);

}  // namespace arriero

// Tokens drawn from logits.
#pragma once

#include <cstdint>

namespace arriero {

/// A row that wants a token: which row of the logits it reads, the factor of the logits (0: take the first of the
/// highest) and a uniform number.
struct Wanted {
  int64_t source;
  float scale;
  double uniform;
};

/// The token, and its log-probability under the softmax of the logits and of the scaled logits (0 where the first of
/// the highest was taken).
struct Drawn {
  int64_t token;
  float logp, sampled_logp;
};

/// Draws for each row from logits [_, vocabulary].
void draw(const float* logits, int64_t vocabulary, const Wanted* wanted, int64_t rows, Drawn* drawn);

}  // namespace arriero

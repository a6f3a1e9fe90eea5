// Attention over packed trees, and over the pages of a decoding batch. Nothing is padded but the edges
// of blocks, and nothing is stored but one number a row and head for the backward.
#pragma once

#include "common.h"

namespace arriero {

/// Consecutive tokens of the flat axis in causal order: a prompt, or a branch that sees its prompt too.
struct Segment {
  int64_t start;   // on the flat axis
  int64_t length;
};

/// A prompt, then its branches.
using TreeLayout = std::vector<Segment>;

struct AttentionShape {
  int64_t heads, kv_heads, head_dim;
  float scale;
  /// Tokens that a token sees, itself included; 0 for all.
  int64_t window;
};

/// out [tokens, heads * head_dim] and log_sums [tokens, heads] (log Σ exp of a row's scores) from
/// qkv [tokens, (heads + 2 kv_heads) * head_dim]: queries, keys, values, already rotated; multiplied as they are, or as
/// fixed-point numbers.
void attention_forward(const float* qkv, const std::vector<TreeLayout>& trees, const AttentionShape& shape, bool fixed,
                       float* out, float* log_sums);

/// d_qkv from d_out, multiplied as T; every token belongs to a tree, so that all of d_qkv is written.
template <typename T>
void attention_backward(const T* d_out, const T* qkv, const T* out, const float* log_sums,
                        const std::vector<TreeLayout>& trees, const AttentionShape& shape, float* d_qkv);

/// A layer's pages, [pages][kv_heads][2][page_tokens * head_dim]: keys as [head_dim / pair][page_tokens][pair],
/// values as [page_tokens / pair][head_dim][pair], which is how the products want them.
template <typename T>
void page_write(const T* qkv, int64_t tokens, const AttentionShape& shape, const int64_t* slots, T* pages);

/// out [sequences, heads * head_dim] of one query each; `tables` [sequences, table_width] names the pages of a
/// sequence, `lengths` its tokens, the query's own included.
template <typename T>
void page_attention(const T* qkv, int64_t sequences, const AttentionShape& shape, const T* pages,
                    const int64_t* tables, int64_t table_width, const int64_t* lengths, T* out);

}  // namespace arriero

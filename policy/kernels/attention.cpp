#include "attention.h"

#include <cmath>

#include "gemm.h"

namespace arriero {

namespace {

// Blocks of key columns never straddle segments; the columns past a segment's end are masked.

/// Query positions of a block. All heads that share a key head stand in it, position by position.
constexpr int64_t positions = 32;

/// A block of key columns as a query block sees it.
struct Block {
  int64_t index;  // of the tree's packed blocks
  int64_t first;  // position of its first key in its segment
  bool own;       // of the query's own segment, else of the prompt
};

struct Tree {
  const TreeLayout* segments;
  std::vector<int64_t> first_block;  // of each segment; then their number
  int64_t start, tokens;

  explicit Tree(const TreeLayout& layout) : segments(&layout), start(layout[0].start), tokens(0) {
    int64_t blocks = 0;
    for (const Segment& segment : layout) {
      first_block.push_back(blocks);
      blocks += (segment.length + columns - 1) / columns;
      tokens += segment.length;
    }
    first_block.push_back(blocks);
  }
  int64_t blocks() const { return first_block.back(); }
};

/// Query positions [from, from + count) of a segment of a tree.
struct QueryBlock {
  const Tree* tree;
  size_t segment;
  int64_t from, count;

  bool in_prompt() const { return segment == 0; }
  int64_t token() const { return (*tree->segments)[segment].start + from; }
  /// Position in the sequence of the first query.
  int64_t position() const { return from + (in_prompt() ? 0 : (*tree->segments)[0].length); }

  std::vector<Block> blocks(int64_t window) const {
    std::vector<Block> seen;
    const int64_t prompt = (*tree->segments)[0].length;
    if (!in_prompt()) {
      for (int64_t first = 0; first < prompt; first += columns) {
        if (window && first + columns <= position() - window + 1) continue;
        seen.push_back({first / columns, first, false});
      }
    }
    for (int64_t first = 0; first < from + count; first += columns) {
      if (window && first + columns <= from - window + 1) continue;
      seen.push_back({tree->first_block[segment] + first / columns, first, true});
    }
    return seen;
  }

  /// Which columns [low, high) of a block the query at `position` (counted from `from`) sees.
  void range(const Block& block, int64_t offset, int64_t window, int64_t* low, int64_t* high) const {
    const int64_t prompt = (*tree->segments)[0].length;
    const int64_t end = block.own ? from + offset + 1 : prompt;
    const int64_t begin = window ? (block.own ? from : position()) + offset - window + 1 : 0;
    *low = std::clamp<int64_t>(begin - block.first, 0, columns);
    *high = std::clamp<int64_t>(end - block.first, *low, columns);
  }
};

std::vector<Tree> plan(const std::vector<TreeLayout>& layouts) {
  std::vector<Tree> trees;
  for (const TreeLayout& layout : layouts) trees.emplace_back(layout);
  return trees;
}

std::vector<QueryBlock> query_blocks(const Tree& tree) {
  std::vector<QueryBlock> found;
  for (size_t segment = 0; segment < tree.segments->size(); segment++) {
    const int64_t length = (*tree.segments)[segment].length;
    for (int64_t from = 0; from < length; from += positions) {
      found.push_back({&tree, segment, from, std::min(positions, length - from)});
    }
  }
  return found;
}

/// Gathers the row_count (position by position, `group` heads each) of a query block: contiguous
/// [row_count, head_dim], row_count past the end 0 up to `padded`.
template <typename T>
void gather(const T* from, int64_t ld, int64_t token, int64_t count, int64_t width, int64_t padded, T* out) {
  for (int64_t i = 0; i < count; i++) std::memcpy(static_cast<void*>(out + i * width), from + (token + i) * ld, width * sizeof(T));
  std::fill(out + count * width, out + padded * width, T{});
}

/// Query positions are padded to this, so that few microkernels are generated.
int64_t padded_count(int64_t count) { return round_up(count, 8); }

/// Calls work(block, first token, tokens) for each block of key columns of a tree.
template <typename Work>
void each_block(const Tree& tree, const Work& work) {
  for (size_t segment = 0; segment < tree.segments->size(); segment++) {
    const auto [start, length] = (*tree.segments)[segment];
    for (int64_t first = 0; first < length; first += columns) {
      work(tree.first_block[segment] + first / columns, start + first, std::min(columns, length - first));
    }
  }
}

/// What the blocks of keys and of values are to the products of f32, and these products.
struct WideBlocks {
  int64_t head_dim, kv_heads, count;
  at::Tensor keys = at::empty({kv_heads, count, columns * head_dim}, at::kFloat);
  at::Tensor values = at::empty_like(keys);
  /// From one row of sums to the next.
  int64_t sums_ld() const { return head_dim; }

  void pack(int64_t head, int64_t block, const float* key, const float* value, int64_t length, int64_t ld) {
    pack_transposed(key, length, head_dim, ld, columns, out<float>(keys) + place(head, block));
    pack_rows(value, length, head_dim, ld, columns, head_dim, out<float>(values) + place(head, block));
  }
  struct Queries {
    const float* rows;
  };
  Queries queries(const float* rows, int64_t) const { return {rows}; }
  void scores(const Queries& q, int64_t row_count, int64_t head, int64_t block, float* scores) const {
    microkernel(row_count, columns, head_dim, q.rows, head_dim, in<float>(keys) + place(head, block), columns, scores,
                columns, false);
  }
  void sum(const float* weights, int64_t row_count, int64_t head, int64_t block, float* sums, bool add) const {
    microkernel(row_count, head_dim, columns, weights, columns, in<float>(values) + place(head, block), head_dim, sums,
                head_dim, add);
  }

 private:
  int64_t place(int64_t head, int64_t block) const { return (head * count + block) * columns * head_dim; }
};

/// The same to products of fixed-point numbers.
struct FixedBlocks {
  int64_t head_dim, kv_heads, count;
  int64_t depth = round_up(head_dim, fixed_depth), width = round_up(head_dim, 16);
  at::Tensor keys = at::empty({kv_heads, count, columns * depth}, at::kShort);
  at::Tensor key_scales = at::empty({kv_heads, count, columns * (depth / fixed_depth)}, at::kFloat);
  at::Tensor values = at::empty({kv_heads, count, columns * width}, at::kShort);
  at::Tensor value_scales = at::empty({kv_heads, count, width}, at::kFloat);
  int64_t sums_ld() const { return width; }

  void pack(int64_t head, int64_t block, const float* key, const float* value, int64_t length, int64_t ld) {
    fix_transposed(key, length, head_dim, ld, columns, at<int16_t>(keys, head, block), at<float>(key_scales, head, block));
    fixed_point()->fix_columns(value, length, head_dim, ld, columns, width, at<int16_t>(values, head, block),
                               at<float>(value_scales, head, block));
  }
  struct Queries {
    const int16_t* numbers;
    const float* scales;
  };
  Queries queries(const float* rows, int64_t row_count) const {
    int16_t* numbers = scratch<int16_t, 22>(row_count * depth);
    float* scales = scratch<float, 112>(row_count * depth / fixed_depth);
    for (int64_t i = 0; i < row_count; i++) {
      fixed_point()->fix(rows + i * head_dim, head_dim, fixed_depth, row_limit, numbers + i * fixed_depth,
                         row_count * fixed_depth, scales + i, row_count);
    }
    return {numbers, scales};
  }
  void scores(const Queries& q, int64_t row_count, int64_t head, int64_t block, float* scores) const {
    fixed_point()->multiply(row_count, columns, fixed_depth, depth / fixed_depth, q.numbers, q.scales, row_count,
                            at<int16_t>(keys, head, block), at<float>(key_scales, head, block), nullptr, scores, scores, columns);
  }
  void sum(const float* weights, int64_t row_count, int64_t head, int64_t block, float* sums, bool add) const {
    int16_t* numbers = scratch<int16_t, 23>(row_count * columns);
    float* scales = scratch<float, 113>(row_count);
    fixed_point()->fix(weights, row_count * columns, columns, row_limit, numbers, columns, scales, 1);
    fixed_point()->multiply(row_count, width, columns, 1, numbers, scales, row_count, at<int16_t>(values, head, block),
                            at<float>(value_scales, head, block), add ? sums : nullptr, sums, sums, width);
  }

 private:
  template <typename N>
  N* at(const at::Tensor& blocks, int64_t head, int64_t block) const {
    return out<N>(blocks) + (head * count + block) * blocks.size(2);
  }
};

/// attention_forward for one sort of blocks.
template <typename Blocks>
void attend(const float* qkv, const std::vector<TreeLayout>& layouts, const AttentionShape& shape, float* out,
            float* log_sums) {
  const auto [heads, kv_heads, head_dim, scale, window] = shape;
  const int64_t group = heads / kv_heads, ld = (heads + 2 * kv_heads) * head_dim;
  const std::vector<Tree> trees = plan(layouts);
  std::vector<QueryBlock> queries;
  std::vector<int64_t> offsets;  // of each tree's blocks
  int64_t total_blocks = 0;
  for (const Tree& tree : trees) {
    for (const QueryBlock& block : query_blocks(tree)) queries.push_back(block);
    offsets.push_back(total_blocks);
    total_blocks += tree.blocks();
  }
  Blocks blocks{head_dim, kv_heads, total_blocks};
  const int64_t tree_count = static_cast<int64_t>(trees.size()), key_at = heads * head_dim, value_at = key_at + kv_heads * head_dim;
  each_task(tree_count * kv_heads, [&](int64_t task) {
    const int64_t head = task / tree_count, index = task % tree_count;
    each_block(trees[index], [&](int64_t block, int64_t token, int64_t length) {
      const float* row = qkv + token * ld + head * head_dim;
      blocks.pack(head, offsets[index] + block, row + key_at, row + value_at, length, ld);
    });
  });
  const int64_t query_count = static_cast<int64_t>(queries.size());
  each_task(query_count * kv_heads, [&](int64_t task) {
    // Later blocks see more keys: the longest first.
    const int64_t head = task % kv_heads;
    const QueryBlock& query = queries[query_count - 1 - task / kv_heads];
    const int64_t offset_of_tree = offsets[query.tree - trees.data()];
    const std::vector<Block> seen = query.blocks(window);
    const int64_t count = static_cast<int64_t>(seen.size());
    const int64_t padded = padded_count(query.count), row_count = padded * group;
    float* rows_of_q = scratch<float, 2>(row_count * head_dim);
    gather(qkv + head * group * head_dim, ld, query.token(), query.count, group * head_dim, padded, rows_of_q);
    const auto q = blocks.queries(rows_of_q, row_count);
    float* scores = scratch<float, 103>(count * row_count * columns);
    float* weights = scratch<float, 4>(count * row_count * columns);
    float* sums = scratch<float, 104>(row_count * blocks.sums_ld());
    for (int64_t b = 0; b < count; b++) {
      blocks.scores(q, row_count, head, offset_of_tree + seen[b].index, scores + b * row_count * columns);
    }
    std::vector<float> totals(row_count, 1.0f);
    for (int64_t row = 0; row < row_count; row++) {
      // A padded row is given its last real neighbour's range; nobody reads it.
      const int64_t offset = std::min(row / group, query.count - 1);
      float highest = -INFINITY, total = 0;
      for (int64_t b = 0; b < count; b++) {
        int64_t low, high;
        query.range(seen[b], offset, window, &low, &high);
        highest = flat_rows().highest(scores + (b * row_count + row) * columns, low, high, highest);
      }
      for (int64_t b = 0; b < count; b++) {
        int64_t low, high;
        query.range(seen[b], offset, window, &low, &high);
        const int64_t at_row = (b * row_count + row) * columns;
        total += rows<float>().attention_weights(scores + at_row, low, high, scale, highest, weights + at_row);
      }
      totals[row] = total;
      if (row < query.count * group) {
        log_sums[(query.token() + row / group) * heads + head * group + row % group] =
            highest * scale + std::log(total);
      }
    }
    for (int64_t b = 0; b < count; b++) {
      blocks.sum(weights + b * row_count * columns, row_count, head, offset_of_tree + seen[b].index, sums, b > 0);
    }
    for (int64_t row = 0; row < query.count * group; row++) {
      const int64_t target = (query.token() + row / group) * heads + head * group + row % group;
      rows<float>().scale(sums + row * blocks.sums_ld(), 1.0f / totals[row], head_dim, out + target * head_dim);
    }
  });
}

}  // namespace

void attention_forward(const float* qkv, const std::vector<TreeLayout>& layouts, const AttentionShape& shape, bool fixed,
                       float* out, float* log_sums) {
  fixed ? attend<FixedBlocks>(qkv, layouts, shape, out, log_sums) : attend<WideBlocks>(qkv, layouts, shape, out, log_sums);
}

template <typename T>
void attention_backward(const T* d_out, const T* qkv, const T* out, const float* log_sums,
                        const std::vector<TreeLayout>& layouts, const AttentionShape& shape, float* d_qkv) {
  const auto [heads, kv_heads, head_dim, scale, window] = shape;
  const int64_t group = heads / kv_heads, ld = (heads + 2 * kv_heads) * head_dim;
  const std::vector<Tree> trees = plan(layouts);
  // A tree and a key head are one task, the largest trees first.
  std::vector<int64_t> order(trees.size());
  for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<int64_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return trees[a].tokens > trees[b].tokens; });
  each_task(static_cast<int64_t>(trees.size()) * kv_heads, [&](int64_t task) {
    const int64_t head = task % kv_heads;
    const Tree& tree = trees[order[task / kv_heads]];
    const int64_t size = tree.blocks() * columns * head_dim, most_rows = positions * group;
    const T* key_rows = qkv + (heads + head) * head_dim;
    const T* value_rows = key_rows + kv_heads * head_dim;
    T* keys_turned = scratch<T, 2>(size);
    T* keys = scratch<T, 4>(size);
    T* values_turned = scratch<T, 5>(size);
    each_block(tree, [&](int64_t block, int64_t token, int64_t length) {
      const T *key = key_rows + token * ld, *value = value_rows + token * ld;
      const int64_t at = block * columns * head_dim;
      pack_transposed(key, length, head_dim, ld, columns, keys_turned + at);
      pack_rows(key, length, head_dim, ld, columns, head_dim, keys + at);
      pack_transposed(value, length, head_dim, ld, columns, values_turned + at);
    });
    float* d_keys = scratch<float, 105>(size);
    float* d_values = scratch<float, 106>(size);
    std::fill_n(d_keys, size, 0.0f);
    std::fill_n(d_values, size, 0.0f);
    T* q = scratch<T, 6>(most_rows * head_dim);
    T* d_o = scratch<T, 7>(most_rows * head_dim);
    T* q_packed = scratch<T, 8>(most_rows * head_dim);
    T* d_o_packed = scratch<T, 9>(most_rows * head_dim);
    float* s = scratch<float, 103>(most_rows * columns);
    float* dp = scratch<float, 104>(most_rows * columns);
    T* p = scratch<T, 10>(most_rows * columns);
    T* ds = scratch<T, 11>(most_rows * columns);
    T* turned = scratch<T, 12>(most_rows * columns);
    float* d_q = scratch<float, 107>(most_rows * head_dim);
    std::vector<float> deltas(most_rows);
    for (const QueryBlock& query : query_blocks(tree)) {
      const int64_t padded = padded_count(query.count), row_count = padded * group;
      gather(qkv + head * group * head_dim, ld, query.token(), query.count, group * head_dim, padded, q);
      gather(d_out + head * group * head_dim, heads * head_dim, query.token(), query.count, group * head_dim, padded, d_o);
      pack_rows(q, row_count, head_dim, head_dim, row_count, head_dim, q_packed);
      pack_rows(d_o, row_count, head_dim, head_dim, row_count, head_dim, d_o_packed);
      const auto number = [&](int64_t row) {
        return (query.token() + row / group) * heads + head * group + row % group;
      };
      for (int64_t row = 0; row < query.count * group; row++) {
        deltas[row] = rows<T>().dot(d_o + row * head_dim, out + number(row) * head_dim, head_dim);
      }
      bool first = true;
      for (const Block& block : query.blocks(window)) {
        const int64_t at = block.index * columns * head_dim;
        microkernel(row_count, columns, head_dim, q, head_dim, keys_turned + at, columns, s, columns, false);
        microkernel(row_count, columns, head_dim, d_o, head_dim, values_turned + at, columns, dp, columns, false);
        for (int64_t row = 0; row < row_count; row++) {
          int64_t low = 0, high = 0;
          const bool real = row < query.count * group;
          if (real) query.range(block, row / group, window, &low, &high);
          rows<T>().score_gradients(s + row * columns, dp + row * columns, low, high, scale, real ? log_sums[number(row)] : 0.0f,
                          real ? deltas[row] : 0.0f, p + row * columns, ds + row * columns);
        }
        microkernel(row_count, head_dim, columns, ds, columns, keys + at, head_dim, d_q, head_dim, !first);
        transpose(ds, row_count, columns, columns, row_count, turned);
        microkernel(columns, head_dim, row_count, turned, row_count, q_packed, head_dim, d_keys + at, head_dim, true);
        transpose(p, row_count, columns, columns, row_count, turned);
        microkernel(columns, head_dim, row_count, turned, row_count, d_o_packed, head_dim, d_values + at, head_dim, true);
        first = false;
      }
      for (int64_t i = 0; i < query.count; i++) {
        float* target = d_qkv + (query.token() + i) * ld + head * group * head_dim;
        std::memcpy(target, d_q + i * group * head_dim, group * head_dim * sizeof(float));
      }
    }
    for (size_t segment = 0; segment < tree.segments->size(); segment++) {
      const auto [start, length] = (*tree.segments)[segment];
      for (int64_t i = 0; i < length; i++) {
        const int64_t at = (tree.first_block[segment] * columns + i) * head_dim;
        float* target = d_qkv + (start + i) * ld + (heads + head) * head_dim;
        std::memcpy(target, d_keys + at, head_dim * sizeof(float));
        std::memcpy(target + kv_heads * head_dim, d_values + at, head_dim * sizeof(float));
      }
    }
  });
}

template <typename T>
void page_write(const T* qkv, int64_t tokens, const AttentionShape& shape, const int64_t* slots, T* pages) {
  const auto [heads, kv_heads, head_dim, scale, window] = shape;
  const int64_t ld = (heads + 2 * kv_heads) * head_dim, side = page_tokens * head_dim;
  at::parallel_for(0, tokens, 32, [&, heads = heads, kv_heads = kv_heads, head_dim = head_dim](int64_t from, int64_t to) {
   for (int64_t token = from; token < to; token++) {
    const int64_t page = slots[token] / page_tokens, place = slots[token] % page_tokens;
    for (int64_t head = 0; head < kv_heads; head++) {
      const T* key = qkv + token * ld + (heads + head) * head_dim;
      const T* value = key + kv_heads * head_dim;
      T* keys = pages + (page * kv_heads + head) * 2 * side;
      T* values = keys + side;
      for (int64_t d = 0; d < head_dim; d++) {
        keys[(d / pair<T> * page_tokens + place) * pair<T> + d % pair<T>] = key[d];
        values[(place / pair<T> * head_dim + d) * pair<T> + place % pair<T>] = value[d];
      }
    }
   }
  });
}

template <typename T>
void page_attention(const T* qkv, int64_t sequences, const AttentionShape& shape, const T* pages,
                    const int64_t* tables, int64_t table_width, const int64_t* lengths, T* out) {
  const auto [heads, kv_heads, head_dim, scale, window] = shape;
  const int64_t group = heads / kv_heads, ld = (heads + 2 * kv_heads) * head_dim, side = page_tokens * head_dim;
  each_task(sequences, [&](int64_t sequence) {
    const int64_t length = lengths[sequence], begin = window ? std::max<int64_t>(0, length - window) : 0;
    const int64_t first = begin / page_tokens, last = (length + page_tokens - 1) / page_tokens;
    const int64_t n = (last - first) * page_tokens;
    const int64_t low = begin - first * page_tokens, high = length - first * page_tokens;
    float* scores = scratch<float, 103>(group * n);
    T* weights = scratch<T, 4>(group * n);
    float* sums = scratch<float, 104>(group * head_dim);
    float* totals = scratch<float, 105>(group);
    for (int64_t head = 0; head < kv_heads; head++) {
      const T* q = qkv + sequence * ld + head * group * head_dim;
      const auto page = [&](int64_t index) {
        return pages + (tables[sequence * table_width + index] * kv_heads + head) * 2 * side;
      };
      for (int64_t index = first; index < last; index++) {
        rows<T>().page_scores(q, group, page(index), head_dim, scores + (index - first) * page_tokens, n);
      }
      for (int64_t member = 0; member < group; member++) {
        const float* own = scores + member * n;
        const float highest = flat_rows().highest(own, low, high, -INFINITY);
        totals[member] = rows<T>().page_weights(own, n, low, high, scale, highest, weights + member * n);
      }
      std::fill_n(sums, group * head_dim, 0.0f);
      for (int64_t index = first; index < last; index++) {
        rows<T>().page_sum(weights + (index - first) * page_tokens, n, group, page(index) + side, head_dim, sums);
      }
      for (int64_t member = 0; member < group; member++) {
        T* target = out + (sequence * heads + head * group + member) * head_dim;
        rows<T>().scale(sums + member * head_dim, 1.0f / totals[member], head_dim, target);
      }
    }
  });
}

#define ARRIERO_INSTANTIATE(T)                                                                                     \
  template void attention_backward<T>(const T*, const T*, const T*, const float*, const std::vector<TreeLayout>&,  \
                                      const AttentionShape&, float*);                                              \
  template void page_write<T>(const T*, int64_t, const AttentionShape&, const int64_t*, T*);                       \
  template void page_attention<T>(const T*, int64_t, const AttentionShape&, const T*, const int64_t*, int64_t,     \
                                  const int64_t*, T*);
ARRIERO_INSTANTIATE(float)
ARRIERO_INSTANTIATE(bf16)

}  // namespace arriero

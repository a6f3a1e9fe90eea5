#include "draw.h"

#include <cmath>

#include "common.h"

namespace arriero {
namespace {

/// Logits whose weights are summed before they are looked at one by one.
constexpr int64_t block = 256;

/// A row of logits, its weights e^(scale (x − highest)) summed in blocks.
struct Row {
  const float* logits;
  int64_t vocabulary;
  float highest, scale;
  float* sums;
  double total = 0;

  int64_t length(int64_t start) const { return std::min(block, vocabulary - start); }

  void sum() {
    for (int64_t start = 0; start < vocabulary; start += block) {
      const float weight = flat_rows().exp_sum(logits + start, length(start), scale, highest);
      sums[start / block] = weight;
      total += weight;
    }
  }

  /// The token at which the running sum of weights passes `target`; the last one of any weight where rounding keeps
  /// it from passing.
  int64_t walk(double target) const {
    int64_t chosen = 0;
    double before = 0, sum = 0;
    for (int64_t start = 0; start < vocabulary && sum <= target; start += block) {
      const float weight = sums[start / block];
      if (weight > 0) chosen = start, before = sum;
      sum += weight;
    }
    float weights[block];
    flat_rows().exponentials(logits + chosen, length(chosen), scale, highest, weights);
    int64_t last = chosen;
    for (int64_t j = 0; j < length(chosen) && before <= target; j++) {
      if (weights[j] > 0) last = chosen + j;
      before += weights[j];
    }
    return last;
  }
};

}  // namespace

void draw(const float* logits, int64_t vocabulary, const Wanted* wanted, int64_t count, Drawn* drawn) {
  each_task(count, [&](int64_t number) {
    const auto [source, scale, uniform] = wanted[number];
    const float* x = logits + source * vocabulary;
    const float highest = flat_rows().highest(x, 0, vocabulary, -INFINITY);
    float* sums = scratch<float, 108>((vocabulary + block - 1) / block);
    Row row{x, vocabulary, highest, 1.0f, sums};
    row.sum();
    const double log_total = std::log(row.total);
    int64_t token = 0;
    float sampled = 0;
    if (scale == 0) {
      while (token < vocabulary && x[token] != highest) token++;
      token = token < vocabulary ? token : 0;
    } else {
      if (scale != 1) {
        row = Row{x, vocabulary, highest, scale, sums};
        row.sum();
      }
      token = row.walk(uniform * row.total);
      sampled = static_cast<float>((x[token] - highest) * scale - std::log(row.total));
    }
    drawn[number] = {token, static_cast<float>(x[token] - highest - log_total), sampled};
  });
}

}  // namespace arriero

#include "head.h"

#include <array>
#include <cmath>

namespace arriero {

namespace {

/// Rows of a forward task: packing a panel of the output matrix is paid once for them.
constexpr int64_t forward_rows = 1024;
/// Rows and vocabulary entries whose logits' gradients exist at one time in a thread.
constexpr int64_t backward_rows = 512;
constexpr int64_t backward_entries = 2 * panel;

}  // namespace

void head_forward(const Operand& h, const Matrix& w, int64_t v, const int64_t* targets, float* target_logits, float* log_sums,
                  float* entropies, float* highest) {
  const int64_t m = h.m;
  // Few rows are spread over the threads all the same.
  const int64_t share = round_up((m + at::get_num_threads() - 1) / at::get_num_threads(), block_rows);
  const int64_t task_rows = std::max(block_rows, std::min(forward_rows, share));
  each_task((m + task_rows - 1) / task_rows, [&](int64_t task) {
    const int64_t first = task * task_rows, count_rows = std::min(task_rows, m - first);
    std::vector<Running> running(count_rows, Running{-INFINITY, 0, 0});
    float* logits = scratch<float, 103>(block_rows * panel);
    for (int64_t entry = 0; entry < v; entry += panel) {
      const int64_t width = std::min(panel, v - entry);
      const Panel b = w.packed ? w.packed->at(entry / panel) : pack_panel(h, w.weight + entry * h.k, width, 0, 1);
      for (int64_t block = 0; block < count_rows; block += block_rows) {
        const int64_t count = std::min(block_rows, count_rows - block);
        multiply_rows(h, first + block, count, b, logits);
        for (int64_t i = 0; i < count; i++) {
          const int64_t row = first + block + i;
          flat_rows().update(logits + i * panel, width, &running[block + i]);
          if (targets[row] >= entry && targets[row] < entry + width) {
            target_logits[row] = logits[i * panel + targets[row] - entry];
          }
        }
      }
    }
    for (int64_t i = 0; i < count_rows; i++) {
      const Running& r = running[i];
      const float log_sum = std::log(r.sum);
      log_sums[first + i] = r.highest + log_sum;
      entropies[first + i] = log_sum - r.moment / r.sum;
      highest[first + i] = r.highest;
    }
  });
}

template <typename T>
void head_backward(const Operand& h, const float* rows_of_h, const float* w, int64_t v, const int64_t* targets,
                   const float* log_sums, const float* entropies, const float* d_logps, const float* d_entropies, float* dh,
                   float* dw) {
  const int64_t m = h.m, k = h.k;
  const int64_t blocks = (v + backward_entries - 1) / backward_entries;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), blocks);
  const int64_t h_panels = (k + panel - 1) / panel;
  const int64_t chunk = std::min(backward_rows, round_up(m, depth_step));  // of whole blocks of padded rows
  const int64_t wide = h_panels * panel;
  // Each thread sums its share of dh aside; a fixed share, so that the sum has one order.
  at::Tensor shares = at::empty({threads, chunk, wide}, at::kFloat);
  at::Tensor packed_h = at::empty({h_panels, chunk, panel}, scalar_type<T>);
  T* h_rows = out<T>(packed_h);
  for (int64_t first = 0; first < m; first += chunk) {
    const int64_t count_rows = std::min(chunk, m - first), depth = round_up(count_rows, depth_step);
    each_task(h_panels, [&](int64_t index) {
      const int64_t column = index * panel;
      pack_rows(rows_of_h + first * k + column, count_rows, std::min(panel, k - column), k, depth, panel,
                h_rows + index * chunk * panel);
    });
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; thread++) {
        float* share = out<float>(shares) + thread * chunk * wide;
        std::memset(share, 0, chunk * wide * sizeof(float));
        T* w_rows = scratch<T, 4>(backward_entries * wide);
        float* logits = scratch<float, 103>(block_rows * panel);
        T* d = scratch<T, 5>(chunk * backward_entries);
        T* d_turned = scratch<T, 6>(chunk * backward_entries);
        for (int64_t block = thread; block < blocks; block += threads) {
          const int64_t entry = block * backward_entries, width = std::min(backward_entries, v - entry);
          std::array<Panel, backward_entries / panel> w_columns;
          for (int64_t i = 0; i * panel < width; i++) {
            const int64_t from = i * panel;
            w_columns[i] = pack_panel(h, w + (entry + from) * k, std::min(panel, width - from), i, w_columns.size());
          }
          for (int64_t index = 0; index < h_panels; index++) {
            const int64_t column = index * panel;
            pack_rows(w + entry * k + column, width, std::min(panel, k - column), k, backward_entries, panel,
                      w_rows + index * backward_entries * panel);
          }
          for (int64_t row = 0; row < count_rows; row += block_rows) {
            const int64_t count = std::min(block_rows, count_rows - row), padded = round_up(count, row_step);
            for (int64_t at = 0; at < backward_entries; at += panel) {
              const int64_t here = std::clamp<int64_t>(width - at, 0, panel);
              if (here > 0) multiply_rows(h, first + row, count, w_columns[at / panel], logits);
              for (int64_t i = 0; i < count; i++) {
                const int64_t index = first + row + i;
                T* into = d + (row + i) * backward_entries + at;
                rows<T>().logit_gradients(logits + i * panel, here, log_sums[index], d_logps[index],
                             d_entropies ? entropies[index] : 0.0f, d_entropies ? d_entropies[index] : 0.0f, into);
                std::fill(into + here, into + panel, T{});
                const int64_t target = targets[index] - entry - at;
                if (target >= 0 && target < here) {
                  // Anew in f32: where p is near 1 the two terms nearly cancel.
                  const float log_p = logits[i * panel + target] - log_sums[index];
                  const float p = std::exp(log_p);
                  float own = -std::expm1(log_p) * d_logps[index];
                  if (d_entropies) own -= p * (log_p + entropies[index]) * d_entropies[index];
                  rows<T>().scale(&own, 1.0f, 1, into + target);
                }
              }
            }
            for (int64_t index = 0; index < h_panels; index++) {
              microkernel(padded, panel, backward_entries, d + row * backward_entries, backward_entries,
                          w_rows + index * backward_entries * panel, panel, share + row * wide + index * panel, wide,
                          true);
            }
          }
          if (!dw) continue;
          transpose(d, count_rows, backward_entries, backward_entries, depth, d_turned);
          for (int64_t at = 0; at < width; at += block_rows) {
            const int64_t count = std::min(block_rows, width - at);
            for (int64_t index = 0; index < h_panels; index++) {
              const int64_t column = index * panel, here = std::min(panel, k - column);
              float* target = dw + (entry + at) * k + column;
              float* c = here == panel ? target : logits;
              microkernel(count, panel, depth, d_turned + at * depth, depth, h_rows + index * chunk * panel, panel, c,
                          here == panel ? k : panel, here == panel);
              for (int64_t i = 0; here < panel && i < count; i++) {
                for (int64_t j = 0; j < here; j++) target[i * k + j] += c[i * panel + j];
              }
            }
          }
        }
      }
    });
    at::parallel_for(0, count_rows, 16, [&](int64_t begin, int64_t end) {
      const float* share = in<float>(shares);
      std::vector<float> sums(k);
      for (int64_t i = begin; i < end; i++) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int64_t t = 0; t < threads; t++) rows<float>().add(share + (t * chunk + i) * wide, k, sums.data());
        std::memcpy(dh + (first + i) * k, sums.data(), k * sizeof(float));
      }
    });
  }
}

#define ARRIERO_INSTANTIATE(T)                                                                                     \
  template void head_backward<T>(const Operand&, const float*, const float*, int64_t, const int64_t*, const float*, \
                                 const float*, const float*, const float*, float*, float*);
ARRIERO_INSTANTIATE(float)
ARRIERO_INSTANTIATE(bf16)

}  // namespace arriero

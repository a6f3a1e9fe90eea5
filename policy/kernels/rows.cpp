// See rows.h. ARRIERO_ISA names the instruction set that this is compiled for.
#include "rows.h"

#include <bit>
#include <cstring>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace arriero {
namespace ARRIERO_ISA {
namespace {

inline float widen(float x) { return x; }
inline float widen(bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

template <typename T>
inline T narrow(float x);
template <>
inline float narrow<float>(float x) { return x; }
/// Rounds to the nearest, ties to even.
template <>
inline bf16 narrow<bf16>(float x) {
  uint32_t bits = std::bit_cast<uint32_t>(x);
  bits += 0x7fff + ((bits >> 16) & 1);
  return bf16{static_cast<uint16_t>(bits >> 16)};
}

/// Rounds a weight up where its lower half reaches the threshold of its place i, a hash that is uniform over [0, 65536),
/// else down. So rounding has no bias over many weights, the same weight always rounds alike, and a small change moves
/// as many of them by a unit as make up its size.
inline bf16 round_at(float x, uint32_t i) {
  uint32_t hash = i * 0x9e3779b1u;
  hash ^= hash >> 15;
  hash *= 0x85ebca77u;
  return bf16{static_cast<uint16_t>((std::bit_cast<uint32_t>(x) + (hash >> 16)) >> 16)};
}

/// e^x with a relative error below 2e-7 for x <= 88; 0 below -87. Cody and Waite's reduction, then a polynomial
/// on [-ln 2 / 2, ln 2 / 2].
inline float exponential(float x) {
  float clamped = x < -87.0f ? -87.0f : x;
  clamped = clamped > 88.0f ? 88.0f : clamped;
  const float n = __builtin_floorf(clamped * 1.44269504f + 0.5f);
  const float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float scale = std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  // A number that is none stays one.
  return x < -87.0f ? 0.0f : (x == x ? p * scale : x);
}

template <typename T>
void norm_scale(const float* x, const float* weight, float scale, int64_t n, T* y) {
#pragma omp simd
  for (int64_t j = 0; j < n; j++) y[j] = narrow<T>(x[j] * scale * weight[j]);
}

template <typename T>
void norm_backward(const T* dy, const float* beside, const float* x, const float* weight, float scale, int64_t n,
                   float* dx, float* weight_gradient) {
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t j = 0; j < n; j++) dot += widen(dy[j]) * weight[j] * x[j];
  const float shift = dot / static_cast<float>(n) * scale * scale;
  if (beside) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) dx[j] = scale * (widen(dy[j]) * weight[j] - x[j] * shift) + beside[j];
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) dx[j] = scale * (widen(dy[j]) * weight[j] - x[j] * shift);
  }
  if (weight_gradient) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) weight_gradient[j] += widen(dy[j]) * x[j] * scale;
  }
}

template <typename T>
void rotate(T* x, int64_t half, const float* cos, const float* sin, float direction) {
  T* y = x + half;
#pragma omp simd
  for (int64_t j = 0; j < half; j++) {
    const float a = widen(x[j]), b = widen(y[j]);
    x[j] = narrow<T>(a * cos[j] - b * sin[j] * direction);
    y[j] = narrow<T>(b * cos[j] + a * sin[j] * direction);
  }
}

template <typename T>
void rotate_sums(const float* x, int64_t half, const float* cos, const float* sin, T* out) {
#pragma omp simd
  for (int64_t j = 0; j < half; j++) {
    const float a = x[j], b = x[j + half];
    out[j] = narrow<T>(a * cos[j] - b * sin[j]);
    out[j + half] = narrow<T>(b * cos[j] + a * sin[j]);
  }
}

template <typename T>
void swiglu(const float* gate, const float* up, int64_t n, T* y) {
#pragma omp simd
  for (int64_t j = 0; j < n; j++) y[j] = narrow<T>(gate[j] / (1.0f + exponential(-gate[j])) * up[j]);
}

template <typename T>
void swiglu_backward(const T* dy, const T* gate, const T* up, int64_t n, T* d_gate, T* d_up) {
#pragma omp simd
  for (int64_t j = 0; j < n; j++) {
    const float g = widen(gate[j]), d = widen(dy[j]);
    const float sigmoid = 1.0f / (1.0f + exponential(-g));
    d_up[j] = narrow<T>(d * g * sigmoid);
    d_gate[j] = narrow<T>(d * widen(up[j]) * sigmoid * (1.0f + g * (1.0f - sigmoid)));
  }
}

template <typename T>
void add(const T* x, int64_t n, float* sums) {
#pragma omp simd
  for (int64_t j = 0; j < n; j++) sums[j] += widen(x[j]);
}

template <typename T>
void scale(const float* x, float factor, int64_t n, T* out) {
#pragma omp simd
  for (int64_t j = 0; j < n; j++) out[j] = narrow<T>(x[j] * factor);
}

template <typename T>
float dot(const T* a, const T* b, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; j++) sum += widen(a[j]) * widen(b[j]);
  return sum;
}

template <typename T>
void logit_gradients(const float* logits, int64_t n, float log_sum, float d_logp, float entropy, float d_entropy, T* d) {
#pragma omp simd
  for (int64_t j = 0; j < n; j++) {
    const float log_p = logits[j] - log_sum;
    d[j] = narrow<T>(-exponential(log_p) * (d_logp + (log_p + entropy) * d_entropy));
  }
}

template <typename T>
float attention_weights(const float* s, int64_t low, int64_t high, float scale, float highest, T* p) {
  float sum = 0;
  const int32_t from = static_cast<int32_t>(low), to = static_cast<int32_t>(high);
#pragma omp simd reduction(+ : sum)
  for (int32_t j = 0; j < columns; j++) {
    const float e = exponential((s[j] - highest) * scale), kept = (j >= from) & (j < to) ? e : 0.0f;
    sum += kept;
    p[j] = narrow<T>(kept);
  }
  return sum;
}

template <typename T>
void score_gradients(const float* s, const float* dp, int64_t low, int64_t high, float scale, float log_sum, float d,
                     T* p, T* ds) {
  const int32_t from = static_cast<int32_t>(low), to = static_cast<int32_t>(high);
#pragma omp simd
  for (int32_t j = 0; j < columns; j++) {
    const float e = exponential(s[j] * scale - log_sum), kept = (j >= from) & (j < to) ? e : 0.0f;
    p[j] = narrow<T>(kept);
    ds[j] = narrow<T>(kept * (dp[j] - d) * scale);
  }
}

template <typename T>
float page_weights(const float* s, int64_t n, int64_t low, int64_t high, float scale, float highest, T* p) {
  float sum = 0;
  const int32_t from = static_cast<int32_t>(low), to = static_cast<int32_t>(high), count = static_cast<int32_t>(n);
#pragma omp simd reduction(+ : sum)
  for (int32_t j = 0; j < count; j++) {
    const float e = exponential((s[j] - highest) * scale), kept = (j >= from) & (j < to) ? e : 0.0f;
    sum += kept;
    p[j] = narrow<T>(kept);
  }
  return sum;
}

void page_scores_of(const float* q, const float* keys, int64_t head_dim, float* scores) {
  float sums[page_tokens] = {};
  for (int64_t d = 0; d < head_dim; d++) {
#pragma omp simd
    for (int64_t j = 0; j < page_tokens; j++) sums[j] += q[d] * keys[d * page_tokens + j];
  }
  std::memcpy(scores, sums, sizeof(sums));
}

void page_sum_of(const float* weights, const float* values, int64_t head_dim, float* out) {
  for (int64_t t = 0; t < page_tokens; t++) {
#pragma omp simd
    for (int64_t j = 0; j < head_dim; j++) out[j] += weights[t] * values[t * head_dim + j];
  }
}

void page_scores_of(const bf16* q, const bf16* keys, int64_t head_dim, float* scores) {
  float sums[page_tokens] = {};
  for (int64_t d = 0; d < head_dim; d += 2) {
    const float first = widen(q[d]), second = widen(q[d + 1]);
    for (int64_t j = 0; j < page_tokens; j++) {
      const bf16* both = keys + d * page_tokens + 2 * j;
      sums[j] += first * widen(both[0]) + second * widen(both[1]);
    }
  }
  std::memcpy(scores, sums, sizeof(sums));
}

void page_sum_of(const bf16* weights, const bf16* values, int64_t head_dim, float* out) {
  for (int64_t t = 0; t < page_tokens; t += 2) {
    const float first = widen(weights[t]), second = widen(weights[t + 1]);
    for (int64_t j = 0; j < head_dim; j++) {
      const bf16* both = values + t * head_dim + 2 * j;
      out[j] += first * widen(both[0]) + second * widen(both[1]);
    }
  }
}

#ifdef __AVX512BF16__
inline __m512bh pair_of(const bf16* x) {
  int32_t both;
  std::memcpy(&both, x, sizeof(both));
  return (__m512bh)_mm512_set1_epi32(both);
}

inline __m512bh line_of(const bf16* x) { return (__m512bh)_mm512_loadu_si512(x); }

/// G queries at once, with two sums each: a product waits for its sum, and the others fill the time.
template <int G>
void page_scores_of(const bf16* q, const bf16* keys, int64_t head_dim, float* scores, int64_t stride) {
  __m512 even[G], odd[G];
  for (int g = 0; g < G; g++) even[g] = odd[g] = _mm512_setzero_ps();
  int64_t d = 0;
  for (; d + 4 <= head_dim; d += 4) {
    const __m512bh first = line_of(keys + d * page_tokens), second = line_of(keys + (d + 2) * page_tokens);
    for (int g = 0; g < G; g++) {
      even[g] = _mm512_dpbf16_ps(even[g], pair_of(q + g * head_dim + d), first);
      odd[g] = _mm512_dpbf16_ps(odd[g], pair_of(q + g * head_dim + d + 2), second);
    }
  }
  for (; d < head_dim; d += 2) {
    for (int g = 0; g < G; g++) {
      even[g] = _mm512_dpbf16_ps(even[g], pair_of(q + g * head_dim + d), line_of(keys + d * page_tokens));
    }
  }
  for (int g = 0; g < G; g++) _mm512_storeu_ps(scores + g * stride, _mm512_add_ps(even[g], odd[g]));
}

/// For a head_dim that is a multiple of 16.
template <int G>
void page_sum_of(const bf16* weights, int64_t stride, const bf16* values, int64_t head_dim, float* out) {
  for (int64_t column = 0; column < head_dim; column += 16) {
    __m512 sums[G];
    for (int g = 0; g < G; g++) sums[g] = _mm512_loadu_ps(out + g * head_dim + column);
    for (int64_t t = 0; t < page_tokens; t += 2) {
      const __m512bh line = line_of(values + t * head_dim + 2 * column);
      for (int g = 0; g < G; g++) sums[g] = _mm512_dpbf16_ps(sums[g], pair_of(weights + g * stride + t), line);
    }
    for (int g = 0; g < G; g++) _mm512_storeu_ps(out + g * head_dim + column, sums[g]);
  }
}
#endif

template <typename T>
void page_scores(const T* q, int64_t group, const T* keys, int64_t head_dim, float* scores, int64_t stride) {
  int64_t g = 0;
#ifdef __AVX512BF16__
  if constexpr (sizeof(T) == 2) {
    for (; g + 3 <= group; g += 3) page_scores_of<3>(q + g * head_dim, keys, head_dim, scores + g * stride, stride);
    if (g + 2 == group) page_scores_of<2>(q + g * head_dim, keys, head_dim, scores + g * stride, stride), g += 2;
    if (g + 1 == group) page_scores_of<1>(q + g * head_dim, keys, head_dim, scores + g * stride, stride), g += 1;
  }
#endif
  for (; g < group; g++) page_scores_of(q + g * head_dim, keys, head_dim, scores + g * stride);
}

template <typename T>
void page_sum(const T* weights, int64_t stride, int64_t group, const T* values, int64_t head_dim, float* out) {
  int64_t g = 0;
#ifdef __AVX512BF16__
  if constexpr (sizeof(T) == 2) {
    if (head_dim % 16 == 0) {
      for (; g + 3 <= group; g += 3) page_sum_of<3>(weights + g * stride, stride, values, head_dim, out + g * head_dim);
      if (g + 2 == group) page_sum_of<2>(weights + g * stride, stride, values, head_dim, out + g * head_dim), g += 2;
      if (g + 1 == group) page_sum_of<1>(weights + g * stride, stride, values, head_dim, out + g * head_dim), g += 1;
    }
  }
#endif
  for (; g < group; g++) page_sum_of(weights + g * stride, values, head_dim, out + g * head_dim);
}

void round_weights(const float* x, uint32_t place, int64_t n, bf16* out) {
  const uint32_t count = static_cast<uint32_t>(n);
#pragma omp simd
  for (uint32_t i = 0; i < count; i++) out[i] = round_at(x[i], place + i);
}

void adamw(float* master, const float* gradient, float* first, float* second, bf16* leaf, uint32_t place, int64_t n,
           const AdamW& options) {
  const AdamW o = options;
  const float keep = 1.0f - o.rate * o.decay, step = o.rate / o.correction1, inverse = 1.0f / o.correction2_sqrt;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const float g = gradient[i] * o.gradient_scale;
    const float m = first[i] + (g - first[i]) * (1.0f - o.beta1);
    const float v = second[i] * o.beta2 + g * g * (1.0f - o.beta2);
    first[i] = m;
    second[i] = v;
    master[i] = master[i] * keep - step * m / (__builtin_sqrtf(v) * inverse + o.eps);
  }
  if (leaf) round_weights(master, place, n, leaf);
}

double square_sum(const float* x, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += static_cast<double>(x[i]) * x[i];
  return sum;
}

float highest_of(const float* x, int64_t low, int64_t high, float highest) {
#pragma omp simd reduction(max : highest)
  for (int64_t j = low; j < high; j++) highest = x[j] > highest ? x[j] : highest;
  return highest;
}

void exponentials(const float* x, int64_t n, float scale, float highest, float* out) {
#pragma omp simd
  for (int64_t j = 0; j < n; j++) out[j] = exponential((x[j] - highest) * scale);
}

float exp_sum(const float* x, int64_t n, float scale, float highest) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; j++) sum += exponential((x[j] - highest) * scale);
  return sum;
}

void update(const float* logits, int64_t n, Running* running) {
  Running r = *running;
  const float highest = highest_of(logits, 0, n, logits[0]);
  if (highest > r.highest) {
    if (r.sum > 0) {
      const float shift = r.highest - highest, factor = exponential(shift);
      r.moment = factor * (r.moment + shift * r.sum);
      r.sum *= factor;
    }
    r.highest = highest;
  }
  float sum = 0, moment = 0;
  const float top = r.highest;
#pragma omp simd reduction(+ : sum, moment)
  for (int64_t j = 0; j < n; j++) {
    const float shifted = logits[j] - top, e = exponential(shifted);
    sum += e;
    // e is 0 where the logit is far below, −∞ included.
    moment += e * (shifted < -87.0f ? 0.0f : shifted);
  }
  r.sum += sum;
  r.moment += moment;
  *running = r;
}

void interleave(const uint16_t* a, const uint16_t* b, int64_t n, uint16_t* out) {
#pragma omp simd
  for (int64_t j = 0; j < n; j++) {
    out[2 * j] = a[j];
    out[2 * j + 1] = b[j];
  }
}

void interleave_rounded(const float* a, const float* b, int64_t n, bf16* out) {
#pragma omp simd
  for (int64_t j = 0; j < n; j++) {
    out[2 * j] = narrow<bf16>(a[j]);
    out[2 * j + 1] = narrow<bf16>(b[j]);
  }
}

template <typename T>
constexpr Rows<T> table = {norm_scale<T>,      norm_backward<T>, rotate<T>,       rotate_sums<T>,       swiglu<T>,
                           swiglu_backward<T>, add<T>,           scale<T>,        dot<T>,               logit_gradients<T>,
                           attention_weights<T>, score_gradients<T>, page_scores<T>, page_weights<T>,    page_sum<T>};

}  // namespace

extern const Rows<float> f32_rows;
extern const Rows<bf16> bf16_rows;
extern const FlatRows flat;
const Rows<float> f32_rows = table<float>;
const Rows<bf16> bf16_rows = table<bf16>;
const FlatRows flat = {adamw, round_weights, square_sum, update, highest_of, exponentials, exp_sum, interleave,
                       interleave_rounded};

}  // namespace ARRIERO_ISA
}  // namespace arriero

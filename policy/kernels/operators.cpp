// What Rust calls: tensors in, tensors out. Exceptions become messages.

#include <c10/core/CachingDeviceAllocator.h>

#include "autograd.h"
#include "draw.h"
#include "head.h"

namespace arriero {
namespace {

/// f32 weights as bf16, by the thresholds of rows.cpp.
Tensor rounded(const Tensor& x) {
  if (on_cpu(x)) {
    Tensor y = at::empty_like(x, x.options().dtype(at::kBFloat16));
    round_weights(in<float>(x), x.numel(), out<bf16>(y));
    return y;
  }
  constexpr int64_t low = 0xffffffff;
  Tensor hash = (at::arange(x.numel(), x.options().dtype(at::kLong)) * 0x9e3779b1LL).bitwise_and(low);
  hash = hash.bitwise_xor(hash.bitwise_right_shift(15));
  hash = (hash * 0x85ebca77LL).bitwise_and(low).bitwise_right_shift(16);
  const Tensor bits = x.view(at::kInt).flatten().to(at::kLong).bitwise_and(low) + hash;
  return bits.bitwise_right_shift(16).to(at::kShort).view(at::kBFloat16).view(x.sizes());
}

Tensor opt(const Tensor* tensor) { return tensor ? *tensor : Tensor(); }

std::vector<Tensor> list(const Tensor* const* tensors, int64_t count) {
  std::vector<Tensor> found;
  for (int64_t i = 0; i < count; i++) found.push_back(opt(tensors[i]));
  return found;
}

}  // namespace

/// Matrices as Rust gives them: `count` of each, of which all but the weights may be null.
struct MatricesGiven {
  const Tensor* const* weights;
  const Tensor* const* biases;
  const Tensor* const* weight_gradients;
  const Tensor* const* bias_gradients;
  int64_t count;
};

struct RotationGiven {
  const Tensor* positions;
  const Tensor* cos;
  const Tensor* sin;
  int64_t heads;
};

/// A matrix of pack_weight and its bias, which may be null.
struct PackedGiven {
  const Tensor* matrix;
  const Tensor* bias;

  template <typename T>
  Matrix<T> typed() const {
    return {in<T>(*matrix), in<T>(opt(bias))};
  }
};

namespace {

Matrices matrices(const MatricesGiven& given) {
  return {list(given.weights, given.count), list(given.biases, given.count), list(given.weight_gradients, given.count),
          list(given.bias_gradients, given.count)};
}

Rotation rotation_of(const RotationGiven* given) {
  return given ? Rotation{*given->positions, *given->cos, *given->sin, given->heads} : Rotation{};
}

/// Runs work; what it throws becomes a message for Rust, which frees it.
template <typename Work>
char* guarded(const Work& work) {
  try {
    work();
    return nullptr;
  } catch (const std::exception& error) {
    return strdup(error.what());
  }
}

}  // namespace
}  // namespace arriero

using namespace arriero;

extern "C" {

void arriero_plain_only(bool on) { plain_only = on; }

/// Bytes of a device's memory that are free, on the device that x lies on.
char* arriero_free_memory(const Tensor* x, int64_t* result) {
  return guarded([&] {
    const at::Device device = x->device();
    *result = static_cast<int64_t>(at::getDeviceAllocator(device.type())->getMemoryInfo(device.index()).first);
  });
}

/// 1 where products of x's kind of tensor go through the microkernel.
bool arriero_is_fast(const Tensor* x) { return fast(*x); }

char* arriero_embedding(const Tensor* anchor, const Tensor* weight, const Tensor* gradient, const Tensor* ids,
                        Tensor** result) {
  return guarded([&] { *result = new Tensor(Embedding::apply(*anchor, *weight, Frozen{opt(gradient)}, *ids)); });
}

char* arriero_rms_norm(const Tensor* x, const Tensor* weight, const Tensor* gradient, double eps, bool narrow,
                       Tensor** same, Tensor** result) {
  return guarded([&] {
    const auto both = RmsNorm::apply(x->contiguous(), *weight, Frozen{opt(gradient)}, eps, narrow);
    *same = new Tensor(both[0]);
    *result = new Tensor(both[1]);
  });
}

/// `onto` and `rotation` may be null; one of them is.
char* arriero_linear(const Tensor* x, const MatricesGiven* given, const Tensor* onto, const RotationGiven* rotation,
                     Tensor** result) {
  return guarded([&] {
    const auto below = onto ? std::optional<Tensor>(*onto) : std::nullopt;
    *result = new Tensor(Linear::apply(*x, below, matrices(*given), rotation_of(rotation)));
  });
}

/// Of two matrices of one size.
char* arriero_gated(const Tensor* x, const MatricesGiven* given, Tensor** result) {
  return guarded([&] {
    const bool recorded = at::GradMode::is_enabled() && x->requires_grad();
    *result = new Tensor(Gated::apply(*x, matrices(*given), recorded));
  });
}

char* arriero_pack(const Tensor* weight, Tensor** result) {
  return guarded([&] { *result = new Tensor(pack_weight(weight->contiguous())); });
}

/// As arriero_linear, with a packed matrix of n rows and its bias; with `wide`, in f32. Nothing is recorded.
char* arriero_packed_linear(const Tensor* x_given, const PackedGiven* matrix, int64_t n, const Tensor* onto,
                            const RotationGiven* rotation, bool wide, Tensor** result) {
  return guarded([&] {
    const Tensor x = x_given->contiguous(), below = onto ? onto->contiguous() : Tensor();
    const int64_t m = x.size(0), k = x.size(1);
    const bool sums = wide || onto || rotation || x.scalar_type() == at::kFloat;
    Tensor y = at::empty({m, n}, sums ? x.options().dtype(at::kFloat) : x.options());
    typed(x, [&]<typename T>(T*) {
      if (sums) {
        linear_forward<T, float>(in<T>(x), m, k, matrix->typed<T>(), true, n, in<float>(below), out<float>(y), n);
      } else {
        linear_forward<T, T>(in<T>(x), m, k, matrix->typed<T>(), true, n, nullptr, out<T>(y), n);
      }
    });
    *result = new Tensor(rotation ? rotation_of(rotation).of_sums(y, x.scalar_type()) : y);
  });
}

/// As arriero_gated, with packed matrices of n rows. Nothing is recorded.
char* arriero_packed_gated(const Tensor* x_given, const PackedGiven* gate, const PackedGiven* up, int64_t n,
                           Tensor** result) {
  return guarded([&] {
    const Tensor x = x_given->contiguous();
    Tensor y = at::empty({x.size(0), n}, x.options());
    typed(x, [&]<typename T>(T*) {
      gated_forward<T>(in<T>(x), x.size(0), x.size(1), gate->typed<T>(), up->typed<T>(), true, n, nullptr, out<T>(y));
    });
    *result = new Tensor(y);
  });
}

char* arriero_swiglu(const Tensor* gate_up, Tensor** result) {
  return guarded([&] { *result = new Tensor(SwiGlu::apply(*gate_up)); });
}

char* arriero_rotate(const Tensor* qkv, const RotationGiven* rotation, Tensor** result) {
  return guarded([&] { *result = new Tensor(Rotate::apply(*qkv, rotation_of(rotation))); });
}

char* arriero_attention(const Tensor* qkv, const int64_t* layout, int64_t layout_length, const AttentionShape* shape,
                        Tensor** result) {
  return guarded([&] {
    *result = new Tensor(Attention::apply(*qkv, std::vector<int64_t>(layout, layout + layout_length), *shape));
  });
}

char* arriero_page_write(const Tensor* qkv, const AttentionShape* shape, const int64_t* slots, const Tensor* pages) {
  return guarded([&] {
    Tensor target = *pages;
    typed(target, [&]<typename T>(T*) { page_write<T>(in<T>(*qkv), qkv->size(0), *shape, slots, out<T>(target)); });
  });
}

char* arriero_page_attention(const Tensor* qkv, const AttentionShape* shape, const Tensor* pages, const int64_t* tables,
                             int64_t table_width, const int64_t* lengths, Tensor** result) {
  return guarded([&] {
    Tensor y = at::empty({qkv->size(0), shape->heads * shape->head_dim}, qkv->options());
    typed(y, [&]<typename T>(T*) {
      page_attention<T>(in<T>(*qkv), qkv->size(0), *shape, in<T>(*pages), tables, table_width, lengths, out<T>(y));
    });
    *result = new Tensor(y);
  });
}

char* arriero_draw(const Tensor* logits, const Wanted* wanted, int64_t rows, Drawn* drawn) {
  return guarded([&] { draw(in<float>(*logits), logits->size(1), wanted, rows, drawn); });
}

/// target logits, log sums, entropies and highest logits, f32 [rows] each.
char* arriero_head(const Tensor* hidden, const Tensor* output, const Tensor* targets, Tensor** results) {
  return guarded([&] {
    const Tensor h = hidden->contiguous();
    Tensor parts[4];
    for (Tensor& part : parts) part = at::empty({h.size(0)}, h.options().dtype(at::kFloat));
    typed(h, [&]<typename T>(T*) {
      head_forward<T>(in<T>(h), h.size(0), h.size(1), in<T>(*output), output->size(0), targets->const_data_ptr<int64_t>(),
                      out<float>(parts[0]), out<float>(parts[1]), out<float>(parts[2]), out<float>(parts[3]));
    });
    for (int i = 0; i < 4; i++) results[i] = new Tensor(parts[i]);
  });
}

char* arriero_head_backward(const Tensor* hidden, const Tensor* output, const Tensor* targets, const Tensor* log_sums,
                            const Tensor* entropies, const Tensor* d_logps, const Tensor* d_entropies,
                            const Tensor* output_gradient, Tensor** result) {
  return guarded([&] {
    const Tensor h = hidden->contiguous(), d_entropy = opt(d_entropies);
    Tensor dh = at::empty_like(h);
    typed(h, [&]<typename T>(T*) {
      head_backward<T>(in<T>(h), h.size(0), h.size(1), in<T>(*output), output->size(0),
                       targets->const_data_ptr<int64_t>(), in<float>(*log_sums), in<float>(*entropies),
                       in<float>(*d_logps), in<float>(d_entropy), out<T>(dh), buffer(opt(output_gradient)));
    });
    *result = new Tensor(dh);
  });
}

char* arriero_adamw(const Tensor* master, const Tensor* gradient, const Tensor* first, const Tensor* second,
                    const Tensor* leaf, const AdamW* options) {
  return guarded([&] {
    Tensor m = *master, f = *first, s = *second, l = opt(leaf);
    adamw_step(out<float>(m), in<float>(*gradient), out<float>(f), out<float>(s), out<bf16>(l), m.numel(), *options);
  });
}

char* arriero_round_weights(const Tensor* x, Tensor** result) {
  return guarded([&] { *result = new Tensor(rounded(x->contiguous())); });
}

char* arriero_square_sum(const Tensor* x, double* result) {
  return guarded([&] { *result = square_sum(in<float>(*x), x->numel()); });
}

}  // extern "C"

// What Rust calls: tensors in, tensors out. Exceptions become messages.

#include <c10/core/CachingDeviceAllocator.h>

#include <map>
#include <mutex>

#include "autograd.h"
#include "draw.h"
#include "head.h"

namespace arriero {
namespace {

/// The thresholds of rows.cpp for the places 0 to count − 1, i32. They are the same for every tensor, and stay on their
/// device to the end of the process.
Tensor thresholds(int64_t count, const Tensor& like) {
  static std::mutex lock;
  // Never destroyed: a device's memory may be gone before static objects are.
  static auto& known = *new std::map<std::string, Tensor>();
  const std::lock_guard<std::mutex> guard(lock);
  Tensor& all = known[like.device().str()];
  if (!all.defined() || all.numel() < count) {
    // Numbers of 32 bits that wrap around; what moves in from the left when they shift right is masked away.
    Tensor hash = at::arange(count, like.options().dtype(at::kInt)).mul_(static_cast<int32_t>(0x9e3779b1));
    hash = hash.bitwise_xor(hash.bitwise_right_shift(15).bitwise_and_(0x1ffff));
    all = hash.mul_(static_cast<int32_t>(0x85ebca77)).bitwise_right_shift(16).bitwise_and_(0xffff);
  }
  return all.narrow(0, 0, count);
}

/// f32 weights as bf16, by the thresholds of rows.cpp, written to y.
void round_to(const Tensor& x, Tensor y) {
  if (on_cpu(x)) {
    round_weights(in<float>(x), x.numel(), out<bf16>(y));
    return;
  }
  const Tensor sums = x.view(at::kInt).flatten() + thresholds(x.numel(), x);
  // The upper half of each number; all machines with a libtorch keep the lower one first.
  y.view(at::kShort).flatten().copy_(sums.view(at::kShort).view({-1, 2}).select(1, 1));
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
  bool fixed;
};

struct RotationGiven {
  const Tensor* positions;
  const Tensor* cos;
  const Tensor* sin;
  int64_t heads;
};

/// A matrix of pack_weight, whose scales are null in f32, and its bias, which may be null.
struct PackedGiven {
  const Tensor* matrix;
  const Tensor* scales;
  const Tensor* bias;

  bool fixed() const { return scales; }
};

namespace {

Matrices matrices(const MatricesGiven& given) {
  return {list(given.weights, given.count), list(given.biases, given.count), list(given.weight_gradients, given.count),
          list(given.bias_gradients, given.count), given.fixed};
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

/// Leaves cuDNN out where libtorch chooses among implementations of attention.
void arriero_attend_without_cudnn() { at::globalContext().setSDPUseCuDNN(false); }

/// Whether products of x's kind of tensor go through the kernels.
bool arriero_is_fast(const Tensor* x) { return fast(*x); }

/// Whether they can be of fixed-point numbers.
bool arriero_has_fixed() { return has_fixed(); }

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
    const bool recorded = at::GradMode::is_enabled() && (x->requires_grad() || (onto && onto->requires_grad()));
    *result = new Tensor(Linear::apply(*x, below, matrices(*given), rotation_of(rotation), recorded));
  });
}

/// Of two matrices of one size.
char* arriero_gated(const Tensor* x, const MatricesGiven* given, Tensor** result) {
  return guarded([&] {
    const bool recorded = at::GradMode::is_enabled() && x->requires_grad();
    *result = new Tensor(Gated::apply(*x, matrices(*given), recorded));
  });
}

/// The matrix and its scales, which are null unless it is fixed.
char* arriero_pack(const Tensor* weight, bool fixed, Tensor** results) {
  return guarded([&] {
    const Packed packed = pack_weight(weight->contiguous(), fixed);
    results[0] = new Tensor(packed.matrix);
    results[1] = fixed ? new Tensor(packed.scales) : nullptr;
  });
}

/// As arriero_linear, with a packed matrix of n rows and its bias. Nothing is recorded.
char* arriero_packed_linear(const Tensor* x_given, const PackedGiven* given, int64_t n, const Tensor* onto,
                            const RotationGiven* rotation, Tensor** result) {
  return guarded([&] {
    const Tensor x = x_given->contiguous(), below = onto ? onto->contiguous() : Tensor();
    const Packed packed{*given->matrix, opt(given->scales)};
    const Tensor y = at::empty({x.size(0), n}, x.options().dtype(at::kFloat));
    linear_forward(operand(x, given->fixed()), {nullptr, &packed, in<float>(opt(given->bias))}, n, in<float>(below),
                   out<float>(y), n);
    *result = new Tensor(rotation ? rotation_of(rotation).of_sums(y, at::kFloat) : y);
  });
}

/// As arriero_gated, with packed matrices of n rows. Nothing is recorded.
char* arriero_packed_gated(const Tensor* x_given, const PackedGiven* gate, const PackedGiven* up, int64_t n,
                           Tensor** result) {
  return guarded([&] {
    const Tensor x = x_given->contiguous();
    const Packed gates{*gate->matrix, opt(gate->scales)}, ups{*up->matrix, opt(up->scales)};
    const Tensor y = at::empty({x.size(0), n}, x.options().dtype(at::kFloat));
    gated_forward<float>(operand(x, gate->fixed()), {nullptr, &gates, in<float>(opt(gate->bias))},
                         {nullptr, &ups, in<float>(opt(up->bias))}, n, nullptr, out<float>(y));
    *result = new Tensor(y);
  });
}

char* arriero_swiglu(const Tensor* gate_up, Tensor** result) {
  return guarded([&] { *result = new Tensor(SwiGlu::apply(*gate_up)); });
}

char* arriero_rotate(const Tensor* qkv, const RotationGiven* rotation, Tensor** result) {
  return guarded([&] { *result = new Tensor(Rotate::apply(*qkv, rotation_of(rotation))); });
}

/// Of qkv in f32.
char* arriero_attention(const Tensor* qkv, const int64_t* layout, int64_t layout_length, const AttentionShape* shape,
                        bool fixed, Tensor** result) {
  return guarded([&] {
    const bool recorded = at::GradMode::is_enabled() && qkv->requires_grad();
    const std::vector<int64_t> numbers(layout, layout + layout_length);
    *result = new Tensor(Attention::apply(*qkv, numbers, *shape, fixed, recorded));
  });
}

/// The pages' kind is what qkv is rounded to, here and in arriero_page_attention.
char* arriero_page_write(const Tensor* qkv, const AttentionShape* shape, const int64_t* slots, const Tensor* pages) {
  return guarded([&] {
    Tensor target = *pages;
    const Tensor rows = qkv->to(target.scalar_type()).contiguous();
    typed(target, [&]<typename T>(T*) { page_write<T>(in<T>(rows), rows.size(0), *shape, slots, out<T>(target)); });
  });
}

char* arriero_page_attention(const Tensor* qkv, const AttentionShape* shape, const Tensor* pages, const int64_t* tables,
                             int64_t table_width, const int64_t* lengths, Tensor** result) {
  return guarded([&] {
    const Tensor rows = qkv->to(pages->scalar_type()).contiguous();
    Tensor y = at::empty({rows.size(0), shape->heads * shape->head_dim}, rows.options());
    typed(y, [&]<typename T>(T*) {
      page_attention<T>(in<T>(rows), rows.size(0), *shape, in<T>(*pages), tables, table_width, lengths, out<T>(y));
    });
    *result = new Tensor(y);
  });
}

char* arriero_draw(const Tensor* logits, const Wanted* wanted, int64_t rows, Drawn* drawn) {
  return guarded([&] { draw(in<float>(*logits), logits->size(1), wanted, rows, drawn); });
}

/// target logits, log sums, entropies and highest logits, f32 [rows] each. `given` is the output packed, or null.
char* arriero_head(const Tensor* hidden, const Tensor* output, const PackedGiven* given, bool fixed, const Tensor* targets,
                   Tensor** results) {
  return guarded([&] {
    const Tensor h = hidden->contiguous();
    const Packed packed = given ? Packed{*given->matrix, opt(given->scales)} : Packed{};
    Tensor parts[4];
    for (Tensor& part : parts) part = at::empty({h.size(0)}, h.options());
    head_forward(operand(h, fixed), {in<float>(*output), given ? &packed : nullptr}, output->size(0), targets->const_data_ptr<int64_t>(), out<float>(parts[0]), out<float>(parts[1]), out<float>(parts[2]), out<float>(parts[3]));
    for (int i = 0; i < 4; i++) results[i] = new Tensor(parts[i]);
  });
}

char* arriero_head_backward(const Tensor* hidden, const Tensor* output, bool fixed, const Tensor* targets,
                            const Tensor* log_sums, const Tensor* entropies, const Tensor* d_logps,
                            const Tensor* d_entropies, const Tensor* output_gradient, Tensor** result) {
  return guarded([&] {
    const Tensor h = hidden->contiguous(), d_entropy = opt(d_entropies);
    Tensor dh = at::empty_like(h);
    const auto run = [&]<typename T>(T*) {
      head_backward<T>(operand(h, fixed), in<float>(h), in<float>(*output), output->size(0),
                       targets->const_data_ptr<int64_t>(), in<float>(*log_sums), in<float>(*entropies),
                       in<float>(*d_logps), in<float>(d_entropy), out<float>(dh), buffer(opt(output_gradient)));
    };
    if (fixed) {
      run(static_cast<bf16*>(nullptr));
    } else {
      run(static_cast<float*>(nullptr));
    }
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

/// One AdamW step of `count` parameters by libtorch's own operator. The options' gradient scale is 1; `steps` counts this one.
char* arriero_adamw_together(const Tensor* const* masters, const Tensor* const* gradients, const Tensor* const* first,
                             const Tensor* const* second, const Tensor* const* leaves, int64_t count, const AdamW* options,
                             int64_t steps) {
  return guarded([&] {
    if (count == 0) return;
    const auto parameters = list(masters, count), rounded = list(leaves, count);
    const std::vector<Tensor> so_far(count, at::full({}, steps, parameters[0].options()));
    at::_fused_adamw_(parameters, list(gradients, count), list(first, count), list(second, count), {}, so_far, options->rate,
                      options->beta1, options->beta2, options->decay, options->eps, false, false);
    for (int64_t i = 0; i < count; i++) {
      if (rounded[i].defined()) round_to(parameters[i], rounded[i]);
    }
  });
}

/// √Σ x² over all of them; only this number comes to the host.
char* arriero_norm(const Tensor* const* tensors, int64_t count, double* result) {
  return guarded([&] {
    if (count == 0) return;
    const Tensor norms = at::stack(at::_foreach_norm(list(tensors, count))).to(at::kDouble);
    *result = norms.square().sum().sqrt().item<double>();
  });
}

char* arriero_multiply(const Tensor* const* tensors, int64_t count, double factor) {
  return guarded([&] {
    if (count > 0) at::_foreach_mul_(list(tensors, count), factor);
  });
}

char* arriero_zero(const Tensor* const* tensors, int64_t count) {
  return guarded([&] {
    if (count > 0) at::_foreach_zero_(list(tensors, count));
  });
}

/// target (f32) += a b.
char* arriero_add_product(const Tensor* target, const Tensor* a, const Tensor* b) {
  return guarded([&] { add_product(*target, *a, *b); });
}

char* arriero_round_weights(const Tensor* x, Tensor** result) {
  return guarded([&] {
    const Tensor y = at::empty(x->sizes(), x->options().dtype(at::kBFloat16));
    round_to(x->contiguous(), y);
    *result = new Tensor(y);
  });
}

char* arriero_square_sum(const Tensor* x, double* result) {
  return guarded([&] { *result = square_sum(in<float>(*x), x->numel()); });
}

}  // extern "C"

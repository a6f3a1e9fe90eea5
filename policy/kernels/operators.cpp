// The operators that Rust calls: tensors in, tensors out, backward included. Each takes the kernels of this
// folder where the processor has what they need, and plain libtorch elsewhere (CUDA among it).
//
// Gradients of weights do not go through autograd: an operator adds them to the f32 buffer that it was
// given. Autograd only carries the gradients of activations.

#include <c10/core/CachingDeviceAllocator.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/function.h>

#include "attention.h"
#include "draw.h"
#include "elementwise.h"
#include "gemm.h"
#include "head.h"

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace arriero {
namespace {

// Of the calling thread: the backward of a CPU graph runs on the thread that asks for it.
thread_local bool plain_only = false;

bool on_cpu(const Tensor& x) {
  return !plain_only && x.device().is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

/// Whether products of x go through the microkernel.
bool fast(const Tensor& x) {
  if (!on_cpu(x)) return false;
  return x.scalar_type() == at::kBFloat16 ? has_microkernel<bf16>() : has_microkernel<float>();
}

/// Calls work with a null pointer of x's element type.
template <typename Work>
void typed(const Tensor& x, const Work& work) {
  if (x.scalar_type() == at::kBFloat16) {
    work(static_cast<bf16*>(nullptr));
  } else {
    work(static_cast<float*>(nullptr));
  }
}

float* buffer(const Tensor& gradient) { return out<float>(gradient); }

/// Where a tensor may be missing, autograd's context keeps an undefined one.
void keep(AutogradContext* context, const char* name, const std::vector<Tensor>& tensors) {
  c10::List<Tensor> list;
  for (const Tensor& tensor : tensors) list.push_back(tensor);
  context->saved_data[name] = list;
}
std::vector<Tensor> kept(AutogradContext* context, const char* name) {
  return context->saved_data[name].toTensorList().vec();
}

/// Tensors that autograd is to leave alone: they may be undefined.
using Frozen = std::vector<Tensor>;

struct Embedding : torch::autograd::Function<Embedding> {
  static Tensor forward(AutogradContext* context, const Tensor& anchor, const Tensor& weight, const Frozen& gradient,
                        const Tensor& ids) {
    keep(context, "kept", {gradient[0], ids});
    return weight.index_select(0, ids).to(at::kFloat);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    auto saved = kept(context, "kept");
    if (saved[0].defined()) saved[0].index_add_(0, saved[1], grads[0].to(at::kFloat));
    return {Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

/// The residual stream x and the weight are f32; y is of the kind that the products take.
struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static variable_list forward(AutogradContext* context, const Tensor& x_given, const std::optional<Tensor>& delta_given,
                               const Tensor& weight, const Frozen& gradient, double eps, bool narrow) {
    const Tensor x = x_given.contiguous();
    const Tensor delta = delta_given ? delta_given->contiguous() : Tensor();
    const at::ScalarType kind = narrow ? at::kBFloat16 : at::kFloat;
    Tensor sum, y, scales;
    if (on_cpu(x)) {
      const int64_t n = x.size(-1), m = x.numel() / n;
      sum = at::empty_like(x);
      y = at::empty_like(x, x.options().dtype(kind));
      scales = at::empty({m}, x.options());
      typed(y, [&]<typename T>(T*) {
        rms_norm_forward<T>(in<float>(x), in<T>(delta), in<float>(weight), static_cast<float>(eps), m, n, out<float>(sum),
                            out<T>(y), out<float>(scales));
      });
    } else {
      sum = delta.defined() ? x + delta : x.clone();
      scales = (sum.square().mean(-1, true) + eps).rsqrt();
      y = (sum * scales * weight).to(kind);
    }
    context->save_for_backward({sum, scales, weight});
    keep(context, "kept", gradient);
    context->saved_data["delta"] = delta.defined();
    return {sum, y};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &sum = saved[0], &scales = saved[1], &weight = saved[2];
    const bool has_delta = context->saved_data["delta"].toBool();
    Tensor gradient = kept(context, "kept")[0], dx, d_delta;
    const Tensor d_sum = grads[0].defined() ? grads[0].contiguous() : Tensor();
    if (!grads[1].defined()) {
      dx = d_sum;
      // The gradient of y was never asked for, so that its kind is not known here: autograd casts.
      if (has_delta) d_delta = dx;
    } else if (on_cpu(sum)) {
      const Tensor dy = grads[1].contiguous();
      const int64_t n = sum.size(-1), m = sum.numel() / n;
      dx = at::empty_like(sum);
      if (has_delta) d_delta = dy.scalar_type() == at::kFloat ? dx : at::empty_like(dy);
      typed(dy, [&]<typename T>(T*) {
        T* narrowed = d_delta.defined() && !d_delta.is_same(dx) ? out<T>(d_delta) : nullptr;
        rms_norm_backward<T>(in<T>(dy), in<float>(d_sum), in<float>(sum), in<float>(scales), in<float>(weight), m, n,
                             out<float>(dx), narrowed, buffer(gradient));
      });
    } else {
      const Tensor dy = grads[1].to(at::kFloat), through = dy * weight;
      dx = scales * (through - sum * scales.square() * (through * sum).mean(-1, true));
      if (d_sum.defined()) dx = dx + d_sum;
      if (has_delta) d_delta = dx.to(grads[1].scalar_type());
      if (gradient.defined()) gradient.add_((dy * sum * scales).reshape({-1, sum.size(-1)}).sum(0));
    }
    const Tensor none;
    return {dx, d_delta, none, none, none, none};
  }
};

struct Linear : torch::autograd::Function<Linear> {
  static Tensor forward(AutogradContext* context, const Tensor& x_given, const std::vector<Tensor>& weights,
                        const std::vector<Tensor>& biases, const std::vector<Tensor>& weight_gradients,
                        const std::vector<Tensor>& bias_gradients) {
    const Tensor x = x_given.contiguous();
    const int64_t m = x.size(0), k = x.size(1);
    context->save_for_backward({x});
    keep(context, "weights", weights);
    keep(context, "weight_gradients", weight_gradients);
    keep(context, "bias_gradients", bias_gradients);
    bool even = true;
    for (const Tensor& weight : weights) even = even && k % 2 == 0 && weight.size(0) % 2 == 0 && weight.is_contiguous();
    const bool kernels = even && fast(x);
    context->saved_data["kernels"] = kernels;
    if (!kernels) {
      std::vector<Tensor> parts;
      for (size_t i = 0; i < weights.size(); i++) {
        parts.push_back(biases[i].defined() ? at::linear(x, weights[i], biases[i]) : at::linear(x, weights[i]));
      }
      return parts.size() == 1 ? parts[0] : at::cat(parts, 1);
    }
    int64_t total = 0;
    for (const Tensor& weight : weights) total += weight.size(0);
    Tensor y = at::empty({m, total}, x.options());
    typed(x, [&]<typename T>(T*) {
      int64_t at = 0;
      for (size_t i = 0; i < weights.size(); i++) {
        linear_forward<T, T>(in<T>(x), m, k, in<T>(weights[i]), false, weights[i].size(0), in<T>(biases[i]),
                             out<T>(y) + at, total);
        at += weights[i].size(0);
      }
    });
    return y;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const Tensor x = context->get_saved_variables()[0], dy = grads[0].contiguous();
    const auto weights = kept(context, "weights"), weight_gradients = kept(context, "weight_gradients"),
               bias_gradients = kept(context, "bias_gradients");
    const int64_t m = x.size(0), k = x.size(1), total = dy.size(1);
    const bool wanted = context->needs_input_grad(0), kernels = context->saved_data["kernels"].toBool();
    Tensor dx;
    int64_t at = 0;
    for (size_t i = 0; i < weights.size(); i++) {
      const int64_t n = weights[i].size(0);
      const Tensor part = dy.narrow(1, at, n);
      Tensor weight_gradient = weight_gradients[i], bias_gradient = bias_gradients[i];
      if (kernels) {
        typed(x, [&]<typename T>(T*) {
          if (weight_gradient.defined()) {
            linear_backward_weight<T>(in<T>(dy) + at, m, n, total, in<T>(x), k, buffer(weight_gradient));
          }
          if (bias_gradient.defined()) add_column_sums<T>(in<T>(dy) + at, m, n, total, buffer(bias_gradient));
        });
      } else {
        if (weight_gradient.defined()) {
          if (x.scalar_type() == at::kFloat) {
            weight_gradient.addmm_(part.t(), x);
          } else {
            weight_gradient.add_(at::mm(part.t(), x));
          }
        }
        if (bias_gradient.defined()) bias_gradient.add_(part.to(at::kFloat).sum(0));
        if (wanted) dx = dx.defined() ? at::addmm(dx, part, weights[i]) : at::mm(part, weights[i]);
      }
      at += n;
    }
    if (kernels && wanted) {
      dx = at::empty_like(x);
      typed(x, [&]<typename T>(T*) { linear_backward_input<T>(in<T>(dy), m, total, weights, out<T>(dx)); });
    }
    return {dx, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct SwiGlu : torch::autograd::Function<SwiGlu> {
  static Tensor forward(AutogradContext* context, const Tensor& gate_up_given) {
    const Tensor gate_up = gate_up_given.contiguous();
    context->save_for_backward({gate_up});
    const int64_t m = gate_up.size(0), n = gate_up.size(1) / 2;
    if (!on_cpu(gate_up)) return at::silu(gate_up.narrow(1, 0, n)) * gate_up.narrow(1, n, n);
    Tensor y = at::empty({m, n}, gate_up.options());
    typed(y, [&]<typename T>(T*) { swiglu_forward<T>(in<T>(gate_up), m, n, out<T>(y)); });
    return y;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const Tensor gate_up = context->get_saved_variables()[0], dy = grads[0].contiguous();
    const int64_t m = gate_up.size(0), n = gate_up.size(1) / 2;
    if (!on_cpu(gate_up)) {
      const Tensor gate = gate_up.narrow(1, 0, n), up = gate_up.narrow(1, n, n);
      // silu's backward rounds to bf16 once, not after each factor.
      return {at::cat({at::silu_backward(dy * up, gate), dy * at::silu(gate)}, 1)};
    }
    Tensor d = at::empty_like(gate_up);
    typed(d, [&]<typename T>(T*) { swiglu_backward<T>(in<T>(dy), in<T>(gate_up), m, n, out<T>(d)); });
    return {d};
  }
};

/// Rotates in place: the projection that made qkv does not need it for its own backward.
struct Rotate : torch::autograd::Function<Rotate> {
  static void turn(Tensor qkv, const Tensor& positions, const Tensor& cos, const Tensor& sin, int64_t heads,
                   float direction) {
    const int64_t head_dim = cos.size(1), m = qkv.size(0), ld = qkv.size(1);
    if (on_cpu(qkv)) {
      typed(qkv, [&]<typename T>(T*) {
        rotate<T>(out<T>(qkv), m, ld, heads, head_dim, positions.const_data_ptr<int64_t>(), in<float>(cos),
                  in<float>(sin), direction);
      });
      return;
    }
    Tensor x = qkv.narrow(1, 0, heads * head_dim).view({m, heads, head_dim});
    const Tensor wide = x.to(at::kFloat), half = at::cat({-wide.narrow(2, head_dim / 2, head_dim / 2),
                                                          wide.narrow(2, 0, head_dim / 2)}, 2);
    x.copy_(wide * cos.index_select(0, positions).unsqueeze(1) +
            half * sin.index_select(0, positions).unsqueeze(1) * direction);
  }
  static Tensor forward(AutogradContext* context, const Tensor& qkv, const Tensor& positions, const Tensor& cos,
                        const Tensor& sin, int64_t heads) {
    keep(context, "kept", {positions, cos, sin});
    context->saved_data["heads"] = heads;
    turn(qkv, positions, cos, sin, heads, 1.0f);
    context->mark_dirty({qkv});
    return qkv;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = kept(context, "kept");
    // Attention made this gradient for us alone.
    Tensor d = grads[0].contiguous();
    turn(d, saved[0], saved[1], saved[2], context->saved_data["heads"].toInt(), -1.0f);
    return {d, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

/// Reads (start, number of segments, lengths…) of each tree.
std::vector<TreeLayout> read_layout(const std::vector<int64_t>& numbers) {
  std::vector<TreeLayout> trees;
  for (size_t i = 0; i < numbers.size();) {
    int64_t start = numbers[i++];
    TreeLayout tree;
    for (int64_t count = numbers[i++]; count > 0; count--) {
      tree.push_back({start, numbers[i]});
      start += numbers[i++];
    }
    trees.push_back(tree);
  }
  return trees;
}

struct Attention : torch::autograd::Function<Attention> {
  static Tensor forward(AutogradContext* context, const Tensor& qkv, const std::vector<int64_t>& layout,
                        const AttentionShape& shape) {
    Tensor y = at::empty({qkv.size(0), shape.heads * shape.head_dim}, qkv.options());
    Tensor log_sums = at::empty({qkv.size(0), shape.heads}, qkv.options().dtype(at::kFloat));
    typed(qkv, [&]<typename T>(T*) {
      attention_forward<T>(in<T>(qkv), read_layout(layout), shape, out<T>(y), out<float>(log_sums));
    });
    context->save_for_backward({qkv, y, log_sums});
    context->saved_data["layout"] = layout;
    context->saved_data["shape"] = std::vector<int64_t>{shape.heads, shape.kv_heads, shape.head_dim, shape.window};
    context->saved_data["scale"] = static_cast<double>(shape.scale);
    return y;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto numbers = context->saved_data["shape"].toIntVector();
    const AttentionShape shape{numbers[0], numbers[1], numbers[2],
                               static_cast<float>(context->saved_data["scale"].toDouble()), numbers[3]};
    const auto layout = read_layout(context->saved_data["layout"].toIntVector());
    const Tensor d_out = grads[0].contiguous();
    Tensor d = at::empty_like(saved[0]);
    typed(d, [&]<typename T>(T*) {
      attention_backward<T>(in<T>(d_out), in<T>(saved[0]), in<T>(saved[1]), in<float>(saved[2]), layout, shape, out<T>(d));
    });
    return {d, Tensor(), Tensor()};
  }
};

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

char* arriero_rms_norm(const Tensor* x, const Tensor* delta, const Tensor* weight, const Tensor* gradient, double eps,
                       bool narrow, Tensor** sum, Tensor** result) {
  return guarded([&] {
    const auto both = RmsNorm::apply(*x, delta ? std::optional<Tensor>(*delta) : std::nullopt, *weight,
                                     Frozen{opt(gradient)}, eps, narrow);
    *sum = new Tensor(both[0]);
    *result = new Tensor(both[1]);
  });
}

char* arriero_linear(const Tensor* x, const Tensor* const* weights, const Tensor* const* biases,
                     const Tensor* const* weight_gradients, const Tensor* const* bias_gradients, int64_t count,
                     Tensor** result) {
  return guarded([&] {
    *result = new Tensor(Linear::apply(*x, list(weights, count), list(biases, count), list(weight_gradients, count),
                                       list(bias_gradients, count)));
  });
}

char* arriero_pack(const Tensor* weight, Tensor** result) {
  return guarded([&] { *result = new Tensor(pack_weight(weight->contiguous())); });
}

/// x Wᵀ + bias with a packed W of n rows, in x's kind or in f32. Nothing is recorded.
char* arriero_packed_linear(const Tensor* x_given, const Tensor* packed, int64_t n, const Tensor* bias, bool wide,
                            Tensor** result) {
  return guarded([&] {
    const Tensor x = x_given->contiguous(), b = opt(bias);
    const int64_t m = x.size(0), k = x.size(1);
    Tensor y = at::empty({m, n}, wide ? x.options().dtype(at::kFloat) : x.options());
    typed(x, [&]<typename T>(T*) {
      if (y.scalar_type() == at::kFloat) {
        linear_forward<T, float>(in<T>(x), m, k, in<T>(*packed), true, n, in<T>(b), out<float>(y), n);
      } else {
        linear_forward<T, T>(in<T>(x), m, k, in<T>(*packed), true, n, in<T>(b), out<T>(y), n);
      }
    });
    *result = new Tensor(y);
  });
}

char* arriero_swiglu(const Tensor* gate_up, Tensor** result) {
  return guarded([&] { *result = new Tensor(SwiGlu::apply(*gate_up)); });
}

char* arriero_rotate(const Tensor* qkv, const Tensor* positions, const Tensor* cos, const Tensor* sin, int64_t heads,
                     Tensor** result) {
  return guarded([&] { *result = new Tensor(Rotate::apply(*qkv, *positions, *cos, *sin, heads)); });
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

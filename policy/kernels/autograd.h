// The operators with their backward: each takes the kernels of this folder where the processor has what they need, and
// plain libtorch elsewhere (CUDA among it). For operators.cpp alone.
//
// The kernels' operands are f32. Matrices that are `fixed` are multiplied in 16 bits all the same (gemm.h): what their backward
// reads is kept in bf16. Plain libtorch multiplies operands as they are.
//
// Gradients of weights do not go through autograd: an operator adds them to the f32 buffer that it was
// given. Autograd only carries the gradients of activations.
#pragma once

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/function.h>

#include "attention.h"
#include "elementwise.h"
#include "gemm.h"

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

/// Whether products of x go through the kernels.
bool fast(const Tensor& x) { return on_cpu(x) && x.scalar_type() == at::kFloat && has_microkernel<float>(); }

/// Whether products can be fixed here.
bool has_fixed() { return fixed_point() && has_microkernel<float>() && has_microkernel<bf16>(); }

/// The type that a backward multiplies in.
at::ScalarType backward_kind(bool fixed) { return fixed ? at::kBFloat16 : at::kFloat; }

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

/// Whether libtorch's own products of x can leave their sums in f32: CUDA's do. Elsewhere they round them to bf16.
bool sums_stay_wide(const Tensor& x) { return x.is_cuda() && x.scalar_type() == at::kBFloat16; }

/// target (f32) += a b, rounded in between only where the device knows no better.
void add_product(Tensor target, const Tensor& a, const Tensor& b) {
  if (sums_stay_wide(a)) {
    at::addmm_out(target, target, a, b, at::kFloat);
  } else if (a.scalar_type() == at::kFloat) {
    target.addmm_(a, b);
  } else {
    target.add_(at::mm(a, b));
  }
}

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

/// The residual stream x and the weight are f32; y is of the kind that the products take. Gives x, too, so that its gradient
/// beside that of y comes here to be added.
struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& weight, const Frozen& gradient,
                               double eps, bool narrow) {
    const at::ScalarType kind = narrow ? at::kBFloat16 : at::kFloat;
    Tensor y, scales;
    if (on_cpu(x)) {
      const int64_t n = x.size(-1), m = x.numel() / n;
      y = at::empty_like(x, x.options().dtype(kind));
      scales = at::empty({m}, x.options());
      typed(y, [&]<typename T>(T*) {
        rms_norm_forward<T>(in<float>(x), in<float>(weight), static_cast<float>(eps), m, n, out<T>(y), out<float>(scales));
      });
    } else if (x.is_cuda()) {
      std::tie(y, scales) = at::_fused_rms_norm(x, x.sizes().slice(x.dim() - 1), weight, eps);
      y = y.to(kind);
    } else {
      scales = (x.square().mean(-1, true) + eps).rsqrt();
      y = (x * scales * weight).to(kind);
    }
    context->save_for_backward({x, scales, weight});
    keep(context, "kept", gradient);
    return {x, y};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &scales = saved[1], &weight = saved[2];
    Tensor gradient = kept(context, "kept")[0], dx;
    const Tensor beside = grads[0].defined() ? grads[0].contiguous() : Tensor();
    if (!grads[1].defined()) {
      dx = beside;
    } else if (on_cpu(x)) {
      const Tensor dy = grads[1].contiguous();
      const int64_t n = x.size(-1), m = x.numel() / n;
      dx = at::empty_like(x);
      typed(dy, [&]<typename T>(T*) {
        rms_norm_backward<T>(in<T>(dy), in<float>(beside), in<float>(x), in<float>(scales), in<float>(weight), m, n,
                             out<float>(dx), buffer(gradient));
      });
    } else if (x.is_cuda()) {
      const Tensor dy = grads[1].to(at::kFloat).contiguous();
      Tensor d_weight;
      std::tie(dx, d_weight) = at::_fused_rms_norm_backward(dy, x, x.sizes().slice(x.dim() - 1), scales, weight,
                                                            {true, gradient.defined()});
      if (beside.defined()) dx = dx + beside;
      if (gradient.defined()) gradient.add_(d_weight);
    } else {
      const Tensor dy = grads[1].to(at::kFloat), through = dy * weight;
      dx = scales * (through - x * scales.square() * (through * x).mean(-1, true));
      if (beside.defined()) dx = dx + beside;
      if (gradient.defined()) gradient.add_((dy * x * scales).reshape({-1, x.size(-1)}).sum(0));
    }
    const Tensor none;
    return {dx, none, none, none, none};
  }
};

/// Matrices that read the same x, and where the gradients of them and of their biases go.
struct Matrices {
  std::vector<Tensor> weights, biases, weight_gradients, bias_gradients;
  bool fixed = false;

  void keep_in(AutogradContext* context) const {
    keep(context, "weights", weights);
    keep(context, "weight_gradients", weight_gradients);
    keep(context, "bias_gradients", bias_gradients);
  }
  int64_t outputs() const {
    int64_t total = 0;
    for (const Tensor& weight : weights) total += weight.size(0);
    return total;
  }
  /// x may be bf16 where the matrices are fixed.
  bool suit_kernels(const Tensor& x) const {
    bool suit = x.size(1) % 2 == 0 && (fixed || x.scalar_type() == at::kFloat) && on_cpu(x);
    for (const Tensor& weight : weights) suit = suit && weight.size(0) % 2 == 0 && weight.is_contiguous() && fast(weight);
    return suit;
  }
  Matrix matrix(size_t i) const { return {in<float>(weights[i]), nullptr, in<float>(biases[i])}; }
  /// Their products side by side, by libtorch's own operators; in f32 where they can be and `wide` asks for it.
  Tensor plain(const Tensor& x, bool wide) const {
    wide = wide && sums_stay_wide(x);
    Tensor y = at::empty({x.size(0), outputs()}, wide ? x.options().dtype(at::kFloat) : x.options());
    int64_t at = 0;
    for (size_t i = 0; i < weights.size(); i++) {
      const int64_t n = weights[i].size(0);
      Tensor part = y.narrow(1, at, n);
      if (wide) {
        at::mm_out(part, x, weights[i].t(), at::kFloat);
      } else {
        at::mm_out(part, x, weights[i].t());
      }
      if (biases[i].defined()) part.add_(biases[i]);
      at += n;
    }
    return y;
  }
};

/// Adds the gradients of the matrices kept in `context`; returns that of x, where it is wanted, as `kind`. x and dy are of the
/// kind that the backward multiplies in.
Tensor matrices_backward(AutogradContext* context, const Tensor& x, const Tensor& dy, at::ScalarType kind, bool kernels) {
  const auto weights = kept(context, "weights"), weight_gradients = kept(context, "weight_gradients"),
             bias_gradients = kept(context, "bias_gradients");
  const int64_t m = x.size(0), k = x.size(1), total = dy.size(1);
  const bool wanted = context->needs_input_grad(0);
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
      if (weight_gradient.defined()) add_product(weight_gradient, part.t(), x);
      if (bias_gradient.defined()) bias_gradient.add_(part.to(at::kFloat).sum(0));
      if (wanted && weights.size() == 1) dx = at::mm(part, weights[i]);
      if (wanted && weights.size() > 1) {
        if (!dx.defined()) dx = at::zeros(x.sizes(), x.options().dtype(at::kFloat));
        add_product(dx, part, weights[i]);
      }
    }
    at += n;
  }
  if (!kernels && wanted) dx = dx.to(kind);
  if (kernels && wanted) {
    dx = at::empty(x.sizes(), x.options().dtype(kind));
    if (kind == at::kBFloat16) {
      linear_backward_input<bf16, bf16>(in<bf16>(dy), m, total, weights, out<bf16>(dx));
    } else {
      typed(x, [&]<typename T>(T*) { linear_backward_input<T, float>(in<T>(dy), m, total, weights, out<float>(dx)); });
    }
  }
  return dx;
}

/// Angles by which the first `heads` heads of each row are rotated; none where positions are undefined.
struct Rotation {
  Tensor positions, cos, sin;
  int64_t heads = 0;

  void keep_in(AutogradContext* context) const {
    keep(context, "rotation", {positions, cos, sin});
    context->saved_data["heads"] = heads;
  }
  static Rotation kept_in(AutogradContext* context) {
    const auto saved = kept(context, "rotation");
    return {saved[0], saved[1], saved[2], context->saved_data["heads"].toInt()};
  }
  /// In place; direction −1 turns back.
  void turn(Tensor qkv, float direction) const {
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
    x.copy_(at::addcmul(wide * cos.index_select(0, positions).unsqueeze(1), half,
                        sin.index_select(0, positions).unsqueeze(1), direction));
  }
  /// Of a product's sums, as `kind`. libtorch's own product of bf16 numbers has rounded its sums on the CPU already.
  Tensor of_sums(const Tensor& product, at::ScalarType kind) const {
    if (!on_cpu(product)) {
      turn(product, 1.0f);
      return product.to(kind);
    }
    const Tensor sums = product.to(at::kFloat);
    Tensor y = at::empty_like(sums, sums.options().dtype(kind));
    typed(y, [&]<typename T>(T*) {
      rotate_sums<T>(in<float>(sums), sums.size(0), sums.size(1), heads, cos.size(1), positions.const_data_ptr<int64_t>(),
                     in<float>(cos), in<float>(sin), out<T>(y));
    });
    return y;
  }
};

/// The products in x's kind, by the kernels in f32; or added to `onto`, in f32; or rotated.
struct Linear : torch::autograd::Function<Linear> {
  static Tensor forward(AutogradContext* context, const Tensor& x_given, const std::optional<Tensor>& onto_given,
                        const Matrices& matrices, const Rotation& rotation, bool recorded) {
    const bool kernels = matrices.suit_kernels(x_given), rotated = rotation.positions.defined();
    const Tensor x = (kernels ? x_given : x_given.to(matrices.weights[0].scalar_type())).contiguous();
    const Tensor onto = onto_given ? onto_given->contiguous() : Tensor();
    matrices.keep_in(context);
    rotation.keep_in(context);
    context->saved_data["kernels"] = kernels;
    context->saved_data["onto"] = onto.defined();
    context->saved_data["wide"] = x_given.scalar_type() == at::kFloat;
    if (!kernels) {
      context->save_for_backward({x});
      const Tensor y = matrices.plain(x, onto.defined() || rotated);
      if (rotated) return rotation.of_sums(y, x.scalar_type());
      return onto.defined() ? onto + y : y;
    }
    const int64_t total = matrices.outputs();
    const Tensor y = at::empty({x.size(0), total}, x.options().dtype(at::kFloat));
    Tensor kept;
    const Operand rows = operand(x, matrices.fixed, recorded ? &kept : nullptr);
    if (recorded) context->save_for_backward({kept});
    int64_t at = 0;
    for (size_t i = 0; i < matrices.weights.size(); i++) {
      const int64_t n = matrices.weights[i].size(0);
      const float* below = onto.defined() ? in<float>(onto) + at : nullptr;
      linear_forward(rows, matrices.matrix(i), n, below, out<float>(y) + at, total);
      at += n;
    }
    return rotated ? rotation.of_sums(y, at::kFloat) : y;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const Tensor x = context->get_saved_variables()[0];
    const Rotation rotation = Rotation::kept_in(context);
    const Tensor dy = grads[0].to(x.scalar_type()).contiguous();
    // Attention made this gradient for us alone.
    if (rotation.positions.defined()) rotation.turn(dy, -1.0f);
    const Tensor d_onto = context->saved_data["onto"].toBool() ? grads[0] : Tensor();
    const auto kind = context->saved_data["wide"].toBool() ? at::kFloat : at::kBFloat16;
    return {matrices_backward(context, x, dy, kind, context->saved_data["kernels"].toBool()), d_onto, Tensor(), Tensor(),
            Tensor()};
  }
};

Tensor swiglu(const Tensor& gate_up) {
  const int64_t m = gate_up.size(0), n = gate_up.size(1) / 2;
  if (!on_cpu(gate_up)) return at::silu(gate_up.narrow(1, 0, n)) * gate_up.narrow(1, n, n);
  Tensor y = at::empty({m, n}, gate_up.options());
  typed(y, [&]<typename T>(T*) { swiglu_forward<T>(in<T>(gate_up), m, n, out<T>(y)); });
  return y;
}

Tensor swiglu_gradient(const Tensor& gate_up, const Tensor& dy) {
  const int64_t m = gate_up.size(0), n = gate_up.size(1) / 2;
  if (!on_cpu(gate_up)) {
    const Tensor gate = gate_up.narrow(1, 0, n), up = gate_up.narrow(1, n, n);
    // silu's backward rounds to bf16 once, not after each factor.
    return at::cat({at::silu_backward(dy * up, gate), dy * at::silu(gate)}, 1);
  }
  Tensor d = at::empty_like(gate_up);
  typed(d, [&]<typename T>(T*) { swiglu_backward<T>(in<T>(dy), in<T>(gate_up), m, n, out<T>(d)); });
  return d;
}

struct SwiGlu : torch::autograd::Function<SwiGlu> {
  static Tensor forward(AutogradContext* context, const Tensor& gate_up_given) {
    const Tensor gate_up = gate_up_given.contiguous();
    context->save_for_backward({gate_up});
    return swiglu(gate_up);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    return {swiglu_gradient(context->get_saved_variables()[0], grads[0].contiguous())};
  }
};

/// SwiGLU of x's products with two matrices, which are kept where a backward will come.
struct Gated : torch::autograd::Function<Gated> {
  static Tensor forward(AutogradContext* context, const Tensor& x_given, const Matrices& matrices, bool recorded) {
    const Tensor x = x_given.contiguous();
    const int64_t m = x.size(0), n = matrices.weights[0].size(0);
    const bool kernels = matrices.suit_kernels(x);
    const auto kind = kernels ? backward_kind(matrices.fixed) : x.scalar_type();
    matrices.keep_in(context);
    context->saved_data["kernels"] = kernels;
    context->saved_data["wide"] = x.scalar_type() == at::kFloat;
    Tensor gate_up, y, x_kept = x;
    if (kernels) {
      if (recorded) gate_up = at::empty({m, 2 * n}, x.options().dtype(kind));
      y = at::empty({m, n}, x.options().dtype(at::kFloat));
      const Operand rows = operand(x, matrices.fixed, recorded ? &x_kept : nullptr);
      // Without a gate_up to write to its type does not matter.
      if (kind == at::kBFloat16) {
        gated_forward(rows, matrices.matrix(0), matrices.matrix(1), n, out<bf16>(gate_up), out<float>(y));
      } else {
        gated_forward(rows, matrices.matrix(0), matrices.matrix(1), n, out<float>(gate_up), out<float>(y));
      }
    } else {
      gate_up = matrices.plain(x, true);
      y = swiglu(gate_up).to(x.scalar_type());
      if (recorded) gate_up = gate_up.to(x.scalar_type());
    }
    if (recorded) context->save_for_backward({x_kept, gate_up});
    return y;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const Tensor d = swiglu_gradient(saved[1], grads[0].to(saved[1].scalar_type()).contiguous());
    const auto kind = context->saved_data["wide"].toBool() ? at::kFloat : at::kBFloat16;
    return {matrices_backward(context, saved[0], d, kind, context->saved_data["kernels"].toBool()), Tensor(), Tensor()};
  }
};

/// Rotates in place: the projection that made qkv does not need it for its own backward.
struct Rotate : torch::autograd::Function<Rotate> {
  static Tensor forward(AutogradContext* context, const Tensor& qkv, const Rotation& rotation) {
    rotation.keep_in(context);
    rotation.turn(qkv, 1.0f);
    context->mark_dirty({qkv});
    return qkv;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    // Attention made this gradient for us alone.
    const Tensor d = grads[0].contiguous();
    Rotation::kept_in(context).turn(d, -1.0f);
    return {d, Tensor()};
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

/// Of qkv in f32. Where products are fixed, what the backward reads is bf16.
struct Attention : torch::autograd::Function<Attention> {
  static Tensor forward(AutogradContext* context, const Tensor& qkv, const std::vector<int64_t>& layout,
                        const AttentionShape& shape, bool fixed, bool recorded) {
    const auto kind = backward_kind(fixed);
    Tensor y = at::empty({qkv.size(0), shape.heads * shape.head_dim}, qkv.options());
    Tensor log_sums = at::empty({qkv.size(0), shape.heads}, qkv.options());
    attention_forward(in<float>(qkv), read_layout(layout), shape, fixed, out<float>(y), out<float>(log_sums));
    if (recorded) context->save_for_backward({qkv.to(kind), y.to(kind), log_sums});
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
    const Tensor d_out = grads[0].to(saved[0].scalar_type()).contiguous();
    Tensor d = at::empty(saved[0].sizes(), saved[0].options().dtype(at::kFloat));
    typed(saved[0], [&]<typename T>(T*) {
      attention_backward<T>(in<T>(d_out), in<T>(saved[0]), in<T>(saved[1]), in<float>(saved[2]), layout, shape,
                            out<float>(d));
    });
    return {d, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace
}  // namespace arriero

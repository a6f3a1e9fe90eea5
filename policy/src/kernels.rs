//! Operators of `kernels/`: what libtorch lacks, or does in too many passes over memory.
//!
//! Products in f32 go through libtorch's own microkernel (oneDNN's brgemm). Those of a weight that is [`fixed`](Weight::fixed)
//! are of 16-bit fixed-point numbers, and of bf16 ones on the way back (docs/adr/0008-fixed-point.md); their operands are f32
//! all the same. Everything else is plain loops in C++. Where the processor or the device lacks what they need (CUDA among
//! them), an operator computes the same with libtorch's ordinary operators, and a test compares the two.
//!
//! Gradients of weights do not go through autograd: [`Weight::gradient`] is the f32 buffer that an operator
//! adds to in its backward. Autograd carries the gradients of activations.
//!
//! All unsafe code that calls C++ is here; `native` declares what it calls.
#![allow(unsafe_code, reason = "calls of the C++ operators")]

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null;

use tch::{Kind, Tensor};

mod native;

use native::{
    MatricesGiven, PackedGiven, Raw, RotationGiven, arriero_adamw, arriero_adamw_together,
    arriero_add_product, arriero_attend_without_cudnn, arriero_attention, arriero_draw, arriero_embedding,
    arriero_free_memory, arriero_gated, arriero_has_fixed, arriero_head, arriero_head_backward,
    arriero_is_fast, arriero_linear, arriero_multiply, arriero_norm, arriero_pack, arriero_packed_gated,
    arriero_packed_linear, arriero_page_attention, arriero_page_write, arriero_plain_only, arriero_rms_norm,
    arriero_rotate, arriero_round_weights, arriero_square_sum, arriero_swiglu, arriero_zero,
};

/// What `AttentionShape` is in C++.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: i64,
    /// Key and value heads.
    pub kv_heads: i64,
    /// Width of a head.
    pub head_dim: i64,
    /// Factor of the scores: 1 / √head_dim.
    pub scale: f32,
    /// Tokens that a token sees, itself among them; 0 for all.
    pub window: i64,
}

/// The numbers of one AdamW step.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct AdamWStep {
    /// Learning rate.
    pub rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// ε.
    pub eps: f32,
    /// Decoupled weight decay.
    pub decay: f32,
    /// 1 − β₁ᵗ.
    pub correction1: f32,
    /// √(1 − β₂ᵗ).
    pub correction2_sqrt: f32,
    /// Factor of the gradient, by which its norm is clipped.
    pub gradient_scale: f32,
}

/// What `Wanted` is in C++: a row that wants a token.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct WantedToken {
    /// The row of the logits that it reads.
    pub source: i64,
    /// Factor of the logits; 0 takes the first of the highest.
    pub scale: f32,
    /// A uniform number at least 0 and below 1.
    pub uniform: f64,
}

/// What `Drawn` is in C++.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C)]
pub struct DrawOutcome {
    /// The token.
    pub token: i64,
    /// Its log-probability under the softmax of the logits.
    pub logp: f32,
    /// The same under the softmax of the scaled logits; 0 where the highest was taken.
    pub sampled_logp: f32,
}

/// Tokens of a page of the decoding cache.
pub const PAGE_TOKENS: usize = 16;

fn raw(tensor: &Tensor) -> Raw {
    tensor.as_ptr().cast::<c_void>()
}

fn raw_or_null(tensor: Option<&Tensor>) -> Raw {
    tensor.map_or(null(), raw)
}

fn raws(tensors: &[Tensor]) -> Vec<Raw> {
    tensors.iter().map(raw).collect()
}

/// Takes a tensor that C++ made.
fn own(result: Raw) -> Tensor {
    // SAFETY: `result` is a `new at::Tensor` that nobody else holds.
    unsafe { Tensor::from_ptr(result.cast_mut().cast()) }
}

/// # Panics
/// With C++'s message: shapes are this crate's to get right, as with tch's own operators.
fn check(message: *mut c_char) {
    if !message.is_null() {
        // SAFETY: a message is a NUL-terminated string from strdup, freed here and nowhere else.
        let text = unsafe {
            let text = CStr::from_ptr(message).to_string_lossy().into_owned();
            libc::free(message.cast());
            text
        };
        panic!("{text}");
    }
}

/// Calls `operator` with a place for its result.
fn one(operator: impl FnOnce(*mut Raw) -> *mut c_char) -> Tensor {
    let mut result = null();
    check(operator(&mut result));
    own(result)
}

// SAFETY of every call below: the pointers are of tensors and slices that live through the call, C++ keeps
// none of them but by tensor handles of its own, and exceptions end in a message.

/// Makes every operator that this thread calls compute with libtorch's ordinary operators: for tests and
/// benches that compare the two.
pub fn plain_only(on: bool) {
    unsafe { arriero_plain_only(on) }
}

/// Whether products of tensors like `x` go through the kernels: f32 on a CPU with AVX-512.
pub fn is_fast(x: &Tensor) -> bool {
    unsafe { arriero_is_fast(raw(x)) }
}

/// Whether they can be of fixed-point numbers: on a CPU with AVX512-VNNI and AVX512-BF16.
pub fn has_fixed() -> bool {
    unsafe { arriero_has_fixed() }
}

/// Leaves cuDNN out where libtorch chooses among implementations of attention. cuDNN's compiles a plan for each new shape,
/// which takes longer than a training step does, and packed trees and a batch that shrinks have new shapes all the time.
pub fn attend_without_cudnn() {
    unsafe { arriero_attend_without_cudnn() }
}

/// Bytes of memory that nobody uses on the device that `x` lies on, which is not the CPU.
pub fn free_device_memory(x: &Tensor) -> usize {
    let mut result = 0;
    check(unsafe { arriero_free_memory(raw(x), &mut result) });
    usize::try_from(result).unwrap_or(0)
}

/// A weight as an operator reads it.
#[derive(Debug)]
pub struct Weight {
    /// In the compute precision.
    pub value: Tensor,
    /// Where backward adds its gradient, f32; `None` for a frozen weight.
    pub gradient: Option<Tensor>,
    /// Whether its products are of 16-bit fixed-point numbers, and of bf16 ones on the way back, where the kernels run. Its value
    /// is f32 then, and so is what it gives, whatever it multiplies.
    pub fixed: bool,
}

impl Weight {
    /// A frozen weight that is multiplied as it is.
    pub fn plain(value: Tensor) -> Weight {
        Weight { value, gradient: None, fixed: false }
    }

    /// A handle without a gradient.
    pub fn frozen(&self) -> Weight {
        Weight { value: self.value.shallow_clone(), gradient: None, fixed: self.fixed }
    }
}

/// Rows `ids` (i64 `[tokens]`) of the embedding, in f32. `anchor` is any tensor that requires a gradient where one
/// is to be recorded: weights do not.
pub fn embedding(anchor: &Tensor, weight: &Weight, ids: &Tensor) -> Tensor {
    let gradient = raw_or_null(weight.gradient.as_ref());
    one(|result| unsafe { arriero_embedding(raw(anchor), raw(&weight.value), gradient, raw(ids), result) })
}

/// x, and x / √(mean(x²) + ε) ⊙ weight over the last axis. x and the weight are f32, what is normed of `kind`, which is
/// f32 or bf16. Who goes on with the x that this returns has its gradients added up in one pass.
pub fn rms_norm(x: &Tensor, weight: &Weight, eps: f64, kind: Kind) -> (Tensor, Tensor) {
    let (mut same, mut result) = (null(), null());
    let (weight, gradient) = (raw(&weight.value), raw_or_null(weight.gradient.as_ref()));
    let narrow = kind == Kind::BFloat16;
    check(unsafe { arriero_rms_norm(raw(x), weight, gradient, eps, narrow, &mut same, &mut result) });
    (own(same), own(result))
}

/// Rotary positions (Su et al., 2021): the first `heads` heads of each row turn by the angles of its position.
#[derive(Debug, Clone, Copy)]
pub struct Rotation<'a> {
    /// i64 `[rows]`.
    pub positions: &'a Tensor,
    /// Cosines and sines, f32 `[positions, head_dim]` each, each angle in both halves.
    pub angles: &'a (Tensor, Tensor),
    /// Query heads and key heads.
    pub heads: usize,
}

impl Rotation<'_> {
    fn given(&self) -> RotationGiven {
        RotationGiven {
            positions: raw(self.positions),
            cos: raw(&self.angles.0),
            sin: raw(&self.angles.1),
            heads: self.heads as i64,
        }
    }
}

/// What becomes of a product's f32 sums.
#[derive(Debug, Clone, Copy)]
pub enum Ending<'a> {
    /// They become of the precision of what was multiplied, f32 of the kernels.
    Rounded,
    /// They are added to this tensor, f32 `[tokens, outputs]`, and stay f32.
    Onto(&'a Tensor),
    /// They are rotated, then rounded.
    Rotated(Rotation<'a>),
}

impl Ending<'_> {
    /// Calls `operator` with the tensor to add to and the rotation, either of which may be null.
    fn with<R>(&self, operator: impl FnOnce(Raw, *const RotationGiven) -> R) -> R {
        match self {
            Ending::Rounded => operator(null(), null()),
            Ending::Onto(tensor) => operator(raw(tensor), null()),
            Ending::Rotated(rotation) => operator(null(), &rotation.given()),
        }
    }
}

/// Calls `operator` with (W, b) of several matrices and the places of their gradients.
fn with_matrices<R>(
    parts: &[(&Weight, Option<&Weight>)],
    operator: impl FnOnce(*const MatricesGiven) -> R,
) -> R {
    let gradient = |weight: &Weight| raw_or_null(weight.gradient.as_ref());
    let weights: Vec<Raw> = parts.iter().map(|(weight, _)| raw(&weight.value)).collect();
    let biases: Vec<Raw> = parts.iter().map(|(_, bias)| raw_or_null(bias.map(|bias| &bias.value))).collect();
    let weight_gradients: Vec<Raw> = parts.iter().map(|(weight, _)| gradient(weight)).collect();
    let bias_gradients: Vec<Raw> = parts.iter().map(|(_, bias)| bias.map_or(null(), gradient)).collect();
    operator(&MatricesGiven {
        weights: weights.as_ptr(),
        biases: biases.as_ptr(),
        weight_gradients: weight_gradients.as_ptr(),
        bias_gradients: bias_gradients.as_ptr(),
        count: parts.len() as i64,
        fixed: parts.iter().all(|(weight, _)| weight.fixed),
    })
}

/// x Wᵀ + b for several (W, b) side by side: `[tokens, inputs]` to `[tokens, outputs of all]`.
pub fn linear(x: &Tensor, parts: &[(&Weight, Option<&Weight>)], ending: Ending<'_>) -> Tensor {
    with_matrices(parts, |given| {
        ending.with(|onto, rotation| {
            one(|result| unsafe { arriero_linear(raw(x), given, onto, rotation, result) })
        })
    })
}

/// silu(x Gᵀ + b) ⊙ (x Uᵀ + b) of a gate and an up matrix of one size (Shazeer, 2020), rounded once.
pub fn gated(x: &Tensor, gate_up: &[(&Weight, Option<&Weight>); 2]) -> Tensor {
    with_matrices(gate_up, |given| one(|result| unsafe { arriero_gated(raw(x), given, result) }))
}

/// A frozen matrix, and its bias, in the order in which the kernels read it. Nothing is recorded for autograd.
#[derive(Debug)]
pub struct Packed {
    matrix: Tensor,
    /// Of fixed-point numbers.
    scales: Option<Tensor>,
    rows: i64,
    bias: Option<Tensor>,
}

impl Packed {
    /// Packs a matrix `[outputs, inputs]`; `None` where [`is_fast`] does not hold, or its inputs do not make
    /// pairs, which is what the kernels take.
    pub fn new(matrix: &Weight, bias: Option<Tensor>) -> Option<Self> {
        let (rows, inputs) = (matrix.value.size()[0], matrix.value.size()[1]);
        if !is_fast(&matrix.value) || inputs % 2 != 0 {
            return None;
        }
        let mut results = [null(); 2];
        check(unsafe { arriero_pack(raw(&matrix.value), matrix.fixed, results.as_mut_ptr()) });
        let [packed, scales] = results;
        Some(Packed { matrix: own(packed), scales: (!scales.is_null()).then(|| own(scales)), rows, bias })
    }

    /// A second handle.
    pub fn share(&self) -> Self {
        Packed {
            matrix: self.matrix.shallow_clone(),
            scales: self.scales.as_ref().map(Tensor::shallow_clone),
            rows: self.rows,
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
        }
    }

    /// x Wᵀ + b, in f32.
    pub fn linear(&self, x: &Tensor, ending: Ending<'_>) -> Tensor {
        ending.with(|onto, rotation| {
            one(|result| unsafe {
                arriero_packed_linear(raw(x), &self.given(), self.rows, onto, rotation, result)
            })
        })
    }

    /// As [`gated`], of which this is the gate.
    pub fn gated(&self, up: &Packed, x: &Tensor) -> Tensor {
        one(|result| unsafe { arriero_packed_gated(raw(x), &self.given(), &up.given(), self.rows, result) })
    }

    fn given(&self) -> PackedGiven {
        PackedGiven {
            matrix: raw(&self.matrix),
            scales: raw_or_null(self.scales.as_ref()),
            bias: raw_or_null(self.bias.as_ref()),
        }
    }
}

/// silu(gate) ⊙ up of rows that hold gate and up side by side.
pub fn swiglu(gate_up: &Tensor) -> Tensor {
    one(|result| unsafe { arriero_swiglu(raw(gate_up), result) })
}

/// Rotates rows in place.
pub fn rotate(qkv: &Tensor, rotation: Rotation<'_>) -> Tensor {
    one(|result| unsafe { arriero_rotate(raw(qkv), &rotation.given(), result) })
}

/// Attention within the trees of `layout`, for which [`is_fast`] holds: from rotated
/// `[tokens, (heads + 2 kv_heads) head_dim]` to `[tokens, heads head_dim]`, f32, with products of fixed-point numbers or of f32
/// ones. The layout names for each tree
/// its first token, the number of its segments (the prompt and the branches) and their lengths.
pub fn attention(qkv: &Tensor, layout: &[i64], shape: &AttentionShape, fixed: bool) -> Tensor {
    one(|result| unsafe {
        arriero_attention(raw(qkv), layout.as_ptr(), layout.len() as i64, shape, fixed, result)
    })
}

/// Stores the keys and values of rows of rotated qkv at `slots` (page × page tokens + place) of a layer's
/// `pages` `[pages, kv_heads, 2, page tokens × head_dim]`, in the pages' precision.
///
/// # Panics
/// If there is not a slot for each row.
pub fn page_write(qkv: &Tensor, shape: &AttentionShape, slots: &[i64], pages: &Tensor) {
    assert_eq!(slots.len() as i64, qkv.size()[0]);
    check(unsafe { arriero_page_write(raw(qkv), shape, slots.as_ptr(), raw(pages)) });
}

/// Attention of one query each (rows of rotated qkv) to the pages that `tables` (a row of equal width for
/// each sequence) names, of which the first `lengths` tokens count: `[sequences, heads head_dim]`.
///
/// # Panics
/// If there is not a table and a length for each row.
pub fn page_attention(
    qkv: &Tensor,
    shape: &AttentionShape,
    pages: &Tensor,
    tables: &[i64],
    lengths: &[i64],
) -> Tensor {
    let sequences = qkv.size()[0];
    assert!(lengths.len() as i64 == sequences && tables.len().is_multiple_of(lengths.len().max(1)));
    let width = (tables.len() / lengths.len().max(1)) as i64;
    one(|result| unsafe {
        arriero_page_attention(raw(qkv), shape, raw(pages), tables.as_ptr(), width, lengths.as_ptr(), result)
    })
}

/// Draws a token for each of `wanted` from logits, f32 `[rows, vocabulary]` on the CPU.
///
/// # Panics
/// If a source is no row of the logits.
pub fn draw(logits: &Tensor, wanted: &[WantedToken]) -> Vec<DrawOutcome> {
    let rows = logits.size()[0];
    assert!(wanted.iter().all(|wanted| (0..rows).contains(&wanted.source)));
    let mut drawn = vec![DrawOutcome::default(); wanted.len()];
    check(unsafe { arriero_draw(raw(logits), wanted.as_ptr(), wanted.len() as i64, drawn.as_mut_ptr()) });
    drawn
}

/// What the fused head computes of each row, f32 `[rows]` each.
#[derive(Debug)]
pub struct HeadRows {
    /// The target's logit.
    pub target_logits: Tensor,
    /// log Σ exp of the logits.
    pub log_sums: Tensor,
    /// Entropy of their softmax.
    pub entropies: Tensor,
    /// The highest logit.
    pub highest: Tensor,
}

/// The head's forward; see `policy/src/head.rs`. For tensors for which [`is_fast`] holds; `packed` is the output matrix once more.
pub fn head(hidden: &Tensor, output: &Weight, packed: Option<&Packed>, targets: &Tensor) -> HeadRows {
    let mut results = [null(); 4];
    let given = packed.map(Packed::given);
    check(unsafe {
        let (given, fixed) = (given.as_ref().map_or(null(), std::ptr::from_ref), output.fixed);
        arriero_head(raw(hidden), raw(&output.value), given, fixed, raw(targets), results.as_mut_ptr())
    });
    let [target_logits, log_sums, entropies, highest] = results.map(own);
    HeadRows { target_logits, log_sums, entropies, highest }
}

/// The head's backward: the gradient of the hidden states; that of the output matrix is added to
/// `output_gradient` (f32).
pub fn head_backward(
    hidden: &Tensor,
    output: &Weight,
    targets: &Tensor,
    rows: (&Tensor, &Tensor),
    gradients: (&Tensor, Option<&Tensor>),
    output_gradient: Option<&Tensor>,
) -> Tensor {
    one(|result| unsafe {
        arriero_head_backward(
            raw(hidden),
            raw(&output.value),
            output.fixed,
            raw(targets),
            raw(rows.0),
            raw(rows.1),
            raw(gradients.0),
            raw_or_null(gradients.1),
            raw_or_null(output_gradient),
            result,
        )
    })
}

/// One AdamW step of a parameter (all f32, on the CPU, in place); `leaf` gets the new weights in bf16.
pub fn adamw(
    master: &Tensor,
    gradient: &Tensor,
    moments: (&Tensor, &Tensor),
    leaf: Option<&Tensor>,
    step: &AdamWStep,
) {
    check(unsafe {
        arriero_adamw(raw(master), raw(gradient), raw(moments.0), raw(moments.1), raw_or_null(leaf), step)
    });
}

/// The same of many parameters at once with libtorch's ordinary operators, wherever they lie: fewer, larger calls, which is
/// what a device wants. `steps` counts this one.
///
/// # Panics
/// If the lists are not of one length, or the step is to scale the gradients: [`multiply`] does that.
pub fn adamw_together(
    masters: &[Tensor],
    gradients: &[Tensor],
    moments: &[(Tensor, Tensor)],
    leaves: &[Option<Tensor>],
    step: &AdamWStep,
    steps: i32,
) {
    assert!(
        [gradients.len(), moments.len(), leaves.len()] == [masters.len(); 3] && step.gradient_scale == 1.0
    );
    let first: Vec<Raw> = moments.iter().map(|(first, _)| raw(first)).collect();
    let second: Vec<Raw> = moments.iter().map(|(_, second)| raw(second)).collect();
    let leaves: Vec<Raw> = leaves.iter().map(|leaf| raw_or_null(leaf.as_ref())).collect();
    check(unsafe {
        arriero_adamw_together(
            raws(masters).as_ptr(),
            raws(gradients).as_ptr(),
            first.as_ptr(),
            second.as_ptr(),
            leaves.as_ptr(),
            masters.len() as i64,
            step,
            i64::from(steps),
        )
    });
}

/// √Σ x² over all elements of f32 tensors with libtorch's ordinary operators. Only this number comes to the host.
pub fn norm(tensors: &[Tensor]) -> f64 {
    let mut result = 0.0;
    check(unsafe { arriero_norm(raws(tensors).as_ptr(), tensors.len() as i64, &mut result) });
    result
}

/// Multiplies all elements of the tensors, in place.
pub fn multiply(tensors: &[Tensor], factor: f64) {
    check(unsafe { arriero_multiply(raws(tensors).as_ptr(), tensors.len() as i64, factor) });
}

/// Sets all elements of the tensors to 0.
pub fn zero(tensors: &[Tensor]) {
    check(unsafe { arriero_zero(raws(tensors).as_ptr(), tensors.len() as i64) });
}

/// target (f32) += a b.
pub fn add_product(target: &mut Tensor, a: &Tensor, b: &Tensor) {
    check(unsafe { arriero_add_product(raw(target), raw(a), raw(b)) });
}

/// f32 weights as bf16. Each is rounded up or down by a threshold that belongs to its place in the tensor, so that there is
/// no bias over many weights, and small changes are not lost (docs/adr/0006-rounding-weights.md).
pub fn round_weights(x: &Tensor) -> Tensor {
    one(|result| unsafe { arriero_round_weights(raw(x), result) })
}

/// Σ x² of an f32 tensor on the CPU, in f64; the order of the sum does not depend on the threads.
pub fn square_sum(x: &Tensor) -> f64 {
    let mut result = 0.0;
    check(unsafe { arriero_square_sum(raw(x), &mut result) });
    result
}

#[cfg(test)]
mod tests;

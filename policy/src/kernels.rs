//! Operators of `kernels/`: what libtorch lacks, or does in too many passes over memory.
//!
//! The products go through libtorch's own microkernel (oneDNN's brgemm); everything else is plain loops in
//! C++. Where the processor or the device lacks what they need (CUDA among them), an operator computes the
//! same with libtorch's ordinary operators, and a test compares the two.
//!
//! Gradients of weights do not go through autograd: [`Weight::gradient`] is the f32 buffer that an operator
//! adds to in its backward. Autograd carries the gradients of activations.
//!
//! All unsafe code that calls C++ is here.
#![allow(unsafe_code, reason = "calls of the C++ operators")]

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null;

use tch::{Kind, Tensor};

type Raw = *const c_void;

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
pub struct DrawnToken {
    /// The token.
    pub token: i64,
    /// Its log-probability under the softmax of the logits.
    pub logp: f32,
    /// The same under the softmax of the scaled logits; 0 where the highest was taken.
    pub sampled_logp: f32,
}

/// Tokens of a page of the decoding cache.
pub const PAGE_TOKENS: usize = 16;

unsafe extern "C" {
    fn arriero_plain_only(on: bool);
    fn arriero_is_fast(x: Raw) -> bool;
    fn arriero_free_memory(x: Raw, result: *mut i64) -> *mut c_char;
    fn arriero_embedding(anchor: Raw, weight: Raw, gradient: Raw, ids: Raw, result: *mut Raw) -> *mut c_char;
    fn arriero_rms_norm(
        x: Raw,
        delta: Raw,
        weight: Raw,
        gradient: Raw,
        eps: f64,
        narrow: bool,
        sum: *mut Raw,
        result: *mut Raw,
    ) -> *mut c_char;
    fn arriero_linear(
        x: Raw,
        weights: *const Raw,
        biases: *const Raw,
        weight_gradients: *const Raw,
        bias_gradients: *const Raw,
        count: i64,
        result: *mut Raw,
    ) -> *mut c_char;
    fn arriero_pack(weight: Raw, result: *mut Raw) -> *mut c_char;
    fn arriero_packed_linear(
        x: Raw,
        packed: Raw,
        rows: i64,
        bias: Raw,
        wide: bool,
        result: *mut Raw,
    ) -> *mut c_char;
    fn arriero_swiglu(gate_up: Raw, result: *mut Raw) -> *mut c_char;
    fn arriero_rotate(
        qkv: Raw,
        positions: Raw,
        cos: Raw,
        sin: Raw,
        heads: i64,
        result: *mut Raw,
    ) -> *mut c_char;
    fn arriero_attention(
        qkv: Raw,
        layout: *const i64,
        length: i64,
        shape: *const AttentionShape,
        result: *mut Raw,
    ) -> *mut c_char;
    fn arriero_page_write(
        qkv: Raw,
        shape: *const AttentionShape,
        slots: *const i64,
        pages: Raw,
    ) -> *mut c_char;
    fn arriero_draw(
        logits: Raw,
        wanted: *const WantedToken,
        rows: i64,
        drawn: *mut DrawnToken,
    ) -> *mut c_char;
    fn arriero_page_attention(
        qkv: Raw,
        shape: *const AttentionShape,
        pages: Raw,
        tables: *const i64,
        table_width: i64,
        lengths: *const i64,
        result: *mut Raw,
    ) -> *mut c_char;
    fn arriero_head(hidden: Raw, output: Raw, targets: Raw, results: *mut Raw) -> *mut c_char;
    fn arriero_head_backward(
        hidden: Raw,
        output: Raw,
        targets: Raw,
        log_sums: Raw,
        entropies: Raw,
        d_logps: Raw,
        d_entropies: Raw,
        output_gradient: Raw,
        result: *mut Raw,
    ) -> *mut c_char;
    fn arriero_adamw(
        master: Raw,
        gradient: Raw,
        first: Raw,
        second: Raw,
        leaf: Raw,
        options: *const AdamWStep,
    ) -> *mut c_char;
    fn arriero_round_weights(x: Raw, result: *mut Raw) -> *mut c_char;
    fn arriero_square_sum(x: Raw, result: *mut f64) -> *mut c_char;
}

fn raw(tensor: &Tensor) -> Raw {
    tensor.as_ptr().cast::<c_void>()
}

fn raw_or_null(tensor: Option<&Tensor>) -> Raw {
    tensor.map_or(null(), raw)
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

/// Whether products of tensors like `x` go through the microkernel: on the CPU, f32 with AVX-512, bf16 with
/// AVX512-BF16.
pub fn is_fast(x: &Tensor) -> bool {
    unsafe { arriero_is_fast(raw(x)) }
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
}

/// Rows `ids` (i64 `[tokens]`) of the embedding, in f32. `anchor` is any tensor that requires a gradient where one
/// is to be recorded: weights do not.
pub fn embedding(anchor: &Tensor, weight: &Weight, ids: &Tensor) -> Tensor {
    let gradient = raw_or_null(weight.gradient.as_ref());
    one(|result| unsafe { arriero_embedding(raw(anchor), raw(&weight.value), gradient, raw(ids), result) })
}

/// s = x + delta, and s / √(mean(s²) + ε) ⊙ weight over the last axis: (s, normed). x, s and the weight are f32, delta and
/// what is normed of `kind`, which is f32 or bf16.
pub fn rms_norm(
    x: &Tensor,
    delta: Option<&Tensor>,
    weight: &Weight,
    eps: f64,
    kind: Kind,
) -> (Tensor, Tensor) {
    let (mut sum, mut result) = (null(), null());
    let (x, delta, weight, gradient) =
        (raw(x), raw_or_null(delta), raw(&weight.value), raw_or_null(weight.gradient.as_ref()));
    let narrow = kind == Kind::BFloat16;
    check(unsafe { arriero_rms_norm(x, delta, weight, gradient, eps, narrow, &mut sum, &mut result) });
    (own(sum), own(result))
}

/// x Wᵀ + b for several (W, b) side by side: `[tokens, inputs]` to `[tokens, outputs of all]`.
pub fn linear(x: &Tensor, parts: &[(&Weight, Option<&Weight>)]) -> Tensor {
    let weights: Vec<Raw> = parts.iter().map(|(weight, _)| raw(&weight.value)).collect();
    let biases: Vec<Raw> = parts.iter().map(|(_, bias)| raw_or_null(bias.map(|bias| &bias.value))).collect();
    let weight_gradients: Vec<Raw> =
        parts.iter().map(|(weight, _)| raw_or_null(weight.gradient.as_ref())).collect();
    let bias_gradient = |bias: &Option<&Weight>| raw_or_null(bias.and_then(|bias| bias.gradient.as_ref()));
    let bias_gradients: Vec<Raw> = parts.iter().map(|(_, bias)| bias_gradient(bias)).collect();
    one(|result| unsafe {
        arriero_linear(
            raw(x),
            weights.as_ptr(),
            biases.as_ptr(),
            weight_gradients.as_ptr(),
            bias_gradients.as_ptr(),
            parts.len() as i64,
            result,
        )
    })
}

/// A frozen matrix in the order in which the microkernel reads it.
#[derive(Debug)]
pub struct Packed {
    matrix: Tensor,
    rows: i64,
}

impl Packed {
    /// Packs a matrix `[outputs, inputs]`; `None` where [`is_fast`] does not hold, or its inputs do not make
    /// pairs, which is what the microkernel takes.
    pub fn new(matrix: &Tensor) -> Option<Self> {
        let (rows, inputs) = (matrix.size()[0], matrix.size()[1]);
        (is_fast(matrix) && inputs % 2 == 0)
            .then(|| Packed { matrix: one(|result| unsafe { arriero_pack(raw(matrix), result) }), rows })
    }

    /// x Wᵀ + bias, in x's precision or, with `wide`, in f32. Nothing is recorded for autograd.
    pub fn linear(&self, x: &Tensor, bias: Option<&Tensor>, wide: bool) -> Tensor {
        one(|result| unsafe {
            arriero_packed_linear(raw(x), raw(&self.matrix), self.rows, raw_or_null(bias), wide, result)
        })
    }
}

/// silu(gate) ⊙ up of rows that hold gate and up side by side.
pub fn swiglu(gate_up: &Tensor) -> Tensor {
    one(|result| unsafe { arriero_swiglu(raw(gate_up), result) })
}

/// Rotates the first `heads` heads of each row in place by the angles of its position (i64 `[tokens]`); cos
/// and sin are f32 `[positions, head_dim]`, each angle in both halves (Su et al., 2021).
pub fn rotate(qkv: &Tensor, positions: &Tensor, angles: &(Tensor, Tensor), heads: usize) -> Tensor {
    one(|result| unsafe {
        arriero_rotate(raw(qkv), raw(positions), raw(&angles.0), raw(&angles.1), heads as i64, result)
    })
}

/// Attention within the trees of `layout`, for which [`is_fast`] holds: from rotated
/// `[tokens, (heads + 2 kv_heads) head_dim]` to `[tokens, heads head_dim]`. The layout names for each tree
/// its first token, the number of its segments (the prompt and the branches) and their lengths.
pub fn attention(qkv: &Tensor, layout: &[i64], shape: &AttentionShape) -> Tensor {
    one(|result| unsafe { arriero_attention(raw(qkv), layout.as_ptr(), layout.len() as i64, shape, result) })
}

/// Stores the keys and values of rows of rotated qkv at `slots` (page × page tokens + place) of a layer's
/// `pages` `[pages, kv_heads, 2, page tokens × head_dim]`.
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
pub fn draw(logits: &Tensor, wanted: &[WantedToken]) -> Vec<DrawnToken> {
    let rows = logits.size()[0];
    assert!(wanted.iter().all(|wanted| (0..rows).contains(&wanted.source)));
    let mut drawn = vec![DrawnToken::default(); wanted.len()];
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

/// The head's forward; see `policy/src/head.rs`. For tensors for which [`is_fast`] holds.
pub fn head(hidden: &Tensor, output: &Tensor, targets: &Tensor) -> HeadRows {
    let mut results = [null(); 4];
    check(unsafe { arriero_head(raw(hidden), raw(output), raw(targets), results.as_mut_ptr()) });
    let [target_logits, log_sums, entropies, highest] = results.map(own);
    HeadRows { target_logits, log_sums, entropies, highest }
}

/// The head's backward: the gradient of the hidden states; that of the output matrix is added to
/// `output_gradient` (f32).
pub fn head_backward(
    hidden: &Tensor,
    output: &Tensor,
    targets: &Tensor,
    rows: (&Tensor, &Tensor),
    gradients: (&Tensor, Option<&Tensor>),
    output_gradient: Option<&Tensor>,
) -> Tensor {
    one(|result| unsafe {
        arriero_head_backward(
            raw(hidden),
            raw(output),
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
mod tests {
    use tch::Device;

    use super::*;

    /// Rows and columns that fill no block, in both precisions, against libtorch's product in f64.
    #[test]
    fn packed_products_equal_the_ordinary_ones() {
        tch::manual_seed(5);
        for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 1e-6)] {
            let random = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind);
            let (matrix, bias) = (random([101, 38]), random([1, 101]).squeeze());
            let Some(packed) = Packed::new(&matrix) else {
                println!("skipped: no microkernel for {kind:?} here");
                continue;
            };
            for rows in [1, 17, 70, 600] {
                let x = random([rows, 38]);
                let found = packed.linear(&x, Some(&bias), true).to_kind(Kind::Double);
                let wide = |tensor: &Tensor| tensor.to_kind(Kind::Double);
                let expected = wide(&x).matmul(&wide(&matrix).tr()) + wide(&bias);
                let error = ((found - &expected).norm() / expected.norm()).double_value(&[]);
                assert!(error < tolerance, "{kind:?}, {rows} rows: relative error {error}");
                // A row does not depend on its neighbours.
                let alone = packed.linear(&x.narrow(0, rows - 1, 1), Some(&bias), true);
                assert_eq!(alone, packed.linear(&x, Some(&bias), true).narrow(0, rows - 1, 1));
            }
        }
    }

    /// Numbers of bf16 stay what they are; between two of them as many go up as the distance says, and a number that
    /// grows never rounds lower. The kernel and libtorch's operators choose the same.
    #[test]
    fn weights_are_rounded_without_bias() {
        let numbers =
            |tensor: &Tensor| -> Vec<f64> { Vec::try_from(tensor.to_kind(Kind::Double)).expect("a vector") };
        tch::manual_seed(5);
        let exact = Tensor::randn([1000], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        assert_eq!(numbers(&round_weights(&exact.to_kind(Kind::Float))), numbers(&exact));
        // From 1 to the next number of bf16 it is 1/128.
        let mut before = vec![f64::MIN; 100_000];
        for part in [0.0, 0.01, 0.25, 0.5, 0.99, 1.0] {
            for sign in [1.0, -1.0] {
                let x = Tensor::full([100_000], sign * (1.0 + part / 128.0), (Kind::Float, Device::Cpu));
                let rounded = round_weights(&x);
                plain_only(true);
                let plain = round_weights(&x);
                plain_only(false);
                assert_eq!(numbers(&rounded), numbers(&plain));
                let up = (numbers(&rounded).iter().map(|x| x.abs()).sum::<f64>() / 1e5 - 1.0) * 128.0;
                assert!((up - part).abs() < 0.005, "{part}: {up} went up");
                if sign > 0.0 {
                    let now = numbers(&rounded);
                    assert!(
                        before.iter().zip(&now).all(|(before, now)| before <= now),
                        "{part}: some went down"
                    );
                    before = now;
                }
            }
        }
        let odd = Tensor::from_slice(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0]);
        let kept = numbers(&round_weights(&odd));
        assert!(kept[0] == f64::INFINITY && kept[1] == f64::NEG_INFINITY && kept[2].is_nan(), "{kept:?}");
        assert_eq!(kept[3..], [0.0, 0.0]);
    }

    #[test]
    fn inputs_that_make_no_pairs_are_not_packed() {
        assert!(Packed::new(&Tensor::zeros([4, 7], (Kind::BFloat16, Device::Cpu))).is_none());
    }
}

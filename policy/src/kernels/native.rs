//! The C++ operators as C declares them (`kernels/operators.cpp`), and the structures that they are given.

use std::ffi::{c_char, c_void};

use super::{AdamWStep, AttentionShape, DrawOutcome, WantedToken};

/// A tensor, or null where there may be none.
pub(super) type Raw = *const c_void;

/// What `MatricesGiven` is in C++.
#[repr(C)]
pub(super) struct MatricesGiven {
    pub(super) weights: *const Raw,
    pub(super) biases: *const Raw,
    pub(super) weight_gradients: *const Raw,
    pub(super) bias_gradients: *const Raw,
    pub(super) count: i64,
    pub(super) fixed: bool,
}

/// What `RotationGiven` is in C++.
#[repr(C)]
pub(super) struct RotationGiven {
    pub(super) positions: Raw,
    pub(super) cos: Raw,
    pub(super) sin: Raw,
    pub(super) heads: i64,
}

/// What `PackedGiven` is in C++.
#[repr(C)]
pub(super) struct PackedGiven {
    pub(super) matrix: Raw,
    pub(super) scales: Raw,
    pub(super) bias: Raw,
}

unsafe extern "C" {
    pub(super) fn arriero_plain_only(on: bool);
    pub(super) fn arriero_is_fast(x: Raw) -> bool;
    pub(super) fn arriero_has_fixed() -> bool;
    pub(super) fn arriero_free_memory(x: Raw, result: *mut i64) -> *mut c_char;
    pub(super) fn arriero_embedding(
        anchor: Raw,
        weight: Raw,
        gradient: Raw,
        ids: Raw,
        result: *mut Raw,
    ) -> *mut c_char;
    pub(super) fn arriero_rms_norm(
        x: Raw,
        weight: Raw,
        gradient: Raw,
        eps: f64,
        narrow: bool,
        same: *mut Raw,
        result: *mut Raw,
    ) -> *mut c_char;
    pub(super) fn arriero_linear(
        x: Raw,
        given: *const MatricesGiven,
        onto: Raw,
        rotation: *const RotationGiven,
        result: *mut Raw,
    ) -> *mut c_char;
    pub(super) fn arriero_gated(x: Raw, given: *const MatricesGiven, result: *mut Raw) -> *mut c_char;
    pub(super) fn arriero_pack(weight: Raw, fixed: bool, results: *mut Raw) -> *mut c_char;
    pub(super) fn arriero_packed_linear(
        x: Raw,
        matrix: *const PackedGiven,
        rows: i64,
        onto: Raw,
        rotation: *const RotationGiven,
        result: *mut Raw,
    ) -> *mut c_char;
    pub(super) fn arriero_packed_gated(
        x: Raw,
        gate: *const PackedGiven,
        up: *const PackedGiven,
        rows: i64,
        result: *mut Raw,
    ) -> *mut c_char;
    pub(super) fn arriero_swiglu(gate_up: Raw, result: *mut Raw) -> *mut c_char;
    pub(super) fn arriero_rotate(qkv: Raw, rotation: *const RotationGiven, result: *mut Raw) -> *mut c_char;
    pub(super) fn arriero_attention(
        qkv: Raw,
        layout: *const i64,
        length: i64,
        shape: *const AttentionShape,
        fixed: bool,
        result: *mut Raw,
    ) -> *mut c_char;
    pub(super) fn arriero_page_write(
        qkv: Raw,
        shape: *const AttentionShape,
        slots: *const i64,
        pages: Raw,
    ) -> *mut c_char;
    pub(super) fn arriero_draw(
        logits: Raw,
        wanted: *const WantedToken,
        rows: i64,
        drawn: *mut DrawOutcome,
    ) -> *mut c_char;
    pub(super) fn arriero_page_attention(
        qkv: Raw,
        shape: *const AttentionShape,
        pages: Raw,
        tables: *const i64,
        table_width: i64,
        lengths: *const i64,
        result: *mut Raw,
    ) -> *mut c_char;
    pub(super) fn arriero_head(
        hidden: Raw,
        output: Raw,
        packed: *const PackedGiven,
        fixed: bool,
        targets: Raw,
        results: *mut Raw,
    ) -> *mut c_char;
    pub(super) fn arriero_head_backward(
        hidden: Raw,
        output: Raw,
        fixed: bool,
        targets: Raw,
        log_sums: Raw,
        entropies: Raw,
        d_logps: Raw,
        d_entropies: Raw,
        output_gradient: Raw,
        result: *mut Raw,
    ) -> *mut c_char;
    pub(super) fn arriero_adamw(
        master: Raw,
        gradient: Raw,
        first: Raw,
        second: Raw,
        leaf: Raw,
        options: *const AdamWStep,
    ) -> *mut c_char;
    pub(super) fn arriero_adamw_together(
        masters: *const Raw,
        gradients: *const Raw,
        first: *const Raw,
        second: *const Raw,
        leaves: *const Raw,
        count: i64,
        options: *const AdamWStep,
        steps: i64,
    ) -> *mut c_char;
    pub(super) fn arriero_norm(tensors: *const Raw, count: i64, result: *mut f64) -> *mut c_char;
    pub(super) fn arriero_multiply(tensors: *const Raw, count: i64, factor: f64) -> *mut c_char;
    pub(super) fn arriero_attend_without_cudnn();
    pub(super) fn arriero_zero(tensors: *const Raw, count: i64) -> *mut c_char;
    pub(super) fn arriero_add_product(target: Raw, a: Raw, b: Raw) -> *mut c_char;
    pub(super) fn arriero_round_weights(x: Raw, result: *mut Raw) -> *mut c_char;
    pub(super) fn arriero_square_sum(x: Raw, result: *mut f64) -> *mut c_char;
}

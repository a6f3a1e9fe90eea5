//! The matrices of a layer, with their biases and adapters.

use tch::Tensor;

use crate::kernels::{self, Ending, Packed, Weight};
use crate::lora::add_product;

/// scale (x Aᵀ) Bᵀ, which an adapter adds to a product.
#[derive(Debug)]
pub(super) struct LowRank {
    /// `[r, inputs]`.
    pub(super) a: Weight,
    /// `[outputs, r]`.
    pub(super) b: Weight,
    pub(super) scale: f64,
}

impl LowRank {
    fn forward(&self, x: &Tensor) -> Tensor {
        let inner = kernels::linear(x, &[(&self.a, None)], Ending::Rounded);
        kernels::linear(&inner, &[(&self.b, None)], Ending::Rounded) * self.scale
    }
}

/// One matrix.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) weight: Weight,
    pub(super) bias: Option<Weight>,
    pub(super) adapter: Option<LowRank>,
}

/// Matrices that read the same input, side by side in their output.
#[derive(Debug)]
pub(super) struct Projection {
    pub(super) parts: Vec<Part>,
    /// All of them with their biases, packed for decoding.
    pub(super) packed: Option<Packed>,
}

impl Projection {
    /// From `[tokens, inputs]` to `[tokens, outputs of all]`.
    pub(super) fn forward(&self, x: &Tensor, ending: Ending<'_>) -> Tensor {
        if let Some(packed) = &self.packed {
            return packed.linear(x, ending);
        }
        if !self.is_adapted() {
            return kernels::linear(x, &self.matrices(), ending);
        }
        let plain = kernels::linear(x, &self.matrices(), Ending::Rounded);
        let widths: Vec<i64> = self.parts.iter().map(|part| part.weight.value.size()[0]).collect();
        let add = |(part, plain): (&Part, Tensor)| match &part.adapter {
            Some(adapter) => plain + adapter.forward(x),
            None => plain,
        };
        let plain = plain.split_with_sizes(&widths, 1);
        let all = Tensor::cat(&self.parts.iter().zip(plain).map(add).collect::<Vec<_>>(), 1);
        match ending {
            Ending::Rounded => all,
            Ending::Onto(tensor) => tensor + all,
            Ending::Rotated(rotation) => kernels::rotate(&all, rotation),
        }
    }

    fn matrices(&self) -> Vec<(&Weight, Option<&Weight>)> {
        self.parts.iter().map(|part| (&part.weight, part.bias.as_ref())).collect()
    }

    fn is_adapted(&self) -> bool {
        self.parts.iter().any(|part| part.adapter.is_some())
    }

    /// Puts the matrices in the order in which the kernels read them fastest, with their adapters merged, and lets go of them as
    /// they were.
    pub(super) fn pack(&mut self) {
        if self.packed.is_some() {
            return;
        }
        let merged = |part: &Part| match &part.adapter {
            Some(LowRank { a, b, scale }) => {
                add_product(&part.weight.value, &a.value, &b.value, *scale).to_kind(part.weight.value.kind())
            }
            None => part.weight.value.shallow_clone(),
        };
        let matrix = Tensor::cat(&self.parts.iter().map(merged).collect::<Vec<_>>(), 0);
        let biases: Vec<&Tensor> =
            self.parts.iter().filter_map(|part| part.bias.as_ref().map(|bias| &bias.value)).collect();
        let bias = (!biases.is_empty()).then(|| Tensor::cat(&biases, 0));
        let fixed = self.parts.iter().all(|part| part.weight.fixed);
        self.packed = Packed::new(&Weight { value: matrix, gradient: None, fixed }, bias);
        if self.packed.is_some() {
            self.parts.clear();
        }
    }
}

/// silu(gate) ⊙ up.
pub(super) fn gated(gate: &Projection, up: &Projection, x: &Tensor) -> Tensor {
    if let (Some(gate), Some(up)) = (&gate.packed, &up.packed) {
        return gate.gated(up, x);
    }
    if let ([gate], [up], false) =
        (&gate.matrices()[..], &up.matrices()[..], gate.is_adapted() || up.is_adapted())
    {
        return kernels::gated(x, &[*gate, *up]);
    }
    let sides = [gate, up].map(|side| side.forward(x, Ending::Rounded));
    kernels::swiglu(&Tensor::cat(&sides, 1))
}

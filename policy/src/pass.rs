//! A forward pass through the decoder that can be gone back through, with or without keeping what the
//! layers computed.

use tch::{Kind, Tensor, no_grad};

use crate::forest::Forest;
use crate::model::{ForestAttention, Model};

/// A recorded forward pass.
#[derive(Debug)]
pub struct Pass<'a> {
    model: &'a Model,
    forest: &'a Forest,
    /// What each layer read, where its insides were not kept.
    inputs: Vec<Tensor>,
    /// What the last of these layers left, as leaves of autograd.
    last: Option<Tensor>,
    hidden: Tensor,
}

impl<'a> Pass<'a> {
    /// Runs a forest through a trainable model. With `checkpointing` only what stands between the layers
    /// is kept, and the backward runs each layer once more (Chen et al., "Training Deep Nets with
    /// Sublinear Memory Cost", 2016).
    pub fn record(model: &'a Model, forest: &'a Forest, checkpointing: bool) -> Self {
        if !checkpointing {
            let hidden = model.predictors(forest);
            return Pass { model, forest, inputs: Vec::new(), last: None, hidden };
        }
        let mut attention = ForestAttention::new(model, forest);
        let (inputs, last) = no_grad(|| {
            let mut inputs = Vec::new();
            let mut residual = model.embed(&forest.tokens);
            for number in 0..model.config().num_layers {
                let mut attend = |layer: usize, qkv: &Tensor| attention.attend(layer, qkv);
                let next = model.layer(number, &residual, &forest.positions, &mut attend);
                inputs.push(std::mem::replace(&mut residual, next));
            }
            (inputs, residual)
        });
        let last = leaf(&last);
        let hidden = model.finish(&last).index_select(0, &forest.predictors);
        Pass { model, forest, inputs, last: Some(last), hidden }
    }

    /// Hidden states that predict the response tokens, `[response tokens, hidden]`.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// Adds the gradients of all weights, given that of [`Pass::hidden`].
    pub fn backward(self, gradient: &Tensor) {
        // The gradient of this sum with respect to `tensor` is `gradient`.
        let share = |tensor: &Tensor, gradient: &Tensor| (tensor * gradient).sum(Kind::Float);
        share(&self.hidden, gradient).backward();
        let Some(mut after) = self.last else { return };
        let mut attention = ForestAttention::new(self.model, self.forest);
        for (number, input) in self.inputs.iter().enumerate().rev() {
            // The first layer's input is the embedding, which is recorded itself.
            let before = if number == 0 { self.model.embed(&self.forest.tokens) } else { leaf(input) };
            let mut attend = |layer: usize, qkv: &Tensor| attention.attend(layer, qkv);
            let again = self.model.layer(number, &before, &self.forest.positions, &mut attend);
            share(&again, &after.grad()).backward();
            after = before;
        }
    }
}

/// The same numbers as a leaf that collects a gradient.
fn leaf(tensor: &Tensor) -> Tensor {
    tensor.detach().set_requires_grad(true)
}

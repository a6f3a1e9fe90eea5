//! The one decoder: RMS norm, rotary positions, grouped-query attention, SwiGLU; with biases or norms on
//! heads where the configuration has them.
//!
//! Touvron et al., "LLaMA", 2023 (arXiv:2302.13971); Su et al., "RoFormer", 2021 (arXiv:2104.09864);
//! Ainslie et al., "GQA", 2023 (arXiv:2305.13245); Shazeer, "GLU Variants", 2020 (arXiv:2002.05202); Henry
//! et al., "Query-Key Normalization", 2020 (arXiv:2010.04245).
//!
//! [`Model::layers`] is the only forward pass. It works on a flat axis of tokens and leaves attention
//! to its caller, who knows how these tokens belong together: [`Model::forest`] attends within the
//! trees of a packed batch, the generator attends to its cache. What is computed of a layer, and how its
//! weights get their gradients, is [`crate::kernels`]' affair.

use tch::{Device, Kind, Tensor};

use crate::checkpoint::Weights;
use crate::config::{Head, ModelConfig, SCORE};
use crate::device::Compute;
use crate::error::{PolicyError, Result};
use crate::forest::{Forest, PaddedTrees};
use crate::head::Output;
use crate::kernels::{self, AttentionShape, Ending, Rotation, Weight};
use crate::lora::{Adapter, Module};

mod projection;

use projection::{LowRank, Part, Projection, gated};

/// Attention of one layer: from its number and the rotated queries, keys and values side by side
/// `[tokens, (heads + 2 kv_heads) head_dim]` to `[tokens, heads head_dim]`.
pub type Attend<'a> = dyn FnMut(usize, &Tensor) -> Tensor + 'a;

/// Shown each layer's number and what [`Attend`] is given.
pub type Keep<'a> = dyn FnMut(usize, &Tensor) + 'a;

#[derive(Debug)]
struct Layer {
    input_norm: Weight,
    qkv: Projection,
    /// Of each head's queries and of its keys, `[head_dim]`.
    head_norms: Option<(Weight, Weight)>,
    attention_output: Projection,
    post_attention_norm: Weight,
    gate: Projection,
    up: Projection,
    down: Projection,
}

/// A decoder with its weights.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    compute: Compute,
    embedding: Weight,
    layers: Vec<Layer>,
    norm: Weight,
    output: Output,
    /// A reward model's head, `[1, hidden]`.
    score: Option<Tensor>,
    /// Cosines and sines of the rotary angles, f32 `[max_positions, head_dim]` each.
    rotary: (Tensor, Tensor),
    /// Requires a gradient where the model is trained, so that autograd records.
    anchor: Tensor,
}

impl Model {
    /// A frozen model over `weights` (Hugging Face names), which it shares where device and precision are
    /// already those of `compute`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape than the configuration says.
    pub fn new(config: &ModelConfig, weights: &Weights, compute: Compute) -> Result<Self> {
        Model::trainable(config, weights, &Weights::new(), compute)
    }

    /// A model whose backward adds the gradients of the weights named in `gradients` to these tensors (f32,
    /// shapes of the weights).
    ///
    /// # Errors
    /// As [`Model::new`].
    pub fn trainable(
        config: &ModelConfig,
        weights: &Weights,
        gradients: &Weights,
        compute: Compute,
    ) -> Result<Self> {
        Model::build(config, weights, None, gradients, compute)
    }

    /// A frozen model over `weights` with an adapter, whose tensors' gradients backward adds to those in
    /// `gradients` (f32, by the adapter's names).
    ///
    /// # Errors
    /// As [`Model::new`], or if the adapter is another model's.
    pub fn adapted(
        config: &ModelConfig,
        weights: &Weights,
        adapter: &Adapter,
        gradients: &Weights,
        compute: Compute,
    ) -> Result<Self> {
        adapter.check(config)?;
        Model::build(config, weights, Some(adapter), gradients, compute)
    }

    fn build(
        config: &ModelConfig,
        weights: &Weights,
        adapter: Option<&Adapter>,
        gradients: &Weights,
        compute: Compute,
    ) -> Result<Self> {
        for (name, shape) in config.tensor_shapes() {
            let tensor =
                weights.get(&name).ok_or_else(|| PolicyError::MissingTensor { name: name.clone() })?;
            if tensor.size() != shape {
                return Err(PolicyError::WrongShape { name, expected: shape, found: tensor.size() });
            }
        }
        let place = |name: &str, tensor: &Tensor| Weight {
            value: compute.place(name, tensor).contiguous(),
            gradient: gradients.get(name).map(Tensor::shallow_clone),
            fixed: compute.is_fixed(),
        };
        let weight = |name: &str| place(name, &weights[name]);
        let low_rank = |module: &str| {
            let (a, b) = Module::tensors_of(module);
            let matrix = |name: &str| adapter?.tensors.get(name).map(|tensor| place(name, tensor));
            Some(LowRank { a: matrix(&a)?, b: matrix(&b)?, scale: adapter?.config.scale() })
        };
        let layer = |number: usize| {
            let norm = |name: &str| weight(&format!("model.layers.{number}.{name}.weight"));
            let projection = |names: &[&str], bias: bool| Projection {
                parts: names
                    .iter()
                    .map(|name| {
                        let module = format!("model.layers.{number}.{name}");
                        let bias = bias.then(|| weight(&format!("{module}.bias")));
                        Part { weight: norm(name), bias, adapter: low_rank(&module) }
                    })
                    .collect(),
                packed: None,
            };
            Layer {
                input_norm: norm("input_layernorm"),
                qkv: projection(
                    &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                    config.qkv_bias(),
                ),
                head_norms: config.qk_norm().then(|| (norm("self_attn.q_norm"), norm("self_attn.k_norm"))),
                attention_output: projection(&["self_attn.o_proj"], config.attention_bias),
                post_attention_norm: norm("post_attention_layernorm"),
                gate: projection(&["mlp.gate_proj"], config.mlp_bias),
                up: projection(&["mlp.up_proj"], config.mlp_bias),
                down: projection(&["mlp.down_proj"], config.mlp_bias),
            }
        };
        let embedding = weight("model.embed_tokens.weight");
        let output = match config.head {
            Head::Language if !config.tie_embeddings => weight("lm_head.weight").frozen(),
            // A reward model has none, and nobody asks for its logits.
            _ => embedding.frozen(),
        };
        Ok(Model {
            layers: (0..config.num_layers).map(layer).collect(),
            norm: weight("model.norm.weight"),
            rotary: rotary_table(config, compute.device),
            config: config.clone(),
            compute,
            embedding,
            output: Output::new(output),
            score: config.has_score().then(|| weight(SCORE).value),
            anchor: Tensor::zeros([1], (Kind::Float, compute.device))
                .set_requires_grad(!gradients.is_empty()),
        })
    }

    /// The same frozen model with its matrices in the order in which the kernels read them fastest, a copy that pays where
    /// few tokens go through at a time: of a model that generates, or scores.
    pub fn packed(mut self) -> Self {
        if self.is_fast() {
            for layer in &mut self.layers {
                let Layer { qkv, attention_output, gate, up, down, .. } = layer;
                for projection in [qkv, attention_output, gate, up, down] {
                    projection.pack();
                }
            }
            if self.config.head == Head::Language {
                self.output = self.output.packed();
            }
        }
        self
    }

    /// The architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Device and precision.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// The output matrix `[vocab, hidden]`; the embedding itself where the two are tied.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// A reward model's head, `[1, hidden]`.
    pub fn score(&self) -> Option<&Tensor> {
        self.score.as_ref()
    }

    /// Logits of final hidden states `[rows, hidden]`: f32 `[rows, vocab]`, summed in f32.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        self.output.logits(hidden)
    }

    /// Whether attention and products go through the kernels.
    pub fn is_fast(&self) -> bool {
        kernels::is_fast(self.output.matrix())
    }

    /// Numbers of a layer's attention.
    pub fn attention_shape(&self, layer: usize) -> AttentionShape {
        AttentionShape {
            heads: self.config.num_heads as i64,
            kv_heads: self.config.num_kv_heads as i64,
            head_dim: self.config.head_dim as i64,
            scale: (self.config.head_dim as f32).sqrt().recip(),
            window: self.config.window(layer).map_or(0, |window| window as i64),
        }
    }

    /// The residual stream before the first layer, of tokens i64 `[tokens]`: `[tokens, hidden]` in f32, whatever the
    /// products' precision.
    pub fn embed(&self, tokens: &Tensor) -> Tensor {
        kernels::embedding(&self.anchor, &self.embedding, tokens)
    }

    /// The residual stream after one layer, of tokens at positions (i64 `[tokens]`).
    pub fn layer(
        &self,
        number: usize,
        residual: &Tensor,
        positions: &Tensor,
        attend: &mut Attend<'_>,
    ) -> Tensor {
        let layer = &self.layers[number];
        let rotation = Rotation {
            positions,
            angles: &self.rotary,
            heads: self.config.num_heads + self.config.num_kv_heads,
        };
        let (residual, input) = self.norm(residual, &layer.input_norm);
        let qkv = match &layer.head_norms {
            None => layer.qkv.forward(&input, Ending::Rotated(rotation)),
            Some(norms) => {
                let qkv = layer.qkv.forward(&input, Ending::Rounded);
                kernels::rotate(&self.norm_heads(&qkv, norms), rotation)
            }
        };
        let residual = layer.attention_output.forward(&attend(number, &qkv), Ending::Onto(&residual));
        let (residual, input) = self.norm(&residual, &layer.post_attention_norm);
        layer.down.forward(&gated(&layer.gate, &layer.up, &input), Ending::Onto(&residual))
    }

    /// Final hidden states, normed, `[tokens, hidden]`.
    pub fn finish(&self, residual: &Tensor) -> Tensor {
        self.norm(residual, &self.norm).1
    }

    /// The stream itself (f32), and normed for the next product.
    fn norm(&self, residual: &Tensor, norm: &Weight) -> (Tensor, Tensor) {
        kernels::rms_norm(residual, norm, self.config.rms_norm_eps, self.compute.activations())
    }

    /// Final hidden states, normed, `[tokens, hidden]`, of tokens (i64 `[tokens]`) at positions (i64
    /// `[tokens]`).
    pub fn layers(&self, tokens: &Tensor, positions: &Tensor, attend: &mut Attend<'_>) -> Tensor {
        let mut residual = self.embed(tokens);
        for number in 0..self.layers.len() {
            residual = self.layer(number, &residual, positions, attend);
        }
        self.finish(&residual)
    }

    /// Hidden states of a packed batch, `[tokens, hidden]`.
    pub fn forest(&self, forest: &Forest, keep: &mut Keep<'_>) -> Tensor {
        let mut attention = ForestAttention::new(self, forest);
        self.layers(&forest.tokens, &forest.positions, &mut |layer, qkv| {
            keep(layer, qkv);
            attention.attend(layer, qkv)
        })
    }

    /// Hidden states that the forest reads, `[response tokens, hidden]`: those that predict the response tokens, or those
    /// after them.
    pub fn predictors(&self, forest: &Forest) -> Tensor {
        self.forest(forest, &mut |_, _| ()).index_select(0, &forest.predictors)
    }

    /// Norms each head's queries and keys.
    fn norm_heads(&self, qkv: &Tensor, (query_norm, key_norm): &(Weight, Weight)) -> Tensor {
        let (heads, kv_heads) = (self.config.num_heads as i64, self.config.num_kv_heads as i64);
        let head_dim = self.config.head_dim as i64;
        let normed = |from: i64, count: i64, norm: &Weight| {
            let part = qkv.narrow(1, from * head_dim, count * head_dim).reshape([-1, head_dim]);
            let (_, normed) = self.norm(&part.to_kind(Kind::Float), norm);
            normed.view([-1, count * head_dim])
        };
        let value = qkv.narrow(1, (heads + kv_heads) * head_dim, kv_heads * head_dim);
        Tensor::cat(&[normed(0, heads, query_norm), normed(heads, kv_heads, key_norm), value], 1)
    }
}

/// Attention within the trees of a forest.
pub struct ForestAttention<'a> {
    model: &'a Model,
    forest: &'a Forest,
    /// The trees as libtorch's ordinary attention needs them, of layers without and with a window.
    padded: [Option<PaddedTrees>; 2],
}

impl std::fmt::Debug for ForestAttention<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ForestAttention").finish_non_exhaustive()
    }
}

impl<'a> ForestAttention<'a> {
    /// Attention of `model` within `forest`.
    pub fn new(model: &'a Model, forest: &'a Forest) -> Self {
        ForestAttention { model, forest, padded: [None, None] }
    }

    /// What [`Attend`] asks for.
    pub fn attend(&mut self, layer: usize, qkv: &Tensor) -> Tensor {
        let shape = self.model.attention_shape(layer);
        if kernels::is_fast(qkv) {
            return kernels::attention(qkv, &self.forest.layout, &shape, self.model.compute.is_fixed());
        }
        let window = self.model.config.window(layer);
        self.padded[usize::from(window.is_some())]
            .get_or_insert_with(|| PaddedTrees::new(self.forest, window, qkv.kind()))
            .attend(qkv, &shape)
    }
}

/// Cosines and sines, f32 `[max_positions, head_dim]`: each angle stands in both halves, as the
/// Hugging Face layout pairs entry i with entry i + head_dim / 2.
fn rotary_table(config: &ModelConfig, device: Device) -> (Tensor, Tensor) {
    let frequencies = config.rope.frequencies(config.head_dim);
    let frequencies: Vec<f32> = frequencies.into_iter().map(|frequency| frequency as f32).collect();
    let positions = Tensor::arange(config.max_positions as i64, (Kind::Float, Device::Cpu)).unsqueeze(1);
    let angles = positions * Tensor::from_slice(&frequencies).unsqueeze(0);
    let angles = Tensor::cat(&[&angles, &angles], 1).to_device(device);
    (angles.cos(), angles.sin())
}

//! The one decoder: RMS norm, rotary positions, grouped-query attention, SwiGLU; with biases or norms on
//! heads where the configuration has them.
//!
//! Touvron et al., "LLaMA", 2023 (arXiv:2302.13971); Su et al., "RoFormer", 2021 (arXiv:2104.09864);
//! Ainslie et al., "GQA", 2023 (arXiv:2305.13245); Shazeer, "GLU Variants", 2020 (arXiv:2002.05202); Henry
//! et al., "Query-Key Normalization", 2020 (arXiv:2010.04245).
//!
//! [`Model::layers`] is the only forward pass. It works on a flat axis of tokens and leaves attention
//! to its caller, who knows how these tokens belong together: [`Model::forest`] attends within the
//! trees of a packed batch, the generator attends to its cache.

use tch::{Device, Kind, Tensor};

use crate::checkpoint::Weights;
use crate::config::ModelConfig;
use crate::device::Compute;
use crate::error::{PolicyError, Result};
use crate::forest::{Forest, TreeSpan};

/// Attention of one layer: from its number and the rotated queries `[tokens, heads, head_dim]`, keys
/// and values `[tokens, kv_heads, head_dim]` to `[tokens, heads, head_dim]`.
pub type Attend<'a> = dyn FnMut(usize, &Tensor, &Tensor, &Tensor) -> Tensor + 'a;

/// A matrix, and a bias where there is one.
#[derive(Debug)]
struct Linear {
    /// `[outputs, inputs]`.
    weight: Tensor,
    /// `[outputs]`.
    bias: Option<Tensor>,
}

impl Linear {
    /// From `[tokens, inputs]` to `[tokens, outputs]`.
    fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}

#[derive(Debug)]
struct Layer {
    input_norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    /// Of each head's queries and of its keys, `[head_dim]`.
    head_norms: Option<(Tensor, Tensor)>,
    attention_output: Linear,
    post_attention_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// A decoder with its weights.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    compute: Compute,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    output: Tensor,
    /// Cosines and sines of the rotary angles, f32 `[max_positions, head_dim]` each.
    rotary: (Tensor, Tensor),
}

impl Model {
    /// A model over `weights` (Hugging Face names), which it shares where device and precision are
    /// already those of `compute`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape than the configuration says.
    pub fn new(config: &ModelConfig, weights: &Weights, compute: Compute) -> Result<Self> {
        for (name, shape) in config.tensor_shapes() {
            let tensor =
                weights.get(&name).ok_or_else(|| PolicyError::MissingTensor { name: name.clone() })?;
            if tensor.size() != shape {
                return Err(PolicyError::WrongShape { name, expected: shape, found: tensor.size() });
            }
        }
        let place = |name: &str| weights[name].to_device(compute.device).to_kind(compute.kind);
        let layer = |number: usize| {
            let norm = |name: &str| place(&format!("model.layers.{number}.{name}.weight"));
            let linear = |name: &str, bias: bool| Linear {
                weight: norm(name),
                bias: bias.then(|| place(&format!("model.layers.{number}.{name}.bias"))),
            };
            Layer {
                input_norm: norm("input_layernorm"),
                query: linear("self_attn.q_proj", config.qkv_bias()),
                key: linear("self_attn.k_proj", config.qkv_bias()),
                value: linear("self_attn.v_proj", config.qkv_bias()),
                head_norms: config.qk_norm().then(|| (norm("self_attn.q_norm"), norm("self_attn.k_norm"))),
                attention_output: linear("self_attn.o_proj", config.attention_bias),
                post_attention_norm: norm("post_attention_layernorm"),
                gate: linear("mlp.gate_proj", config.mlp_bias),
                up: linear("mlp.up_proj", config.mlp_bias),
                down: linear("mlp.down_proj", config.mlp_bias),
            }
        };
        let embedding = place("model.embed_tokens.weight");
        let output = if config.tie_embeddings { embedding.shallow_clone() } else { place("lm_head.weight") };
        Ok(Model {
            layers: (0..config.num_layers).map(layer).collect(),
            norm: place("model.norm.weight"),
            rotary: rotary_table(config, compute.device),
            config: config.clone(),
            compute,
            embedding,
            output,
        })
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
    pub fn output(&self) -> &Tensor {
        &self.output
    }

    /// Final hidden states, normed, `[tokens, hidden]`, of tokens (i64 `[tokens]`) at positions (i64
    /// `[tokens]`).
    pub fn layers(&self, tokens: &Tensor, positions: &Tensor, attend: &mut Attend<'_>) -> Tensor {
        let head_dim = self.config.head_dim as i64;
        let eps = self.config.rms_norm_eps;
        let angles = (
            self.rotary.0.index_select(0, positions).unsqueeze(1),
            self.rotary.1.index_select(0, positions).unsqueeze(1),
        );
        let mut hidden = Tensor::embedding(&self.embedding, tokens, -1, false, false);
        for (number, layer) in self.layers.iter().enumerate() {
            let input = rms_norm(&hidden, &layer.input_norm, eps);
            let heads =
                |linear: &Linear, count: usize| linear.forward(&input).view([-1, count as i64, head_dim]);
            let mut query = heads(&layer.query, self.config.num_heads);
            let mut key = heads(&layer.key, self.config.num_kv_heads);
            let value = heads(&layer.value, self.config.num_kv_heads);
            if let Some((query_norm, key_norm)) = &layer.head_norms {
                query = rms_norm(&query, query_norm, eps);
                key = rms_norm(&key, key_norm, eps);
            }
            let attention = attend(number, &rotate(&query, &angles), &rotate(&key, &angles), &value);
            let attention = attention.reshape([-1, self.config.num_heads as i64 * head_dim]);
            // Not in place: autograd keeps the sum's first term.
            hidden = &hidden + layer.attention_output.forward(&attention);

            let input = rms_norm(&hidden, &layer.post_attention_norm, eps);
            let gated = layer.gate.forward(&input).silu() * layer.up.forward(&input);
            hidden = &hidden + layer.down.forward(&gated);
        }
        rms_norm(&hidden, &self.norm, eps)
    }

    /// Hidden states of a packed batch, `[tokens, hidden]`. `keep` is shown each layer's number,
    /// keys and values, which a generator stores.
    pub fn forest(&self, forest: &Forest, keep: &mut dyn FnMut(usize, &Tensor, &Tensor)) -> Tensor {
        let device = self.compute.device;
        let windowed: Vec<Option<Tensor>> = match &self.config.sliding_window {
            Some(window) => forest.spans.iter().map(|span| span.window_mask(window.size, device)).collect(),
            None => Vec::new(),
        };
        self.layers(&forest.tokens, &forest.positions, &mut |layer, query, key, value| {
            keep(layer, key, value);
            let windowed = self.config.window(layer).map_or(&[][..], |_| &windowed);
            let attend = |(index, span): (usize, &TreeSpan)| {
                let mask = windowed.get(index).and_then(Option::as_ref).or(span.mask.as_ref());
                attend_tree(span, mask, query, key, value)
            };
            let parts: Vec<Tensor> = forest.spans.iter().enumerate().map(attend).collect();
            Tensor::cat(&parts, 0)
        })
    }

    /// Hidden states that predict the response tokens, `[response tokens, hidden]`.
    pub fn predictors(&self, forest: &Forest) -> Tensor {
        self.forest(forest, &mut |_, _, _| ()).index_select(0, &forest.predictors)
    }
}

/// Attention within one tree, causal where there is no mask: `[tree's tokens, heads, head_dim]`.
fn attend_tree(
    span: &TreeSpan,
    mask: Option<&Tensor>,
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
) -> Tensor {
    let heads = query.size()[1];
    // [tokens, heads, head_dim] → [1, heads, tokens, head_dim], key and value heads repeated for
    // their groups of query heads.
    let arrange = |tensor: &Tensor| {
        let rows = tensor.narrow(0, span.start, span.len());
        let [tokens, own, head_dim] = rows.size()[..] else { unreachable!("three dimensions") };
        let full = if own == heads {
            rows
        } else {
            rows.unsqueeze(2)
                .expand([tokens, own, heads / own, head_dim], false)
                .reshape([tokens, heads, head_dim])
        };
        full.transpose(0, 1).unsqueeze(0)
    };
    let mask = mask.map(|mask| mask.to_kind(query.kind()));
    let causal = mask.is_none();
    Tensor::scaled_dot_product_attention(
        &arrange(query),
        &arrange(key),
        &arrange(value),
        mask,
        0.0,
        causal,
        None,
        false,
    )
    .squeeze_dim(0)
    .transpose(0, 1)
}

/// x / √(mean(x²) + ε) ⊙ weight, the mean in f32.
fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    let wide = x.to_kind(Kind::Float);
    let scale = (wide.square().mean_dim(&[-1i64][..], true, Kind::Float) + eps).rsqrt();
    (wide * scale).to_kind(x.kind()) * weight
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

/// Rotary positions of `[tokens, heads, head_dim]`, with angles `[tokens, 1, head_dim]`.
fn rotate(x: &Tensor, angles: &(Tensor, Tensor)) -> Tensor {
    let wide = x.to_kind(Kind::Float);
    let halves = wide.chunk(2, -1);
    let turned = Tensor::cat(&[&(-&halves[1]), &halves[0]], -1);
    (&wide * &angles.0 + turned * &angles.1).to_kind(x.kind())
}

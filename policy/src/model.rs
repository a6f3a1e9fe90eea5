//! The decoder of the Llama family: RMS norm, rotary positions, grouped-query attention, SwiGLU.
//!
//! Touvron et al., "LLaMA", 2023 (arXiv:2302.13971); Su et al., "RoFormer", 2021 (arXiv:2104.09864);
//! Ainslie et al., "GQA", 2023 (arXiv:2305.13245); Shazeer, "GLU Variants", 2020 (arXiv:2002.05202).
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

#[derive(Debug)]
struct Layer {
    input_norm: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_output: Tensor,
    post_attention_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
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
            let part = |name: &str| place(&format!("model.layers.{number}.{name}.weight"));
            Layer {
                input_norm: part("input_layernorm"),
                query: part("self_attn.q_proj"),
                key: part("self_attn.k_proj"),
                value: part("self_attn.v_proj"),
                attention_output: part("self_attn.o_proj"),
                post_attention_norm: part("post_attention_layernorm"),
                gate: part("mlp.gate_proj"),
                up: part("mlp.up_proj"),
                down: part("mlp.down_proj"),
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
            let heads = |matrix: &Tensor| {
                input.linear(matrix, None::<Tensor>).view([-1, matrix.size()[0] / head_dim, head_dim])
            };
            let query = rotate(&heads(&layer.query), &angles);
            let key = rotate(&heads(&layer.key), &angles);
            let attention = attend(number, &query, &key, &heads(&layer.value));
            let attention = attention.reshape([-1, self.config.num_heads as i64 * head_dim]);
            // Not in place: autograd keeps the sum's first term.
            hidden = &hidden + attention.linear(&layer.attention_output, None::<Tensor>);

            let input = rms_norm(&hidden, &layer.post_attention_norm, eps);
            let gated =
                input.linear(&layer.gate, None::<Tensor>).silu() * input.linear(&layer.up, None::<Tensor>);
            hidden = &hidden + gated.linear(&layer.down, None::<Tensor>);
        }
        rms_norm(&hidden, &self.norm, eps)
    }

    /// Hidden states of a packed batch, `[tokens, hidden]`. `keep` is shown each layer's number,
    /// keys and values, which a generator stores.
    pub fn forest(&self, forest: &Forest, keep: &mut dyn FnMut(usize, &Tensor, &Tensor)) -> Tensor {
        self.layers(&forest.tokens, &forest.positions, &mut |layer, query, key, value| {
            keep(layer, key, value);
            let parts: Vec<Tensor> =
                forest.spans.iter().map(|span| attend_tree(span, query, key, value)).collect();
            Tensor::cat(&parts, 0)
        })
    }

    /// Hidden states that predict the response tokens, `[response tokens, hidden]`.
    pub fn predictors(&self, forest: &Forest) -> Tensor {
        self.forest(forest, &mut |_, _, _| ()).index_select(0, &forest.predictors)
    }
}

/// Attention within one tree: `[tree's tokens, heads, head_dim]`.
fn attend_tree(span: &TreeSpan, query: &Tensor, key: &Tensor, value: &Tensor) -> Tensor {
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
    let mask = span.mask.as_ref().map(|mask| mask.to_kind(query.kind()));
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
    let half = config.head_dim / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| (1.0 / config.rope_theta.powf((2 * i) as f64 / config.head_dim as f64)) as f32)
        .collect();
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

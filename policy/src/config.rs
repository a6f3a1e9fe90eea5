//! The architecture of a model, as its files state it.
//!
//! - `hf`: `config.json`;
//! - `rope`: rotary positions and their scaling.

mod hf;
mod rope;

use std::path::Path;

use crate::error::{PolicyError, Result};

pub(crate) use hf::one_or_many;
pub use rope::{Rope, RopeScaling};

/// No model has as many; a file that says so is broken, and lists by layer would not fit into memory.
const MAX_LAYERS: usize = 1 << 16;

/// Models that differ in what a file may leave unsaid, in their biases, and in their norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 2, 3, 3.1; SmolLM2.
    Llama,
    /// Mistral: attention within a sliding window.
    Mistral,
    /// Qwen2, Qwen2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen3: norms on the heads of queries and keys.
    Qwen3,
}

impl Family {
    const ALL: [Family; 4] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3];

    /// What `model_type` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }

    /// Its class in transformers.
    pub fn class(self, head: Head) -> String {
        let name = match self {
            Family::Llama => "Llama",
            Family::Mistral => "Mistral",
            Family::Qwen2 => "Qwen2",
            Family::Qwen3 => "Qwen3",
        };
        let task = match head {
            Head::Language => "CausalLM",
            Head::Score { .. } => "SequenceClassification",
        };
        format!("{name}For{task}")
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.name() == name)
    }

    /// For messages.
    pub(crate) fn all_names() -> String {
        Self::ALL.map(|family| format!("\"{}\"", family.name())).join(", ")
    }

    /// True if a file says by `attention_bias` whether there are biases; else the family itself says it.
    fn states_attention_bias(self) -> bool {
        matches!(self, Family::Llama | Family::Qwen3)
    }
}

/// The tensor of a reward model's head, `[1, hidden]`, under the name that Hugging Face's sequence classifiers give it.
pub const SCORE: &str = "score.weight";

/// What reads the last hidden states.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Head {
    /// The output matrix, which gives every token of the vocabulary a logit.
    #[default]
    Language,
    /// One row ([`SCORE`]), which gives a score: a reward model's. transformers reads it at the last token that is not
    /// for padding.
    Score {
        /// The token that pads, where the file names one.
        pad: Option<u32>,
    },
}

/// Layers whose tokens attend to the nearest ones only (Beltagy et al., "Longformer", 2020,
/// arXiv:2004.05150; Jiang et al., "Mistral 7B", 2023, arXiv:2310.06825).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Tokens that a token sees, itself among them.
    pub size: usize,
    /// For each layer, whether the window holds there.
    pub layers: Vec<bool>,
}

/// What a decoder is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Whose architecture it is.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; each serves `num_heads / num_kv_heads` query heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The context: tokens of the longest sequence.
    pub max_positions: usize,
    /// ε of the RMS norms.
    pub rms_norm_eps: f64,
    /// Rotary positions.
    pub rope: Rope,
    /// `None` if every layer attends to everything before.
    pub sliding_window: Option<SlidingWindow>,
    /// True if all four projections of attention have biases. Qwen2's first three do in any case.
    pub attention_bias: bool,
    /// True if the three feed-forward projections have biases.
    pub mlp_bias: bool,
    /// True if the output matrix is the embedding.
    pub tie_embeddings: bool,
    /// What stands on top. Default the output matrix.
    pub head: Head,
}

impl ModelConfig {
    /// The same decoder under a reward model's head; see [`Head::Score`].
    pub fn with_score(&self, pad: Option<u32>) -> Self {
        ModelConfig { head: Head::Score { pad }, ..self.clone() }
    }

    /// True for a reward model.
    pub fn has_score(&self) -> bool {
        matches!(self.head, Head::Score { .. })
    }

    /// How many tokens a token of `layer` sees, itself among them; `None` for all before it.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.as_ref().filter(|window| window.layers[layer]).map(|window| window.size)
    }

    /// True if queries, keys and values have biases.
    pub fn qkv_bias(&self) -> bool {
        self.attention_bias || self.family == Family::Qwen2
    }

    /// True if each head's queries and keys are normed before they are rotated.
    pub fn qk_norm(&self) -> bool {
        self.family == Family::Qwen3
    }

    /// Checks that the numbers fit one another.
    pub(crate) fn validate(&self, path: &Path) -> Result<()> {
        let most = u32::MAX as usize;
        for (name, value, most) in [
            ("vocabulary", self.vocab_size, most),
            ("hidden size", self.hidden_size, most),
            ("feed-forward size", self.intermediate_size, most),
            ("number of layers", self.num_layers, MAX_LAYERS),
            ("number of heads", self.num_heads, most),
            ("number of key heads", self.num_kv_heads, most),
            ("head size", self.head_dim, most),
            ("context", self.max_positions, most),
        ] {
            if value == 0 || value > most {
                return Err(PolicyError::broken(path, format!("its {name} is {value}")));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) || !self.head_dim.is_multiple_of(2) {
            let Self { num_heads, num_kv_heads, head_dim, .. } = self;
            let cause = format!("{num_heads} heads of size {head_dim} cannot share {num_kv_heads} key heads");
            return Err(PolicyError::broken(path, cause));
        }
        self.rope.validate(path)
    }

    /// Hugging Face name and shape of every tensor.
    pub fn tensor_shapes(&self) -> Vec<(String, Vec<i64>)> {
        let [hidden, inner, heads, kv, head] = [
            self.hidden_size,
            self.intermediate_size,
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
            self.head_dim,
        ]
        .map(|size| size as i64);
        let vocabulary = self.vocab_size as i64;
        let mut shapes = vec![("model.embed_tokens.weight".to_string(), vec![vocabulary, hidden])];
        for layer in 0..self.num_layers {
            let mut add = |name: &str, shape: Vec<i64>| {
                shapes.push((format!("model.layers.{layer}.{name}"), shape));
            };
            for (name, rows, columns, bias) in [
                ("self_attn.q_proj", heads, hidden, self.qkv_bias()),
                ("self_attn.k_proj", kv, hidden, self.qkv_bias()),
                ("self_attn.v_proj", kv, hidden, self.qkv_bias()),
                ("self_attn.o_proj", hidden, heads, self.attention_bias),
                ("mlp.gate_proj", inner, hidden, self.mlp_bias),
                ("mlp.up_proj", inner, hidden, self.mlp_bias),
                ("mlp.down_proj", hidden, inner, self.mlp_bias),
            ] {
                add(&format!("{name}.weight"), vec![rows, columns]);
                if bias {
                    add(&format!("{name}.bias"), vec![rows]);
                }
            }
            add("input_layernorm.weight", vec![hidden]);
            add("post_attention_layernorm.weight", vec![hidden]);
            if self.qk_norm() {
                add("self_attn.q_norm.weight", vec![head]);
                add("self_attn.k_norm.weight", vec![head]);
            }
        }
        shapes.push(("model.norm.weight".to_string(), vec![hidden]));
        match self.head {
            Head::Score { .. } => shapes.push((SCORE.to_string(), vec![1, hidden])),
            Head::Language if self.tie_embeddings => {}
            Head::Language => shapes.push(("lm_head.weight".to_string(), vec![vocabulary, hidden])),
        }
        shapes
    }
}

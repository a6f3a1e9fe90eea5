//! The architecture of a model, as its files state it.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{PolicyError, Result};

/// What a decoder of the Llama family is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
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
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// True if the output matrix is the embedding.
    pub tie_embeddings: bool,
}

impl ModelConfig {
    /// Reads a Hugging Face `config.json`; `path` is named in errors.
    ///
    /// # Errors
    /// If it describes no Llama-family decoder that [`crate::model`] computes, or contradicts itself.
    pub fn from_hf_json(json: &Value, path: &Path) -> Result<Self> {
        let model_type = json["model_type"].as_str().unwrap_or("(none)");
        if model_type != "llama" {
            return Err(PolicyError::unsupported(path, format!("model_type \"{model_type}\""), "\"llama\""));
        }
        for (key, only) in
            [("hidden_act", json!("silu")), ("attention_bias", json!(false)), ("mlp_bias", json!(false))]
        {
            let found = &json[key];
            if !found.is_null() && *found != only {
                return Err(PolicyError::unsupported(path, format!("{key} = {found}"), only.to_string()));
            }
        }
        if !json["quantization_config"].is_null() {
            let supported = "safetensors in f32, f16 or bf16, or a quantised GGUF file";
            return Err(PolicyError::unsupported(
                path,
                "a quantised checkpoint (quantization_config)",
                supported,
            ));
        }
        // transformers 5 gathers these in rope_parameters; before, they were rope_theta and rope_scaling.
        let rope = &json["rope_parameters"];
        for scaling in [rope, &json["rope_scaling"]] {
            let kind = scaling["rope_type"].as_str().or_else(|| scaling["type"].as_str());
            if let Some(kind) = kind.filter(|&kind| kind != "default") {
                let found = format!("scaled rotary positions (\"{kind}\")");
                return Err(PolicyError::unsupported(path, found, "\"default\""));
            }
        }
        let whole = |key: &str| json[key].as_u64().map(|number| number as usize);
        let needed = |key: &str| {
            whole(key).ok_or_else(|| PolicyError::broken(path, format!("it has no whole number \"{key}\"")))
        };
        let number = |value: &Value, default: f64| value.as_f64().unwrap_or(default);
        let num_heads = needed("num_attention_heads")?;
        let hidden_size = needed("hidden_size")?;
        let config = ModelConfig {
            vocab_size: needed("vocab_size")?,
            hidden_size,
            intermediate_size: needed("intermediate_size")?,
            num_layers: needed("num_hidden_layers")?,
            num_heads,
            num_kv_heads: whole("num_key_value_heads").unwrap_or(num_heads),
            head_dim: whole("head_dim").unwrap_or(hidden_size / num_heads.max(1)),
            max_positions: needed("max_position_embeddings")?,
            rms_norm_eps: number(&json["rms_norm_eps"], 1e-6),
            rope_theta: number(&rope["rope_theta"], number(&json["rope_theta"], 10_000.0)),
            tie_embeddings: json["tie_word_embeddings"].as_bool().unwrap_or(false),
        };
        config.validate(path)?;
        Ok(config)
    }

    /// Checks that the numbers fit one another.
    pub(crate) fn validate(&self, path: &Path) -> Result<()> {
        for (name, value) in [
            ("vocabulary", self.vocab_size),
            ("hidden size", self.hidden_size),
            ("feed-forward size", self.intermediate_size),
            ("number of layers", self.num_layers),
            ("number of heads", self.num_heads),
            ("number of key heads", self.num_kv_heads),
            ("head size", self.head_dim),
            ("context", self.max_positions),
        ] {
            if value == 0 || value > u32::MAX as usize {
                return Err(PolicyError::broken(path, format!("its {name} is {value}")));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) || !self.head_dim.is_multiple_of(2) {
            let Self { num_heads, num_kv_heads, head_dim, .. } = self;
            let cause = format!("{num_heads} heads of size {head_dim} cannot share {num_kv_heads} key heads");
            return Err(PolicyError::broken(path, cause));
        }
        Ok(())
    }

    /// A `config.json` that transformers reads as a `LlamaForCausalLM`.
    pub fn to_hf_json(&self, eos_ids: &[u32], bos_id: Option<u32>) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "float32",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": { "rope_type": "default", "rope_theta": self.rope_theta },
            "tie_word_embeddings": self.tie_embeddings,
            "bos_token_id": bos_id,
            "eos_token_id": one_or_many(eos_ids),
        })
    }

    /// Hugging Face name and shape of every tensor.
    pub fn tensor_shapes(&self) -> Vec<(String, Vec<i64>)> {
        let [hidden, inner, heads, kv] = [
            self.hidden_size,
            self.intermediate_size,
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        ]
        .map(|size| size as i64);
        let vocabulary = self.vocab_size as i64;
        let mut shapes = vec![("model.embed_tokens.weight".to_string(), vec![vocabulary, hidden])];
        for layer in 0..self.num_layers {
            for (name, shape) in [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![heads, hidden]),
                ("self_attn.k_proj", vec![kv, hidden]),
                ("self_attn.v_proj", vec![kv, hidden]),
                ("self_attn.o_proj", vec![hidden, heads]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![inner, hidden]),
                ("mlp.up_proj", vec![inner, hidden]),
                ("mlp.down_proj", vec![hidden, inner]),
            ] {
                shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        shapes.push(("model.norm.weight".to_string(), vec![hidden]));
        if !self.tie_embeddings {
            shapes.push(("lm_head.weight".to_string(), vec![vocabulary, hidden]));
        }
        shapes
    }
}

/// Hugging Face writes one end-of-turn token as a number, several as a list.
pub(crate) fn one_or_many(ids: &[u32]) -> Value {
    match ids {
        [id] => json!(id),
        ids => json!(ids),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> Value {
        json!({
            "model_type": "llama", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": true
        })
    }

    fn read(json: &Value) -> Result<ModelConfig> {
        ModelConfig::from_hf_json(json, Path::new("m/config.json"))
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let mut json = llama();
        json["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 100_000.0 });
        let config = read(&json).expect("a Llama");
        assert_eq!((config.head_dim, config.rope_theta), (8, 100_000.0));
        assert_eq!(read(&config.to_hf_json(&[2], Some(1))).expect("a Llama"), config);
    }

    #[test]
    fn rope_theta_is_found_where_older_files_have_it() {
        let mut json = llama();
        json["rope_theta"] = json!(500.0);
        assert_eq!(read(&json).expect("a Llama").rope_theta, 500.0);
    }

    #[test]
    fn what_cannot_be_computed_is_refused_by_name() {
        for (key, value, named) in [
            ("model_type", json!("gpt2"), "model_type \"gpt2\" is not supported; supported: \"llama\""),
            ("hidden_act", json!("gelu"), "hidden_act = \"gelu\" is not supported"),
            ("attention_bias", json!(true), "attention_bias = true is not supported"),
            ("rope_scaling", json!({ "rope_type": "llama3" }), "scaled rotary positions (\"llama3\")"),
            ("quantization_config", json!({}), "a quantised checkpoint"),
            ("num_key_value_heads", json!(3), "4 heads of size 8 cannot share 3 key heads"),
            ("hidden_size", json!("wide"), "no whole number \"hidden_size\""),
            ("num_hidden_layers", json!(0), "its number of layers is 0"),
        ] {
            let mut json = llama();
            json[key] = value;
            let error = read(&json).expect_err(key).to_string();
            assert!(error.starts_with("m/config.json") && error.contains(named), "{error}");
        }
    }

    /// 320 × 32 for the embedding, 2 layers of 32·32·2 + 16·32·2 + 3·32·64 + 2·32, and 32 at the end.
    #[test]
    fn the_shapes_count_every_parameter() {
        let shapes = read(&llama()).expect("a Llama").tensor_shapes();
        let count: i64 = shapes.iter().map(|(_, shape)| shape.iter().product::<i64>()).sum();
        assert_eq!(count, 320 * 32 + 2 * (32 * 32 * 2 + 16 * 32 * 2 + 3 * 32 * 64 + 2 * 32) + 32);
    }
}

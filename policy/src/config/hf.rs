//! `config.json` of Hugging Face directories, read and written.

use std::path::Path;

use serde_json::{Value, json};

use super::{Family, Head, ModelConfig, Rope, SlidingWindow};
use crate::error::{PolicyError, Result};

/// What transformers takes where a file that asks for a window does not say how wide it is.
const DEFAULT_WINDOW: usize = 4096;
/// What transformers takes where a Qwen file does not say in how many layers attention stays whole.
const DEFAULT_FULL_LAYERS: usize = 28;
/// What transformers takes where a Qwen3 file does not say how wide its heads are.
const DEFAULT_QWEN3_HEAD: usize = 128;

impl ModelConfig {
    /// Reads a Hugging Face `config.json`; `path` is named in errors.
    ///
    /// # Errors
    /// If it describes no decoder that [`crate::model`] computes, or contradicts itself.
    pub fn from_hf_json(json: &Value, path: &Path) -> Result<Self> {
        let model_type = json["model_type"].as_str().unwrap_or("(none)");
        let family = Family::from_name(model_type).ok_or_else(|| {
            PolicyError::unsupported(path, format!("model_type \"{model_type}\""), Family::all_names())
        })?;
        let only = |key: &str, only: Value| match &json[key] {
            found if found.is_null() || *found == only => Ok(()),
            found => Err(PolicyError::unsupported(path, format!("{key} = {found}"), only.to_string())),
        };
        only("hidden_act", json!("silu"))?;
        if !family.states_attention_bias() {
            only("attention_bias", json!(false))?;
        }
        if family != Family::Llama {
            only("mlp_bias", json!(false))?;
        }
        if !json["quantization_config"].is_null() {
            let supported = "safetensors in f32, f16 or bf16, or a quantised GGUF file";
            return Err(PolicyError::unsupported(
                path,
                "a quantised checkpoint (quantization_config)",
                supported,
            ));
        }
        let flag = |key: &str| json[key].as_bool().unwrap_or(false);
        let needed = |key: &str| {
            whole(json, key)
                .ok_or_else(|| PolicyError::broken(path, format!("it has no whole number \"{key}\"")))
        };
        let num_heads = needed("num_attention_heads")?;
        let hidden_size = needed("hidden_size")?;
        let num_layers = needed("num_hidden_layers")?;
        let max_positions = needed("max_position_embeddings")?;
        // Llama 2 has files without this key; what is absent elsewhere would be another number.
        let num_kv_heads = match &json["num_key_value_heads"] {
            Value::Null if family == Family::Llama || json.get("num_key_value_heads").is_some() => num_heads,
            _ => needed("num_key_value_heads")?,
        };
        let head_dim = match family {
            Family::Qwen3 => DEFAULT_QWEN3_HEAD,
            _ => hidden_size / num_heads.max(1),
        };
        let mut config = ModelConfig {
            family,
            vocab_size: needed("vocab_size")?,
            hidden_size,
            intermediate_size: needed("intermediate_size")?,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim: whole(json, "head_dim").unwrap_or(head_dim),
            max_positions,
            rms_norm_eps: json["rms_norm_eps"].as_f64().unwrap_or(1e-6),
            rope: Rope::from_hf_json(json, max_positions, path)?,
            sliding_window: None,
            attention_bias: flag("attention_bias"),
            mlp_bias: flag("mlp_bias"),
            tie_embeddings: flag("tie_word_embeddings"),
            head: head(json, path)?,
        };
        config.validate(path)?;
        config.sliding_window = sliding_window(family, num_layers, json, path)?;
        Ok(config)
    }

    /// A `config.json` that transformers, 4 or 5, reads as a model of the same class.
    pub fn to_hf_json(&self, eos_ids: &[u32], bos_id: Option<u32>) -> Value {
        let mut json = json!({
            "architectures": [self.family.class(self.head)],
            "model_type": self.family.name(),
            "dtype": "float32",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_embeddings,
            "bos_token_id": bos_id,
            "eos_token_id": one_or_many(eos_ids),
        });
        if let Head::Score { pad } = self.head {
            json["id2label"] = json!({ "0": "LABEL_0" });
            json["label2id"] = json!({ "LABEL_0": 0 });
            json["pad_token_id"] = json!(pad);
        }
        self.rope.write_hf_json(&mut json);
        if self.family.states_attention_bias() {
            json["attention_bias"] = json!(self.attention_bias);
        }
        let size = self.sliding_window.as_ref().map(|window| window.size);
        match self.family {
            Family::Llama => json["mlp_bias"] = json!(self.mlp_bias),
            Family::Mistral => json["sliding_window"] = json!(size),
            Family::Qwen2 | Family::Qwen3 => {
                let kind = |layer| match self.window(layer) {
                    Some(_) => "sliding_attention",
                    None => "full_attention",
                };
                let full_first = (0..self.num_layers).take_while(|&layer| self.window(layer).is_none());
                json["use_sliding_window"] = json!(size.is_some());
                json["sliding_window"] = json!(size);
                json["max_window_layers"] = json!(full_first.count());
                json["layer_types"] = (0..self.num_layers).map(kind).collect();
            }
        }
        json
    }
}

/// A reward model is a sequence classifier of one label.
fn head(json: &Value, path: &Path) -> Result<Head> {
    let class = json["architectures"][0].as_str().unwrap_or_default();
    if !class.ends_with("ForSequenceClassification") {
        return Ok(Head::Language);
    }
    let named = json["id2label"].as_object().map(serde_json::Map::len);
    // What transformers takes where the file does not say it.
    let labels = whole(json, "num_labels").or(named).unwrap_or(2);
    if labels != 1 {
        let found = format!("a classifier of {labels} labels (id2label)");
        return Err(PolicyError::unsupported(path, found, "one label, which is a reward model's score"));
    }
    Ok(Head::Score { pad: json["pad_token_id"].as_u64().and_then(|id| u32::try_from(id).ok()) })
}

fn whole(json: &Value, key: &str) -> Option<usize> {
    json[key].as_u64().map(|number| number as usize)
}

/// Which layers attend to a window, and how wide it is.
fn sliding_window(
    family: Family,
    num_layers: usize,
    json: &Value,
    path: &Path,
) -> Result<Option<SlidingWindow>> {
    let size = match json.get("sliding_window") {
        None => Some(DEFAULT_WINDOW),
        Some(Value::Null) => None,
        Some(size) => Some(size.as_u64().filter(|&size| size > 0).ok_or_else(|| {
            PolicyError::broken(path, format!("its sliding_window is {size}, expected tokens or null"))
        })? as usize),
    };
    let stated = layer_types(num_layers, json, path)?;
    let (size, layers) = match family {
        Family::Llama => (None, stated.unwrap_or_default()),
        // All layers or none, whatever layer_types says: transformers does not ask it.
        Family::Mistral => {
            let implied = vec![size.is_some(); num_layers];
            if stated.is_some_and(|stated| stated != implied) {
                let found = "a Mistral whose layer_types differ";
                return Err(PolicyError::unsupported(
                    path,
                    found,
                    "sliding_window for all layers or for none",
                ));
            }
            (size, implied)
        }
        Family::Qwen2 | Family::Qwen3 => {
            let size = size.filter(|_| json["use_sliding_window"] == true);
            let full = whole(json, "max_window_layers").unwrap_or(DEFAULT_FULL_LAYERS);
            let implied = || (0..num_layers).map(|layer| size.is_some() && layer >= full).collect();
            (size, stated.unwrap_or_else(implied))
        }
    };
    match size {
        None if layers.contains(&true) => {
            let cause = "its layer_types ask for sliding_attention, but it has no sliding_window in use";
            Err(PolicyError::broken(path, cause))
        }
        _ => Ok(size.filter(|_| layers.contains(&true)).map(|size| SlidingWindow { size, layers })),
    }
}

/// For each layer, whether `layer_types` asks for a window; `None` if there is no such key.
fn layer_types(num_layers: usize, json: &Value, path: &Path) -> Result<Option<Vec<bool>>> {
    let kinds = match &json["layer_types"] {
        Value::Null => return Ok(None),
        kinds => kinds.as_array().ok_or_else(|| PolicyError::broken(path, "its layer_types are no list"))?,
    };
    if kinds.len() != num_layers {
        let cause = format!("it has {num_layers} layers, but layer_types names {}", kinds.len());
        return Err(PolicyError::broken(path, cause));
    }
    let is_sliding = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => {
            let found = format!("{kind} in layer_types");
            Err(PolicyError::unsupported(path, found, "\"full_attention\", \"sliding_attention\""))
        }
    };
    kinds.iter().map(is_sliding).collect::<Result<_>>().map(Some)
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
    use super::super::RopeScaling;
    use super::*;

    fn model(family: &str, keys: Value) -> Value {
        let mut json = json!({
            "model_type": family, "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": true
        });
        for (key, value) in keys.as_object().expect("keys") {
            json[key] = value.clone();
        }
        json
    }

    fn read(json: &Value) -> Result<ModelConfig> {
        ModelConfig::from_hf_json(json, Path::new("m/config.json"))
    }

    fn windows(json: &Value) -> Vec<Option<usize>> {
        let config = read(json).expect("a model");
        (0..config.num_layers).map(|layer| config.window(layer)).collect()
    }

    fn llama3(original: Option<usize>) -> Value {
        let mut scaling =
            json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0 });
        if let Some(original) = original {
            scaling["original_max_position_embeddings"] = json!(original);
        }
        scaling
    }

    #[test]
    fn what_is_written_reads_the_same() {
        for (family, keys) in [
            ("llama", json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 100_000.0 } })),
            ("llama", json!({ "rope_scaling": llama3(Some(64)), "rope_theta": 5e5, "mlp_bias": true })),
            ("llama", json!({ "rope_scaling": { "type": "linear", "factor": 2 }, "attention_bias": true })),
            (
                "llama",
                json!({ "architectures": ["LlamaForSequenceClassification"], "num_labels": 1, "pad_token_id": 3 }),
            ),
            ("mistral", json!({ "sliding_window": 16, "head_dim": 16 })),
            ("mistral", json!({ "sliding_window": null })),
            ("qwen2", json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 3 })),
            ("qwen2", json!({})),
            ("qwen3", json!({ "head_dim": 16, "attention_bias": true })),
            (
                "qwen3",
                json!({ "use_sliding_window": true, "sliding_window": 8, "layer_types":
                    ["full_attention", "sliding_attention", "full_attention", "full_attention"] }),
            ),
        ] {
            let config = read(&model(family, keys)).expect("a model");
            assert_eq!(read(&config.to_hf_json(&[2], Some(1))).expect("the same"), config);
        }
    }

    #[test]
    fn rotary_positions_are_found_where_newer_and_older_files_have_them() {
        let old = read(&model("llama", json!({ "rope_theta": 5e5, "rope_scaling": llama3(Some(64)) })));
        let mut parameters = llama3(Some(64));
        parameters["rope_theta"] = json!(5e5);
        let new = read(&model("llama", json!({ "rope_parameters": parameters })));
        assert_eq!(old.expect("a Llama"), new.expect("a Llama"));
        let unstated = read(&model("llama", json!({ "rope_scaling": llama3(None) }))).expect("a Llama");
        let RopeScaling::Llama3 { original_max_positions, .. } = unstated.rope.scaling else {
            panic!("{:?}", unstated.rope);
        };
        assert_eq!((original_max_positions, unstated.rope.theta), (256, 10_000.0));
    }

    #[test]
    fn windows_are_those_of_each_layer() {
        let mistral = |window: Value| model("mistral", json!({ "sliding_window": window }));
        assert_eq!(windows(&mistral(json!(16))), [Some(16); 4]);
        assert_eq!(windows(&mistral(Value::Null)), [None; 4]);
        assert_eq!(windows(&model("mistral", json!({}))), [Some(4096); 4]);
        let qwen = |used: bool| {
            model("qwen2", json!({ "use_sliding_window": used, "sliding_window": 8, "max_window_layers": 3 }))
        };
        assert_eq!(windows(&qwen(true)), [None, None, None, Some(8)]);
        assert_eq!(windows(&qwen(false)), [None; 4]);
        // Llama does not know the key.
        assert_eq!(windows(&model("llama", json!({ "sliding_window": 8 }))), [None; 4]);
    }

    #[test]
    fn heads_are_as_wide_as_their_class_says() {
        let head_dim = |family: &str| read(&model(family, json!({}))).expect("a model").head_dim;
        assert_eq!((head_dim("llama"), head_dim("qwen2"), head_dim("qwen3")), (8, 8, 128));
    }

    #[test]
    fn what_cannot_be_computed_is_refused_by_name() {
        let families = "supported: \"llama\", \"mistral\", \"qwen2\", \"qwen3\"";
        let types = |kind: &str| json!([kind, kind, kind, kind]);
        for (family, key, value, named) in [
            ("gpt2", "x", json!(0), format!("model_type \"gpt2\" is not supported; {families}").as_str()),
            ("llama", "hidden_act", json!("gelu"), "hidden_act = \"gelu\" is not supported"),
            ("mistral", "attention_bias", json!(true), "attention_bias = true is not supported"),
            ("qwen3", "mlp_bias", json!(true), "mlp_bias = true is not supported"),
            ("llama", "rope_scaling", json!({ "rope_type": "yarn" }), "scaled rotary positions (\"yarn\")"),
            ("llama", "rope_scaling", json!({ "type": "dynamic" }), "scaled rotary positions (\"dynamic\")"),
            ("llama", "rope_scaling", json!({ "type": "linear" }), "has no number \"factor\""),
            ("llama", "rope_parameters", json!({ "rope_type": "linear", "factor": 0 }), "the factor of its"),
            ("llama", "rope_theta", json!(-1.0), "the rope_theta of its rotary positions is -1"),
            ("qwen3", "rope_parameters", json!({ "full_attention": {} }), "(\"full_attention\")"),
            ("llama", "partial_rotary_factor", json!(0.5), "partial_rotary_factor = 0.5 is not supported"),
            ("mistral", "sliding_window", json!(0), "its sliding_window is 0"),
            ("mistral", "layer_types", types("full_attention"), "a Mistral whose layer_types differ"),
            ("qwen3", "layer_types", types("chunked_attention"), "\"chunked_attention\" in layer_types"),
            ("qwen3", "layer_types", types("sliding_attention"), "has no sliding_window in use"),
            ("qwen2", "layer_types", json!(["full_attention"]), "has 4 layers, but layer_types names 1"),
            (
                "llama",
                "architectures",
                json!(["LlamaForSequenceClassification"]),
                "a classifier of 2 labels (id2label) is not supported; supported: one label",
            ),
            ("llama", "quantization_config", json!({}), "a quantised checkpoint"),
            ("llama", "num_key_value_heads", json!(3), "4 heads of size 8 cannot share 3 key heads"),
            ("llama", "hidden_size", json!("wide"), "no whole number \"hidden_size\""),
            ("llama", "num_hidden_layers", json!(0), "its number of layers is 0"),
        ] {
            let error = read(&model(family, json!({ key: value }))).expect_err(key).to_string();
            assert!(error.starts_with("m/config.json") && error.contains(named), "{error}");
        }
        let mut unstated = model("qwen2", json!({}));
        unstated.as_object_mut().expect("keys").remove("num_key_value_heads");
        let error = read(&unstated).expect_err("no number of key heads").to_string();
        assert!(error.contains("no whole number \"num_key_value_heads\""), "{error}");
    }

    /// 320 × 32 for the embedding, 4 layers of 32·32·2 + 16·32·2 + 3·32·64 + 2·32, and 32 at the end; with
    /// biases on queries, keys and values, 32 + 2·16 more a layer; with norms on heads, 2·8 more.
    #[test]
    fn the_shapes_count_every_parameter() {
        let count = |family: &str, keys: Value| -> i64 {
            let shapes = read(&model(family, keys)).expect("a model").tensor_shapes();
            shapes.iter().map(|(_, shape)| shape.iter().product::<i64>()).sum()
        };
        let plain = 320 * 32 + 4 * (32 * 32 * 2 + 16 * 32 * 2 + 3 * 32 * 64 + 2 * 32) + 32;
        assert_eq!(count("llama", json!({})), plain);
        assert_eq!(count("qwen2", json!({})), plain + 4 * (32 + 2 * 16));
        assert_eq!(count("qwen3", json!({ "head_dim": 8 })), plain + 4 * 2 * 8);
        let biases = json!({ "attention_bias": true, "mlp_bias": true });
        assert_eq!(count("llama", biases), plain + 4 * (32 + 2 * 16 + 32 + 64 + 64 + 32));
    }
}

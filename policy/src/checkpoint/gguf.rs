//! GGUF files: configuration, vocabulary, merges, chat template and (quantised) tensors in one.
//!
//! candle-core decodes the tensors. The names and the layout of query and key weights are llama.cpp's:
//! in a Llama it interleaves the two halves of each head for its rotary positions, which is undone here.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value as Metadata};
use serde_json::{Map, Value, json};
use tch::Tensor;

use super::{Weights, check_tensors, supported_tensors};
use crate::config::{Family, Head, ModelConfig, Rope, RopeScaling};
use crate::error::{PolicyError, Result};
use crate::tokenizer::{Tokenizer, TokenizerFacts};

/// A file whose header has been read and found right.
pub(super) struct GgufFile {
    path: PathBuf,
    content: Content,
    pub config: ModelConfig,
    pub tokenizer: Tokenizer,
}

/// `tokenizer.ggml.token_type`: a marker such as the end of a turn.
const CONTROL: i64 = 3;
/// `tokenizer.ggml.token_type`: a token that is never split, and is text.
const USER_DEFINED: i64 = 4;

impl GgufFile {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|cause| unreadable(path, cause))?;
        let length = file.metadata().map_err(|cause| unreadable(path, cause))?.len();
        let content = Content::read(&mut BufReader::new(file)).map_err(|error| {
            PolicyError::broken(path, format!("it is no GGUF file, or ends early ({})", first_line(&error)))
        })?;
        let fields = Fields { path, metadata: &content.metadata };
        let tokens = fields.strings("tokenizer.ggml.tokens")?;
        let has = |tensor: &str| content.tensor_infos.contains_key(tensor);
        let config = config(&fields, tokens.len(), &has)?;
        let tokenizer = tokenizer(&fields, &tokens)?;

        let mut found = BTreeMap::new();
        for (name, info) in &content.tensor_infos {
            let block = info.ggml_dtype.block_size();
            let elements = info.shape.elem_count();
            let bytes = (elements / block * info.ggml_dtype.type_size()) as u64;
            let end = content.tensor_data_offset.saturating_add(info.offset).saturating_add(bytes);
            if end > length {
                let cause = format!("the tensor {name} should end at byte {end}, but the file has {length}");
                return Err(PolicyError::broken(path, cause));
            }
            let name = hf_name(name).ok_or_else(|| {
                PolicyError::unsupported(path, format!("the tensor {name}"), supported_tensors(&config))
            })?;
            found.insert(name, info.shape.dims().iter().map(|&size| size as i64).collect());
        }
        check_tensors(path, &config, &found)?;
        Ok(GgufFile { path: path.to_path_buf(), content, config, tokenizer })
    }

    pub fn weights(self) -> Result<Weights> {
        let file = File::open(&self.path).map_err(|cause| unreadable(&self.path, cause))?;
        let mut reader = BufReader::new(file);
        let mut weights = Weights::new();
        for gguf_name in self.content.tensor_infos.keys() {
            let Some(name) = hf_name(gguf_name) else { continue };
            let decoded = self
                .content
                .tensor(&mut reader, gguf_name, &Device::Cpu)
                .and_then(|tensor| tensor.dequantize(&Device::Cpu))
                .and_then(|tensor| Ok((tensor.flatten_all()?.to_vec1::<f32>()?, tensor.dims().to_vec())));
            let (values, shape) =
                decoded.map_err(|error| PolicyError::broken(&self.path, first_line(&error)))?;
            let shape: Vec<i64> = shape.into_iter().map(|size| size as i64).collect();
            let tensor = Tensor::from_slice(&values).view(&shape[..]);
            let heads = match name.rsplit('.').nth(1) {
                _ if self.config.family != Family::Llama => None,
                Some("q_proj") => Some(self.config.num_heads),
                Some("k_proj") => Some(self.config.num_kv_heads),
                _ => None,
            };
            let tensor = heads.map_or_else(|| tensor.shallow_clone(), |heads| join_halves(&tensor, heads));
            weights.insert(name, tensor);
        }
        Ok(weights)
    }
}

/// From rows that alternate between a head's two halves to rows of the first half, then of the second.
fn join_halves(weight: &Tensor, heads: usize) -> Tensor {
    let shape = weight.size();
    let heads = heads as i64;
    weight.view([heads, shape[0] / heads / 2, 2, -1]).transpose(1, 2).reshape(&shape[..])
}

fn hf_name(name: &str) -> Option<String> {
    let fixed = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(fixed) = fixed {
        return Some(fixed.to_string());
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, end) = part.split_once('.').filter(|(_, end)| matches!(*end, "weight" | "bias"))?;
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "attn_output" => "self_attn.o_proj",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    layer.parse::<u32>().ok().map(|layer| format!("model.layers.{layer}.{part}.{end}"))
}

/// The metadata, read by key.
struct Fields<'a> {
    path: &'a Path,
    metadata: &'a HashMap<String, Metadata>,
}

impl<'a> Fields<'a> {
    fn number(&self, key: &str) -> Option<u64> {
        let value = self.metadata.get(key)?;
        value.to_u64().ok().or_else(|| value.to_i64().ok().and_then(|number| u64::try_from(number).ok()))
    }

    fn needed(&self, key: &str) -> Result<usize> {
        let number = self.number(key).map(|number| number as usize);
        number.ok_or_else(|| PolicyError::broken(self.path, format!("its metadata has no number {key}")))
    }

    fn float(&self, key: &str) -> Option<f64> {
        self.metadata
            .get(key)
            .and_then(|value| value.to_f32().map(f64::from).or_else(|_| value.to_f64()).ok())
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.metadata.get(key).and_then(|value| value.to_string().ok()).map(String::as_str)
    }

    fn id(&self, key: &str) -> Option<u32> {
        self.number(key).and_then(|id| u32::try_from(id).ok())
    }

    fn strings(&self, key: &str) -> Result<Vec<&'a str>> {
        let values = self.metadata.get(key).and_then(|value| value.to_vec().ok());
        let values = values.and_then(|values| {
            values.iter().map(|value| value.to_string().ok().map(String::as_str)).collect()
        });
        values
            .ok_or_else(|| PolicyError::broken(self.path, format!("its metadata has no list of texts {key}")))
    }
}

fn config(fields: &Fields<'_>, vocab_size: usize, has: &dyn Fn(&str) -> bool) -> Result<ModelConfig> {
    let architecture = fields.text("general.architecture").unwrap_or("(none)");
    // llama.cpp has Mistral as a Llama, and does not know its window.
    let families = [Family::Llama, Family::Qwen2, Family::Qwen3];
    let Some(family) = families.into_iter().find(|family| family.name() == architecture) else {
        let found = format!("the architecture \"{architecture}\"");
        return Err(PolicyError::unsupported(fields.path, found, "\"llama\", \"qwen2\", \"qwen3\""));
    };
    let key = |name: &str| format!("{architecture}.{name}");
    if let Some(window) = fields.number(&key("attention.sliding_window")).filter(|&window| window > 0) {
        let found = format!("a sliding window of {window} tokens in a GGUF file");
        let supported = "no window; use the model's Hugging Face directory instead";
        return Err(PolicyError::unsupported(fields.path, found, supported));
    }
    let num_heads = fields.needed(&key("attention.head_count"))?;
    let hidden_size = fields.needed(&key("embedding_length"))?;
    let count = |name: &str| fields.number(&key(name)).map(|number| number as usize);
    // The file has these as f32; their shortest decimal form is what was meant.
    let float = |name: &str| fields.float(&key(name)).map(shortest);
    let scaling = match fields.text(&key("rope.scaling.type")).unwrap_or("none") {
        "none" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: float("rope.scaling.factor").unwrap_or(1.0) },
        other => {
            let found = format!("scaled rotary positions (\"{other}\")");
            return Err(PolicyError::unsupported(fields.path, found, "\"none\", \"linear\""));
        }
    };
    let config = ModelConfig {
        family,
        vocab_size,
        hidden_size,
        intermediate_size: fields.needed(&key("feed_forward_length"))?,
        num_layers: fields.needed(&key("block_count"))?,
        num_heads,
        num_kv_heads: count("attention.head_count_kv").unwrap_or(num_heads),
        head_dim: count("attention.key_length").unwrap_or(hidden_size / num_heads.max(1)),
        max_positions: fields.needed(&key("context_length"))?,
        rms_norm_eps: float("attention.layer_norm_rms_epsilon").unwrap_or(1e-6),
        rope: Rope { theta: float("rope.freq_base").unwrap_or(10_000.0), scaling },
        sliding_window: None,
        attention_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_down.bias"),
        tie_embeddings: !has("output.weight"),
        head: Head::Language,
    };
    config.validate(fields.path)?;
    let rotated = count("rope.dimension_count").unwrap_or(config.head_dim);
    if rotated != config.head_dim {
        let found = format!("rotary positions on {rotated} of {} dimensions", config.head_dim);
        return Err(PolicyError::unsupported(fields.path, found, "all dimensions"));
    }
    Ok(config)
}

fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

/// Builds the `tokenizer.json` that the metadata amounts to.
fn tokenizer(fields: &Fields<'_>, tokens: &[&str]) -> Result<Tokenizer> {
    let model = fields.text("tokenizer.ggml.model").unwrap_or("(none)");
    if model != "gpt2" {
        let found = format!("the tokenizer model \"{model}\"");
        let supported = "\"gpt2\" (byte-level BPE); use the model's Hugging Face directory instead";
        return Err(PolicyError::unsupported(fields.path, found, supported));
    }
    let types: Vec<i64> = match fields.metadata.get("tokenizer.ggml.token_type").map(Metadata::to_vec) {
        Some(Ok(types)) => types.iter().map(|kind| kind.to_i32().map_or(0, i64::from)).collect(),
        _ => Vec::new(),
    };
    let kind = |id: usize| types.get(id).copied().unwrap_or(0);
    let vocabulary: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect();
    let added: Vec<Value> = (0..tokens.len())
        .filter(|&id| matches!(kind(id), CONTROL | USER_DEFINED))
        .map(|id| {
            json!({
                "id": id, "content": tokens[id], "special": kind(id) == CONTROL,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer(fields)?,
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": fields.strings("tokenizer.ggml.merges")?,
        },
    });
    let keys = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
    let mut eos_ids: Vec<u32> = keys.iter().filter_map(|key| fields.id(key)).collect();
    eos_ids.dedup();
    let facts = TokenizerFacts {
        eos_ids,
        bos_id: fields.id("tokenizer.ggml.bos_token_id"),
        template: fields
            .text("tokenizer.chat_template")
            .map(|source| (source.to_string(), "tokenizer.chat_template".to_string())),
        special_tokens: None,
        config: Map::new(),
    };
    Tokenizer::from_json(&json.to_string(), facts, fields.path)
}

/// How text is cut before merging, by the name that llama.cpp gave it.
fn pre_tokenizer(fields: &Fields<'_>) -> Result<Value> {
    let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let split_by = |pattern: &str| {
        let split = json!({
            "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false
        });
        json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] })
    };
    match fields.text("tokenizer.ggml.pre").unwrap_or("default") {
        "default" | "gpt-2" => Ok(byte_level(true)),
        "smollm" => {
            let digits = json!({ "type": "Digits", "individual_digits": true });
            Ok(json!({ "type": "Sequence", "pretokenizers": [digits, byte_level(true)] }))
        }
        // The patterns of the models' own tokenizer.json.
        "llama-bpe" | "llama3" => Ok(split_by(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )),
        "qwen2" => Ok(split_by(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )),
        other => Err(PolicyError::unsupported(
            fields.path,
            format!("the pre-tokenizer \"{other}\""),
            "\"gpt-2\", \"smollm\", \"llama-bpe\", \"qwen2\"; use the model's Hugging Face directory instead",
        )),
    }
}

fn unreadable(path: &Path, cause: std::io::Error) -> PolicyError {
    PolicyError::Unreadable { path: path.to_path_buf(), cause }
}

/// candle's errors may carry a backtrace after the message.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}

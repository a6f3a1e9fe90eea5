//! LoRA adapters in PEFT's layout: `adapter_model.safetensors` beside `adapter_config.json`.
//!
//! An option of PEFT that is not known here to change nothing is refused by name: a forward pass that leaves
//! one out would be another model's.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Weights;
use super::files::{read_json, unwritable, write_folder, write_json};
use super::tensors::{Shard, save_weights};
use crate::config::ModelConfig;
use crate::error::{PolicyError, Result};
use crate::lora::{Adapter, LoraConfig, check_shapes};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

/// What is read.
const READ: [&str; 7] =
    ["peft_type", "r", "lora_alpha", "target_modules", "use_rslora", "init_lora_weights", "bias"];
/// What says nothing about the forward pass: where the adapter comes from, how it was trained (dropout), and
/// sizes of what is switched on elsewhere.
const HARMLESS: [&str; 11] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];
/// Ways of beginning that leave the base model's weights as they are.
const INITIALISATIONS: [&str; 2] = ["gaussian", "orthogonal"];

/// Writes an adapter for PEFT; `base` is what it names as the base model. A directory that is there already is
/// replaced.
///
/// # Errors
/// If the adapter is another model's, the disk is full, or the place is not writable; then nothing is left
/// behind.
pub fn write_adapter(directory: &Path, model: &ModelConfig, adapter: &Adapter, base: &str) -> Result<()> {
    adapter.check(model)?;
    write_folder(directory, |folder| adapter_files(folder, model, adapter, base))
}

pub(super) fn adapter_files(folder: &Path, model: &ModelConfig, adapter: &Adapter, base: &str) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error))?;
    let LoraConfig { r, alpha, use_rslora, .. } = &adapter.config;
    // PEFT takes α for a whole number where it can be one.
    let alpha = if alpha.fract() == 0.0 { json!(*alpha as i64) } else { json!(alpha) };
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": r,
        "lora_alpha": alpha,
        "use_rslora": use_rslora,
        "target_modules": adapter.config.listed_targets(model),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
    });
    write_json(&folder.join(CONFIG), &config)?;
    save_weights(&folder.join(TENSORS), &adapter.tensors)
}

/// Reads an adapter of PEFT's for `model`, f32.
///
/// # Errors
/// If a file is missing or broken, an option of PEFT is not supported, or the adapter is another base model's.
/// All of it is found before a tensor is read.
pub fn read_adapter(directory: &Path, model: &ModelConfig) -> Result<Adapter> {
    let path = directory.join(CONFIG);
    let config = lora_config(&read_json(&path)?, &path)?;
    let shard = Shard::open(directory.join(TENSORS))?;
    let shapes = shard.shapes();
    check_shapes(&format!("the adapter {}", directory.display()), &config, model, &shapes)?;
    let wanted: BTreeSet<String> = shapes.into_iter().map(|(name, _)| name).collect();
    let mut tensors = Weights::new();
    shard.read(&wanted, &mut tensors)?;
    Ok(Adapter { config, tensors })
}

fn lora_config(json: &Value, path: &Path) -> Result<LoraConfig> {
    let options = json.as_object().ok_or_else(|| PolicyError::broken(path, "it is no JSON object"))?;
    refuse_unsupported(options, path)?;
    let broken = |name: &str, expected: &str| {
        let found = options.get(name).map_or("missing".to_string(), Value::to_string);
        PolicyError::broken(path, format!("{name} is {found}, expected {expected}"))
    };
    let r = options.get("r").and_then(Value::as_u64).ok_or_else(|| broken("r", "a whole number"))?;
    let alpha = options.get("lora_alpha").and_then(Value::as_f64);
    let alpha = alpha.ok_or_else(|| broken("lora_alpha", "a number"))?;
    let use_rslora = match options.get("use_rslora") {
        None => false,
        Some(value) => value.as_bool().ok_or_else(|| broken("use_rslora", "true or false"))?,
    };
    let target_modules = match options.get("target_modules") {
        Some(Value::String(pattern)) if pattern == "all-linear" => vec![pattern.clone()],
        Some(Value::String(pattern)) => {
            let found = format!("target_modules = \"{pattern}\" (a regular expression)");
            return Err(PolicyError::unsupported(path, found, "a list of names, or \"all-linear\""));
        }
        Some(Value::Array(names)) => {
            let names = names.iter().map(|name| name.as_str().map(str::to_string)).collect::<Option<_>>();
            names.ok_or_else(|| broken("target_modules", "a list of names"))?
        }
        _ => return Err(broken("target_modules", "a list of names")),
    };
    let config = LoraConfig { r: r as usize, alpha, target_modules, use_rslora };
    config.validate().map_err(|sentence| PolicyError::broken(path, sentence))?;
    Ok(config)
}

/// Refuses whatever would make another forward pass.
fn refuse_unsupported(options: &Map<String, Value>, path: &Path) -> Result<()> {
    let refuse = |name: &str, value: &Value, supported: &str| {
        Err(PolicyError::unsupported(path, format!("{name} = {value}"), supported))
    };
    for (name, expected) in [("peft_type", "LORA"), ("bias", "none")] {
        match options.get(name) {
            Some(value) if value != expected => return refuse(name, value, &format!("\"{expected}\"")),
            None if name == "peft_type" => {
                return Err(PolicyError::broken(path, "it has no \"peft_type\""));
            }
            _ => {}
        }
    }
    match options.get("init_lora_weights") {
        Some(Value::String(name)) if !INITIALISATIONS.contains(&name.as_str()) => {
            return refuse("init_lora_weights", &json!(name), "true, false, \"gaussian\", \"orthogonal\"");
        }
        _ => {}
    }
    let is_off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    };
    let known = |name: &str| READ.contains(&name) || HARMLESS.contains(&name);
    match options.iter().find(|(name, value)| !known(name) && !is_off(value)) {
        Some((name, value)) => refuse(name, value, "plain LoRA without it (null or false)"),
        None => Ok(()),
    }
}

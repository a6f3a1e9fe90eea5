//! Rotary positions, and how a model stretches them beyond the context that it was first trained with.

use std::f64::consts::TAU;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{PolicyError, Result};

/// Rotary positions (Su et al., "RoFormer", 2021, arXiv:2104.09864).
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// What is done to the frequencies.
    pub scaling: RopeScaling,
}

/// How frequencies are stretched. Scalings that depend on the length of the sequence at hand ("dynamic",
/// "longrope") have no place here: one table serves all sequences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All divided by `factor` (Chen et al., "Position Interpolation", 2023, arXiv:2306.15595).
    Linear {
        /// Of the context.
        factor: f64,
    },
    /// Llama 3.1's: wavelengths above `original_max_positions / low_freq_factor` are divided by `factor`,
    /// those below `original_max_positions / high_freq_factor` stay, and in between it is interpolated
    /// ("The Llama 3 Herd of Models", 2024, arXiv:2407.21783).
    Llama3 {
        /// Of the context.
        factor: f64,
        /// Turns within the original context below which a frequency is divided.
        low_freq_factor: f64,
        /// Turns within the original context above which a frequency stays.
        high_freq_factor: f64,
        /// The context before it was stretched.
        original_max_positions: usize,
    },
}

impl Rope {
    /// Reads `rope_parameters` (transformers 5), or `rope_scaling` and `rope_theta` (before).
    pub(super) fn from_hf_json(json: &Value, max_positions: usize, path: &Path) -> Result<Self> {
        let stated = |key: &str| json[key].as_object().filter(|parameters| !parameters.is_empty());
        let none = Map::new();
        // transformers prefers the older key as well.
        let parameters = stated("rope_scaling").or_else(|| stated("rope_parameters")).unwrap_or(&none);
        if let Some(kind) = parameters.iter().find_map(|(key, value)| value.is_object().then_some(key)) {
            let found = format!("rotary positions of their own for each kind of layer (\"{kind}\")");
            return Err(PolicyError::unsupported(path, found, "one set of rope_parameters for all layers"));
        }
        let partial = parameters.get("partial_rotary_factor").unwrap_or(&json["partial_rotary_factor"]);
        if partial.as_f64().is_some_and(|share| share != 1.0) {
            return Err(PolicyError::unsupported(path, format!("partial_rotary_factor = {partial}"), "1.0"));
        }
        let number = |key: &str| {
            let cause = || format!("its rotary scaling has no number \"{key}\"");
            parameters.get(key).and_then(Value::as_f64).ok_or_else(|| PolicyError::broken(path, cause()))
        };
        let kind = parameters.get("rope_type").or_else(|| parameters.get("type")).and_then(Value::as_str);
        let scaling = match kind.unwrap_or("default") {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: number("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_max_positions: match parameters.get("original_max_position_embeddings") {
                    Some(_) => number("original_max_position_embeddings")? as usize,
                    None => max_positions,
                },
            },
            other => {
                let found = format!("scaled rotary positions (\"{other}\")");
                return Err(PolicyError::unsupported(path, found, "\"default\", \"linear\", \"llama3\""));
            }
        };
        let theta = [parameters.get("rope_theta"), json.get("rope_theta")];
        let theta = theta.into_iter().flatten().find_map(Value::as_f64).unwrap_or(10_000.0);
        Ok(Rope { theta, scaling })
    }

    /// Adds the keys that transformers 5 reads, and those that older ones do.
    pub(super) fn write_hf_json(&self, json: &mut Value) {
        let mut parameters = match self.scaling {
            RopeScaling::Default => json!({ "rope_type": "default" }),
            RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                json!({
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_max_positions,
                })
            }
        };
        if self.scaling != RopeScaling::Default {
            json["rope_scaling"] = parameters.clone();
        }
        parameters["rope_theta"] = json!(self.theta);
        json["rope_theta"] = json!(self.theta);
        json["rope_parameters"] = parameters;
    }

    /// Checks that the numbers make sense.
    pub(super) fn validate(&self, path: &Path) -> Result<()> {
        let numbers = match self.scaling {
            RopeScaling::Default => vec![],
            RopeScaling::Linear { factor } => vec![("factor", factor)],
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                vec![
                    ("factor", factor),
                    ("low_freq_factor", low_freq_factor),
                    ("high_freq_factor", high_freq_factor),
                    ("high_freq_factor minus low_freq_factor", high_freq_factor - low_freq_factor),
                    ("original_max_position_embeddings", original_max_positions as f64),
                ]
            }
        };
        for (name, number) in [("rope_theta", self.theta)].into_iter().chain(numbers) {
            if !(number.is_finite() && number > 0.0) {
                let cause = format!("the {name} of its rotary positions is {number}, expected more than 0");
                return Err(PolicyError::broken(path, cause));
            }
        }
        Ok(())
    }

    /// Radians that each pair of dimensions turns by from one position to the next, `head_dim / 2` of them.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let plain = (0..head_dim / 2).map(|i| self.theta.powf(-((2 * i) as f64) / head_dim as f64));
        plain.map(|frequency| self.scaling.apply(frequency)).collect()
    }
}

impl RopeScaling {
    fn apply(&self, frequency: f64) -> f64 {
        match *self {
            RopeScaling::Default => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let turns = original_max_positions as f64 * frequency / TAU;
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let kept = kept.clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / factor)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Within an original context of one position, frequencies of 2, 1, 1/2 and 1/4 turns a position.
    #[test]
    fn llama3_keeps_the_fast_divides_the_slow_and_mixes_between() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 0.5,
            high_freq_factor: 1.5,
            original_max_positions: 1,
        };
        let scaled: Vec<f64> =
            [2.0, 1.0, 0.5, 0.25].iter().map(|turns| scaling.apply(turns * TAU) / TAU).collect();
        let expected = [2.0, 0.5 + 0.5 / 8.0, 0.5 / 8.0, 0.25 / 8.0];
        assert!(scaled.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{scaled:?}");
    }

    #[test]
    fn linear_divides_all() {
        let rope = Rope { theta: 16.0, scaling: RopeScaling::Linear { factor: 4.0 } };
        assert_eq!(rope.frequencies(8), [0.25, 0.125, 0.0625, 0.03125]);
    }
}

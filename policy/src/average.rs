//! Model averaging: the weighted mean of models of one shape, tensor by tensor.
//!
//! Wortsman et al., "Model soups", 2022 (arXiv:2203.05482); the Llama 3 report (arXiv:2407.21783, 4.1.5) averages at each of
//! its reward-model, SFT and DPO stages.

use std::path::Path;

use tch::{Kind, Tensor, no_grad};

use crate::checkpoint::{Checkpoint, Weights};
use crate::config::ModelConfig;
use crate::error::{PolicyError, Result};
use crate::tokenizer::Tokenizer;

/// Weights to average, with their name in messages and their share.
#[derive(Debug)]
pub struct Part {
    /// Which they are.
    pub name: String,
    /// Their share, at least 0; shares are divided by their sum.
    pub share: f64,
    /// f32.
    pub weights: Weights,
}

/// Σ sᵢ θᵢ / Σ sᵢ, summed in f64 in the order of the parts and rounded once: f32, on the CPU. The mean of equal models is
/// that model, to the last bit.
///
/// # Errors
/// If there is nothing to average, or a model has other tensors than the first.
pub fn average(parts: &[Part]) -> Result<Weights> {
    let total: f64 = parts.iter().map(|part| part.share).sum();
    let Some(first) = parts.first().filter(|_| total > 0.0) else {
        return Err(PolicyError::CannotAverage {
            name: "an average".to_string(),
            cause: "the weights add up to 0".to_string(),
        });
    };
    for part in &parts[1..] {
        let shapes = |part: &Part| -> Vec<(String, Vec<i64>)> {
            part.weights.iter().map(|(name, tensor)| (name.clone(), tensor.size())).collect()
        };
        same_shapes(&shapes(part), &shapes(first))
            .map_err(|cause| PolicyError::CannotAverage { name: part.name.clone(), cause })?;
    }
    let mean = |name: &String| {
        let mut sum: Option<Tensor> = None;
        for part in parts {
            let tensor = part.weights[name].to_device(tch::Device::Cpu).to_kind(Kind::Double);
            let share = tensor * (part.share / total);
            sum = Some(match sum {
                Some(sum) => sum + share,
                None => share,
            });
        }
        sum.map(|sum| (name.clone(), sum.to_kind(Kind::Float)))
    };
    no_grad(|| Ok(first.weights.keys().filter_map(mean).collect()))
}

/// Checks, from headers alone, that the model at `path` can be averaged with one of this shape and vocabulary.
///
/// # Errors
/// If there is no model, it cannot be read, or a tensor or a token is another.
pub fn check(path: &Path, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<()> {
    let (theirs, their_tokenizer) = Checkpoint::inspect(path)?;
    same_shapes(&theirs.tensor_shapes(), &config.tensor_shapes())
        .and_then(|()| same_tokens(&their_tokenizer, tokenizer))
        .map_err(|cause| PolicyError::CannotAverage { name: path.display().to_string(), cause })
}

/// `Err` with a sentence that names the first tensor that differs.
fn same_shapes(
    found: &[(String, Vec<i64>)],
    expected: &[(String, Vec<i64>)],
) -> std::result::Result<(), String> {
    let shape = |shapes: &[(String, Vec<i64>)], wanted: &String| {
        shapes.iter().find(|(name, _)| name == wanted).map(|(_, shape)| shape.clone())
    };
    for (name, shape_there) in expected {
        match shape(found, name) {
            None => return Err(format!("it lacks the tensor {name}")),
            Some(own) if own != *shape_there => {
                return Err(format!("its tensor {name} has the shape {own:?}, expected {shape_there:?}"));
            }
            Some(_) => {}
        }
    }
    match found.iter().find(|(name, _)| shape(expected, name).is_none()) {
        Some((name, _)) => Err(format!("it has the tensor {name}, which the others lack")),
        None => Ok(()),
    }
}

/// `Err` with a sentence that names the first token that differs.
fn same_tokens(found: &Tokenizer, expected: &Tokenizer) -> std::result::Result<(), String> {
    let ids = found.vocab_size().max(expected.vocab_size()) as u32;
    let shown = |token: Option<String>| token.map_or("none".to_string(), |token| format!("{token:?}"));
    match (0..ids).find(|&id| found.token(id) != expected.token(id)) {
        None => Ok(()),
        Some(id) => Err(format!(
            "it has another vocabulary: its token {id} is {}, expected {}",
            shown(found.token(id)),
            shown(expected.token(id))
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, share: f64, values: &[f32]) -> Part {
        let weights = Weights::from([("w".to_string(), Tensor::from_slice(values))]);
        Part { name: name.to_string(), share, weights }
    }

    fn values(weights: &Weights) -> Vec<f32> {
        Vec::try_from(&weights["w"]).expect("a vector")
    }

    /// By hand: (1 + 2 + 6) / 3 = 3 and (0.5 − 1 + 2) / 3 = 0.5; then 3/4 · 1 + 1/4 · 5 = 2 and 3/4 · (−2) + 1/4 · 2 = −1.
    #[test]
    fn means_are_those_of_the_definition() {
        let parts = [part("a", 1.0, &[1.0, 0.5]), part("b", 1.0, &[2.0, -1.0]), part("c", 1.0, &[6.0, 2.0])];
        assert_eq!(values(&average(&parts).expect("one shape")), [3.0, 0.5]);
        let parts = [part("a", 3.0, &[1.0, -2.0]), part("b", 1.0, &[5.0, 2.0])];
        assert_eq!(values(&average(&parts).expect("one shape")), [2.0, -1.0]);
    }

    /// 1 + 2⁻²⁴ is no f32: the mean of 1 and 1 + 2⁻²³ lies halfway and goes to the even one. A sum in f32 of three times
    /// 0.1 / 3 would not give 0.1 back.
    #[test]
    fn sums_are_rounded_once() {
        let next = 1.0 + f32::EPSILON;
        let parts = [part("a", 1.0, &[1.0, 0.1]), part("b", 1.0, &[next, 0.1])];
        assert_eq!(values(&average(&parts).expect("one shape")), [1.0, 0.1]);
        let thirds = [0.1f32, 0.7, 1e-30, -3.3e7];
        let parts = ["a", "b", "c"].map(|name| part(name, 1.0, &thirds));
        assert_eq!(values(&average(&parts).expect("one shape")), thirds);
    }

    #[test]
    fn what_differs_is_named() {
        let other = Part { name: "other".to_string(), share: 1.0, weights: Weights::new() };
        for (parts, expected) in [
            (
                vec![part("a", 1.0, &[1.0]), part("b", 1.0, &[1.0, 2.0])],
                "b cannot be averaged with the others: its tensor w has the shape [2], expected [1]",
            ),
            (
                vec![part("a", 1.0, &[1.0]), other],
                "other cannot be averaged with the others: it lacks the tensor w",
            ),
            (vec![part("a", 0.0, &[1.0])], "the weights add up to 0"),
            (vec![], "the weights add up to 0"),
        ] {
            let error = average(&parts).expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_model_of_another_shape_or_vocabulary_is_refused_from_its_headers() {
        let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
        let (config, tokenizer) = Checkpoint::inspect(&fixture("tiny")).expect("it loads");
        check(&fixture("tiny"), &config, &tokenizer).expect("it is the same");
        let error = check(&fixture("tiny-untied"), &config, &tokenizer).expect_err("another").to_string();
        assert!(error.contains("tiny-untied cannot be averaged with the others: "), "{error}");
    }
}

//! Pairs of answers under a reward model: does it score the preferred one higher?

use arriero_data::{DataConfig, Row};
use arriero_policy::reward_model::Conversations;
use arriero_policy::written;
use serde_json::Map;

use super::{Context, Fields, Reply, Suite, Task};
use crate::config::SuiteConfig;
use crate::parts::{fixed_completion, indicator, scores};
use arriero_results::{Figure, Form};
use arriero_results::{Outcome, Sample};

/// Bins of the calibration error, from 1/2 to 1.
const BINS: usize = 10;

pub(crate) struct Preference {
    data: DataConfig,
    context: Context,
    max_length: usize,
    /// The prompt and both answers of each item.
    pairs: Vec<[String; 3]>,
}

impl Preference {
    pub fn new(config: &SuiteConfig, context: Context) -> Self {
        let max_length = config.max_length.unwrap_or(usize::MAX).min(context.max_positions);
        Preference { data: config.data(&config.path), context, max_length, pairs: Vec::new() }
    }
}

impl Suite for Preference {
    fn task(&mut self, id: u64, fields: &Fields) -> Result<Task, String> {
        let (row, is_plain) = self.data.row(fields).map_err(|error| error.to_string())?;
        let Row::Preference { prompt, chosen, rejected, .. } = row else {
            return Err(format!("expected `chosen` and `rejected`, found a row of {}", row.kind()));
        };
        let tokenizer = &self.context.tokenizer;
        let text = |turns: &[arriero_buffers::Message]| {
            turns.iter().map(|turn| turn.content.as_str()).collect::<Vec<_>>().join("\n")
        };
        let texts = [text(&prompt), text(&chosen), text(&rejected)];
        let (prompt, answers) = match is_plain {
            true => written::plain_completions(tokenizer, &texts[0], &[texts[1].as_str(), texts[2].as_str()]),
            false => written::completions(tokenizer, &prompt, &[&chosen[..], &rejected[..]], &self.data.loss),
        }
        .map_err(|error| error.to_string())?;
        let sequences: Vec<Vec<u32>> =
            answers.into_iter().map(|answer| [&prompt[..], &answer.tokens].concat()).collect();
        let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
        if longest > self.max_length {
            return Err(format!("a conversation has {longest} tokens, more than {}", self.max_length));
        }
        self.pairs.push(texts);
        Ok(Task::Rank(Conversations { prompt_id: id, sequences }))
    }

    fn grade(&mut self, id: u64, reply: Reply<'_>) -> Result<Outcome, String> {
        let pair = self.pairs.get_mut(id as usize).map(std::mem::take);
        let (Reply::Scores(&[chosen, rejected]), Some([prompt, chosen_text, rejected_text])) = (reply, pair)
        else {
            return Err("it was not asked".to_string());
        };
        let (chosen, rejected) = (f64::from(chosen), f64::from(rejected));
        let margin = chosen - rejected;
        if !margin.is_finite() {
            return Err(format!("its scores are {chosen} and {rejected}"));
        }
        let numbers = scores([
            ("accuracy", indicator(margin > 0.0)),
            ("tie", indicator(margin == 0.0)),
            ("margin", margin),
            // −log σ(margin), where exp cannot overflow.
            ("loss", (-margin).max(0.0) + (-margin.abs()).exp().ln_1p()),
        ]);
        let samples = [(chosen_text, chosen), (rejected_text, rejected)].into_iter().zip(0..).map(
            |((text, score), sample)| Sample {
                completion: arriero_buffers::Completion { sample, ..fixed_completion(text) },
                scores: scores([("score", score)]),
                details: Map::new(),
            },
        );
        let samples = samples.collect();
        Ok(Outcome { place: String::new(), id, prompt, scores: numbers, samples })
    }

    fn figures(&self, outcomes: &[Outcome]) -> Vec<Figure> {
        let mean = |name: &str, form: Form| {
            Figure::mean(name, form, outcomes.iter().map(|outcome| outcome.score(name)))
        };
        let calibration = calibration_error(outcomes.iter().map(|outcome| outcome.score("margin")));
        let calibration = calibration.map(|value| Figure {
            name: "calibration_error".to_string(),
            value,
            standard_error: None,
            n: outcomes.len(),
            form: Form::Share,
        });
        [
            mean("accuracy", Form::Share),
            mean("tie", Form::Share),
            mean("margin", Form::Number),
            mean("loss", Form::Number),
            calibration,
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The expected calibration error of σ(|margin|) as the probability that a pair is in the right order (Guo et al.,
/// arXiv:1706.04599), over bins of one width.
fn calibration_error(margins: impl Iterator<Item = f64>) -> Option<f64> {
    // Of each bin: pairs, Σ confidence, pairs in the right order.
    let mut bins = [[0.0; 3]; BINS];
    let mut count = 0.0;
    for margin in margins {
        let confidence = 1.0 / (1.0 + (-margin.abs()).exp());
        let bin = ((confidence - 0.5) * 2.0 * BINS as f64) as usize;
        let bin = &mut bins[bin.min(BINS - 1)];
        count += 1.0;
        bin[0] += 1.0;
        bin[1] += confidence;
        bin[2] += indicator(margin > 0.0);
    }
    (count > 0.0)
        .then(|| bins.iter().map(|[_, confidence, right]| (confidence - right).abs()).sum::<f64>() / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// σ(ln 3) = 3/4: two of three right in that bin; σ(ln 9) = 9/10: right.
    #[test]
    fn the_calibration_error_compares_confidence_with_accuracy() {
        let margins = [3f64.ln(), -(3f64.ln()), 3f64.ln(), 9f64.ln()];
        let found = calibration_error(margins.into_iter()).expect("four pairs");
        let expected = ((2.25f64 - 2.0).abs() + 0.1) / 4.0;
        assert!((found - expected).abs() < 1e-9, "{found}");
        assert_eq!(calibration_error(std::iter::empty()), None);
    }
}

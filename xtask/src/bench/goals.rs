//! From what was measured to the rows of the table, each with what must be reached.

use super::measure::Measured;
use super::work::{Outcome, Round, Work};
use std::fmt::Write;

/// Pairs of a DPO step: so many trees go through the data plane for it.
const TREES_A_STEP: f64 = 8.0;

/// How a number is shown, and which way is better.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unit {
    /// A speed as a multiple of the other's.
    TimesFaster,
    /// A size or a time as a multiple of the other's: less is better.
    TimesAsMuch,
    /// A share that is to be large.
    Share,
    /// A share that is to be small.
    Overhead,
    /// Things a second.
    Rate,
}

impl Unit {
    fn more_is_better(self) -> bool {
        matches!(self, Self::TimesFaster | Self::Share | Self::Rate)
    }

    /// The number in words.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::TimesFaster | Self::TimesAsMuch => format!("{value:.2} ×"),
            Self::Share => format!("{:.0}%", 100.0 * value),
            Self::Overhead => format!("{:.3}%", 100.0 * value),
            Self::Rate => thousands(value),
        }
    }
}

/// A row: a requirement, and the number of each round.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    pub unit: Unit,
    /// Not done on this side of it.
    pub must: f64,
    pub goal: f64,
    /// One number a round; none if it was not measured.
    pub values: Vec<f64>,
}

impl Row {
    /// The middle of the rounds.
    pub fn median(&self) -> Option<f64> {
        median(&self.values)
    }

    /// What to say of it.
    pub fn state(&self) -> &'static str {
        let Some(median) = self.median() else { return "not measured" };
        let reaches = |bound| if self.unit.more_is_better() { median >= bound } else { median <= bound };
        match (reaches(self.goal), reaches(self.must)) {
            (true, _) => "goal reached",
            (_, true) => "done, goal missed",
            _ => "**not reached**",
        }
    }
}

/// All rows, with what was measured of each kind of work.
pub fn rows(outcomes: &[(Work, Outcome)]) -> Vec<Row> {
    let rounds = |work: Work| -> &[Round] {
        outcomes.iter().find(|(measured, _)| *measured == work).map_or(&[], |(_, outcome)| &outcome.rounds)
    };
    let each = |work: Work, value: &dyn Fn(&Round) -> Option<f64>| -> Vec<f64> {
        rounds(work).iter().filter_map(value).collect()
    };
    let by_step = |round: &Round| ratio(round, |side| side.get("seconds_per_step"));
    let by_token = |round: &Round| ratio(round, Measured::seconds_per_token);
    let memory = |round: &Round| ratio(round, |side| Some(1.0 / side.peak_bytes as f64));
    let peak_share =
        |round: &Round| Some(round.ours.get("useful_gflops")? / round.peak.as_ref()?.get("bf16_gflops")?);
    let seconds_a_tree = each(Work::DataPlane, &|round| Some(data_plane_seconds(&round.ours)));
    let step = median(&each(Work::Dpo, &|round| round.ours.get("seconds_per_step")));
    let overhead = |step: f64| seconds_a_tree.iter().map(|tree| TREES_A_STEP * tree / step).collect();
    let overheads: Vec<f64> = step.map(overhead).unwrap_or_default();
    let row = |name, unit, (must, goal), values| Row { name, unit, must, goal, values };
    let faster = |name, bounds, values| row(name, Unit::TimesFaster, bounds, values);
    vec![
        faster(
            "DPO step, 8 pairs, reference included: speed against TRL bf16",
            (5.0, 9.0),
            each(Work::Dpo, &by_step),
        ),
        row(
            "the same: peak memory against TRL bf16",
            Unit::TimesAsMuch,
            (0.5, 0.25),
            each(Work::Dpo, &memory),
        ),
        row(
            "the same: share of the machine's bf16 peak",
            Unit::Share,
            (0.4, 0.65),
            each(Work::Dpo, &peak_share),
        ),
        faster(
            "GRPO iteration, 4 prompts × 8 completions × ≤ 64 tokens, KL on: speed against TRL bf16",
            (4.5, 7.0),
            each(Work::Grpo, &by_step),
        ),
        faster(
            "sampling, 16 prompts × 8 samples × ≤ 128 tokens: tokens a second against transformers.generate bf16",
            (5.0, 9.0),
            each(Work::Sampling, &by_token),
        ),
        faster(
            "decode at batch 32, sampling included, against llama.cpp bf16",
            (1.0, 1.4),
            each(Work::Decode32, &by_token),
        ),
        faster(
            "decode at batch 128, sampling included, against llama.cpp bf16",
            (1.0, 1.4),
            each(Work::Decode128, &by_token),
        ),
        row(
            "packed SFT step from 512 to 4,096 tokens: time against proportional",
            Unit::TimesAsMuch,
            (1.15, 1.05),
            each(Work::PackedSft, &|round| round.ours.get("proportional")),
        ),
        row(
            "data plane: experiences a second through queues and buffer",
            Unit::Rate,
            (200e3, 1e6),
            seconds_a_tree.iter().map(|seconds| 1.0 / seconds).collect(),
        ),
        row("data plane: share of a DPO step", Unit::Overhead, (0.01, 0.001), overheads),
        row(
            "bf16 against f32: log-probability of a sequence, the largest difference of 128",
            Unit::Overhead,
            (0.005, 0.005),
            each(Work::Guard, &|round| round.ours.get("logps_max")),
        ),
        row(
            "bf16 against f32: loss of 50 DPO steps, the largest difference",
            Unit::Overhead,
            (0.02, 0.02),
            each(Work::Guard, &|round| round.ours.get("curve_max")),
        ),
        row(
            "trainer against sampler on the same weights, bf16: mean importance ratio, distance from 1",
            Unit::Overhead,
            (0.001, 0.001),
            each(Work::Guard, &|round| Some((round.ours.get("ratio_mean")? - 1.0).abs())),
        ),
    ]
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// Theirs over ours.
fn ratio(round: &Round, cost: impl Fn(&Measured) -> Option<f64>) -> Option<f64> {
    Some(cost(round.theirs.as_ref()?)? / cost(&round.ours)?)
}

/// What one tree costs on its way from the generator to the learner: two queues and the buffer.
fn data_plane_seconds(measured: &Measured) -> f64 {
    let times = |name: &str| if name.starts_with("queue") { 2.0 } else { 1.0 };
    measured.figures.iter().map(|(name, seconds)| times(name) * seconds).sum()
}

/// `1,234,567`.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        let _ = write!(text, "{digit}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(figures: &[(&str, f64)], peak_bytes: u64) -> Measured {
        let figures = figures.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        Measured { figures, peak_bytes }
    }

    fn round(ours: f64, theirs: f64) -> Round {
        Round {
            ours: measured(&[("seconds_per_step", ours), ("useful_gflops", 300.0)], 2_000),
            theirs: Some(measured(&[("seconds_per_step", theirs)], 10_000)),
            peak: Some(measured(&[("bf16_gflops", 600.0)], 0)),
        }
    }

    fn outcome(rounds: Vec<Round>) -> Outcome {
        Outcome { when: String::new(), commit: String::new(), commands: Vec::new(), rounds }
    }

    #[test]
    fn ratios_are_taken_within_rounds_and_their_median_counts() {
        // 28 / 4 = 7, 30 / 2 = 15, 24 / 4 = 6: the median of the ratios, not the ratio of medians (28 / 4).
        let rounds = vec![round(4.0, 28.0), round(2.0, 30.0), round(4.0, 24.0)];
        let rows = rows(&[(Work::Dpo, outcome(rounds))]);
        assert_eq!(rows[0].values, [7.0, 15.0, 6.0]);
        assert_eq!((rows[0].median(), rows[0].state()), (Some(7.0), "done, goal missed"));
        assert_eq!((rows[1].median(), rows[1].state()), (Some(0.2), "goal reached"));
        assert_eq!((rows[2].median(), rows[2].state()), (Some(0.5), "done, goal missed"));
        assert_eq!((rows[3].median(), rows[3].state()), (None, "not measured"));
    }

    #[test]
    fn a_tree_goes_through_two_queues_and_the_buffer() {
        let plane = measured(&[("queue", 1e-6), ("buffer: insert, shuffle, minibatches", 3e-6)], 0);
        let plane = outcome(vec![Round { ours: plane, theirs: None, peak: None }]);
        let rows = rows(&[(Work::Dpo, outcome(vec![round(4.0, 28.0)])), (Work::DataPlane, plane)]);
        let [.., rate, share, _, _, _] = &rows[..] else { unreachable!("there are rows") };
        assert!((rate.median().expect("measured") - 200e3).abs() < 1e-3, "{rate:?}");
        // 8 trees at 5 µs each in a step of 4 s.
        assert!((share.median().expect("measured") - 1e-5).abs() < 1e-12, "{share:?}");
    }

    #[test]
    fn numbers_are_shown_in_their_unit() {
        assert_eq!(Unit::TimesFaster.show(4.526), "4.53 ×");
        assert_eq!(Unit::Share.show(0.41), "41%");
        assert_eq!(Unit::Overhead.show(0.000_123), "0.012%");
        assert_eq!(Unit::Rate.show(1_234_567.0), "1,234,567");
        assert_eq!(Unit::Rate.show(999.0), "999");
    }
}

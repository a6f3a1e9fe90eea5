//! Reports as rows of a run store.

use std::collections::BTreeMap;

use arriero_store::{ArmStore, EventLevel, MetricRecord, SampleRecord, StoreError};

use arriero_results::Outcome;
use arriero_results::Report;

/// Records a suite's figures as metrics of `stage` at `step`, each with its `…/standard_error` and `…/n`, and its
/// answers as samples of `stage` in round `step`.
///
/// # Errors
/// If the disk fails.
pub fn record(
    store: &mut ArmStore,
    arm: &str,
    stage: &str,
    step: u64,
    report: &Report,
    outcomes: &[Outcome],
) -> Result<(), StoreError> {
    let mut metrics = BTreeMap::new();
    for figure in &report.figures {
        metrics.insert(figure.name.clone(), figure.value);
        metrics.insert(format!("{}/n", figure.name), figure.n as f64);
        if let Some(error) = figure.standard_error {
            metrics.insert(format!("{}/standard_error", figure.name), error);
        }
    }
    metrics.insert("items".to_string(), report.items as f64);
    metrics.insert("judged".to_string(), report.judged as f64);
    metrics.insert("skipped".to_string(), report.skipped as f64);
    metrics.insert("is_complete".to_string(), f64::from(u8::from(report.is_complete)));
    store.log(&MetricRecord { arm: arm.to_string(), stage: stage.to_string(), step, metrics })?;
    for outcome in outcomes {
        for sample in &outcome.samples {
            store.sample(&row(stage, step, outcome, sample))?;
        }
    }
    if report.skipped > 0 {
        store.drops(stage, "row_left_out", report.skipped)?;
        for row in &report.skipped_rows {
            store.event(EventLevel::Warning, "evaluation", &format!("{}: left out: {row}", report.suite))?;
        }
    }
    if !report.is_complete {
        let message = format!("{}: stopped after {} of {} items", report.suite, report.judged, report.items);
        store.event(EventLevel::Warning, "evaluation", &message)?;
    }
    Ok(())
}

fn row(stage: &str, round: u64, outcome: &Outcome, sample: &arriero_results::Sample) -> SampleRecord {
    let completion = &sample.completion;
    // The first figure that a suite has of an answer is what it is about.
    let of = |name: &str| sample.scores.get(name).copied();
    let main = ["strict", "correct", "acc", "win_rate", "all_passed", "score", "logp"]
        .iter()
        .find_map(|name| of(name));
    SampleRecord {
        stage: stage.to_string(),
        round,
        prompt_id: outcome.id,
        prompt: outcome.prompt.clone(),
        sample: completion.sample,
        text: completion.text.clone(),
        reward: main.unwrap_or(f64::NAN) as f32,
        components: sample.scores.iter().map(|(name, value)| (name.clone(), *value as f32)).collect(),
        tokens: completion.drawn_tokens().collect(),
        logps: completion.logps().collect(),
        sampled_logps: completion.sampled_logps().collect(),
        reference_logps: None,
        weight_versions: completion.weight_versions().collect(),
        finish: completion.finish,
        selected: None,
        dropped: None,
    }
}

//! Reports as rows of a run store.

use std::collections::BTreeMap;

use arriero_buffers::Address;
use arriero_results::{Outcome, Report, Sample};
use arriero_store::{ArmStore, DropRecord, EventLevel, EventRecord, MetricRecord, SampleRecord, StoreError};

/// Records a suite's figures as metrics at `step`, each with its `…/standard_error` and `…/n`, and its answers as
/// samples of the evaluation of this step. The series of the metrics has the name of the address's stage.
///
/// # Errors
/// If the address is not of the store's arm, or the disk fails.
pub fn record(
    store: &mut ArmStore,
    address: &Address,
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
    let series = address.stage.to_string();
    store.log(&MetricRecord { address: address.clone(), series, step, part: 0, metrics })?;
    for outcome in outcomes {
        for sample in &outcome.samples {
            store.sample(&row(address, step, outcome, sample))?;
        }
    }
    let warning = |what: &str, message: String| EventRecord {
        key: Some(format!("{} at step {step}: {what}", address.stage)),
        address: Some(address.clone()),
        level: EventLevel::Warning,
        actor: "evaluation".to_string(),
        message,
    };
    if report.skipped > 0 {
        let (reason, count) = ("row_left_out".to_string(), report.skipped);
        store.drops(&DropRecord { address: address.clone(), reason, part: step, count })?;
        for (place, row) in report.skipped_rows.iter().enumerate() {
            let message = format!("{}: left out: {row}", report.suite);
            store.event(&warning(&format!("left out {place}"), message))?;
        }
    }
    if !report.is_complete {
        let message = format!("{}: stopped after {} of {} items", report.suite, report.judged, report.items);
        store.event(&warning("stopped", message))?;
    }
    Ok(())
}

fn row(address: &Address, step: u64, outcome: &Outcome, sample: &Sample) -> SampleRecord {
    let completion = &sample.completion;
    // The first figure that a suite has of an answer is what it is about.
    let of = |name: &str| sample.scores.get(name).copied();
    let main = ["strict", "correct", "acc", "win_rate", "all_passed", "score", "logp"]
        .iter()
        .find_map(|name| of(name));
    SampleRecord {
        address: address.clone(),
        evaluation: Some(step),
        prompt_id: outcome.id,
        prompt: outcome.prompt.clone(),
        sample: completion.sample,
        text: completion.text.clone(),
        reward: main.unwrap_or(f64::NAN) as f32,
        components: sample.scores.iter().map(|(name, value)| (name.clone(), *value as f32)).collect(),
        segments: completion.segments.iter().cloned().map(Into::into).collect(),
        finish: completion.finish,
        selected: None,
        dropped: None,
    }
}

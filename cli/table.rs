//! The final table: one column an arm, one row a figure.

use arriero_eval::{Figure, Form, Report};
use arriero_results::Estimate;
use arriero_results::{ArmSummary, HeldOut, RunSummary};

/// `35.2% [29.5, 40.9]`.
pub fn percent(estimate: &Estimate) -> String {
    format!("{:.1}% [{:.1}, {:.1}]", 100.0 * estimate.value, 100.0 * estimate.low, 100.0 * estimate.high)
}

/// `+10.5 [+4.1, +16.9]`, in points.
fn points(estimate: &Estimate) -> String {
    format!("{:+.1} [{:+.1}, {:+.1}]", 100.0 * estimate.value, 100.0 * estimate.low, 100.0 * estimate.high)
}

/// `0.412 [0.377, 0.447]`.
fn number(estimate: &Estimate) -> String {
    format!("{:.3} [{:.3}, {:.3}]", estimate.value, estimate.low, estimate.high)
}

fn signed(estimate: &Estimate) -> String {
    format!("{:+.3} [{:+.3}, {:+.3}]", estimate.value, estimate.low, estimate.high)
}

/// The table of a run. Without held-out prompts, it has no rows of what is measured on them.
pub fn table(summary: &RunSummary) -> String {
    let is_measured = summary.held_out > 0;
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut header = vec![String::new()];
    header.extend(is_measured.then(|| "before".to_string()));
    header.extend(summary.arms.iter().map(|arm| arm.arm.clone()));
    rows.push(header);
    type Pick = fn(&HeldOut) -> Option<Estimate>;
    type Show = fn(&Estimate) -> String;
    let accuracy: Pick = |figures| figures.prompt_accuracy;
    let instructions: Pick = |figures| figures.instruction_accuracy;
    let reward: Pick = |figures| figures.reward;
    let measured: [(&str, Pick, Show, Show); 3] = [
        ("prompt accuracy", accuracy, percent, points),
        ("instruction accuracy", instructions, percent, points),
        ("mean reward", reward, number, signed),
    ];
    for (name, pick, show, show_change) in measured.into_iter().filter(|_| is_measured) {
        let before = summary.arms.first().and_then(|arm| pick(&arm.before));
        let mut row = vec![name.to_string(), shown(before, show)];
        let mut change = vec!["  change".to_string(), String::new()];
        for arm in &summary.arms {
            row.push(shown(arm.after.as_ref().and_then(pick), show));
            change.push(shown(arm.change.as_ref().and_then(pick), show_change));
        }
        rows.push(row);
        rows.push(change);
    }
    let figure = |name: &str, before: String, of: &dyn Fn(&ArmSummary) -> String| {
        let mut row = vec![name.to_string()];
        row.extend(is_measured.then_some(before));
        row.extend(summary.arms.iter().map(of));
        row
    };
    rows.extend(suites(&summary.arms));
    let length = |figures: &HeldOut| format!("{:.1}", figures.mean_length);
    if is_measured {
        rows.push(figure(
            "tokens a response",
            summary.arms.first().map_or(String::new(), |arm| length(&arm.before)),
            &|arm| arm.after.as_ref().map_or("–".to_string(), length),
        ));
        rows.push(figure("KL to reference, nats/token", "0".to_string(), &|arm| {
            arm.kl.map_or("–".to_string(), |kl| format!("{kl:.4}"))
        }));
    }
    rows.push(figure("tokens sampled", String::new(), &|arm| arm.tokens_sampled.to_string()));
    rows.push(figure("tokens trained", String::new(), &|arm| arm.tokens_trained.to_string()));
    rows.push(figure("optimiser steps", String::new(), &|arm| arm.steps.to_string()));
    rows.push(figure("seconds", String::new(), &|arm| format!("{:.0}", arm.seconds)));

    let measured = match summary.held_out {
        0 => "nothing was measured, since there are no held-out prompts".to_string(),
        prompts => format!("{prompts} held-out prompts, 95% intervals"),
    };
    let title =
        format!("{} (seed {}): {measured}, {:.0} s in all", summary.name, summary.seed, summary.seconds);
    format!("\n{title}\n\n{}", align(&rows))
}

/// `35.2% ± 2.9`, a standard error behind it; `12.3 ± 0.4` where it is no share.
fn with_error(figure: &Figure) -> String {
    let (scale, unit, digits) = match figure.form {
        Form::Share => (100.0, "%", 1),
        Form::Number => (1.0, "", 3),
    };
    let value = format!("{:.digits$}{unit}", scale * figure.value);
    match figure.standard_error {
        Some(error) => format!("{value} ± {:.digits$}", scale * error),
        None => value,
    }
}

/// A row for each suite's figure, with its standard error. Figures of a suite's parts are in the summary alone.
fn suites(arms: &[ArmSummary]) -> Vec<Vec<String>> {
    let Some(first) = arms.first() else { return Vec::new() };
    let mut rows = Vec::new();
    for (place, suite) in first.suites.iter().enumerate() {
        for figure in suite.before.iter().filter(|figure| !figure.name.contains('/')) {
            let mut row = vec![format!("{} {} ± s.e.", suite.suite, figure.name), with_error(figure)];
            row.extend(arms.iter().map(|arm| {
                let after = arm
                    .suites
                    .get(place)
                    .and_then(|suite| suite.after.iter().find(|other| other.name == figure.name));
                after.map_or("–".to_string(), with_error)
            }));
            rows.push(row);
        }
    }
    rows
}

/// The table of an evaluation: a line a figure.
pub fn figures(model: &str, reports: &[Report]) -> String {
    let mut rows = vec![["suite", "figure", "value ± standard error", "n"].map(str::to_string).to_vec()];
    for report in reports {
        let mut name = match report.is_complete {
            true => report.suite.clone(),
            false => format!("{} (stopped after {} of {})", report.suite, report.judged, report.items),
        };
        for figure in &report.figures {
            rows.push(vec![
                std::mem::take(&mut name),
                figure.name.clone(),
                with_error(figure),
                figure.n.to_string(),
            ]);
        }
        if !name.is_empty() {
            rows.push(vec![name, "–".to_string()]);
        }
        if report.skipped > 0 {
            rows.push(vec![String::new(), "rows left out".to_string(), report.skipped.to_string()]);
        }
    }
    format!("\n{model}\n\n{}", align(&rows))
}

fn shown(estimate: Option<Estimate>, show: fn(&Estimate) -> String) -> String {
    estimate.map_or("–".to_string(), |estimate| show(&estimate))
}

/// Pads every column to its widest cell.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

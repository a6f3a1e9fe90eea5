//! The table, and docs/PERFORMANCE.md. What is measured stands between two markers. The rest of the file is written by
//! hand, and stays.

use super::goals::{Row, Unit};
use super::machine;
use super::measure::Measured;
use super::work::{Outcome, Round, Work};
use crate::setup::write_whole;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::fmt::Write;
use std::fs;

const DOCUMENT: &str = "docs/PERFORMANCE.md";
const BEGIN: &str = "<!-- measured: `cargo xtask bench peers` replaces everything up to the end marker -->";
const END: &str = "<!-- end of what is measured -->";

/// The file as it starts, with room for what a person has to say.
const TEMPLATE: &str = "# Performance

What Arriero reaches on one machine, and other toolkits on the same machine in the same run.

<!-- measured: `cargo xtask bench peers` replaces everything up to the end marker -->
<!-- end of what is measured -->

## Where the time goes

Not written yet.
";

/// The rows as a table in Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut cells = vec![["work", "median", "rounds", "not done below", "goal", "state"].map(str::to_owned)];
    for row in rows {
        let bound = |value| match row.unit {
            // A bound has fewer digits than what is measured.
            Unit::TimesAsMuch | Unit::Overhead => format!("≤ {}", row.unit.show(value)),
            _ => row.unit.show(value),
        };
        let rounds: Vec<String> = row.values.iter().map(|&value| row.unit.show(value)).collect();
        cells.push([
            row.name.to_owned(),
            row.median().map_or_else(|| "–".to_owned(), |median| row.unit.show(median)),
            rounds.join(", "),
            bound(row.must),
            bound(row.goal),
            row.state().to_owned(),
        ]);
    }
    markdown(&cells)
}

/// What each side took, a row a round.
fn details(outcomes: &[(Work, Outcome)]) -> String {
    let mut cells =
        vec![["work", "round", "ours", "theirs", "peak memory, ours", "theirs"].map(str::to_owned)];
    for (work, outcome) in outcomes.iter().filter(|(work, _)| !matches!(work, Work::DataPlane | Work::Guard))
    {
        for (number, Round { ours, theirs, .. }) in outcome.rounds.iter().enumerate() {
            let theirs_or =
                |show: fn(&Measured) -> String| theirs.as_ref().map_or_else(|| "–".to_owned(), show);
            cells.push([
                work.to_string(),
                (number + 1).to_string(),
                pace(ours),
                theirs_or(pace),
                gigabytes(ours),
                theirs_or(gigabytes),
            ]);
        }
    }
    markdown(&cells)
}

fn gigabytes(measured: &Measured) -> String {
    format!("{:.2} GB", measured.peak_bytes as f64 / 1e9)
}

fn pace(measured: &Measured) -> String {
    let packed: Vec<String> = measured
        .figures
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix("seconds_")?.parse::<u32>().ok()?, value)))
        .map(|(tokens, seconds)| format!("{tokens}: {seconds:.2} s"))
        .collect();
    if !packed.is_empty() {
        return packed.join(", ");
    }
    match (measured.get("seconds_per_step"), measured.seconds_per_token()) {
        (Some(step), Some(token)) if token > 0.0 && token.is_finite() => {
            format!("{step:.2} s a step, {:.0} tokens/s", 1.0 / token)
        }
        (Some(step), _) => format!("{step:.2} s a step"),
        _ => "–".to_owned(),
    }
}

/// Replaces the measured part of docs/PERFORMANCE.md.
///
/// # Errors
/// If the file has lost its markers, or cannot be written.
pub fn write(
    workspace: &Workspace,
    rows: &[Row],
    outcomes: &[(Work, Outcome)],
    versions: &[&str],
) -> Result<()> {
    let file = workspace.root().join(DOCUMENT);
    let document = fs::read_to_string(&file).unwrap_or_else(|_| TEMPLATE.to_owned());
    let document = with_measured(&document, &measured(rows, outcomes, versions))?;
    write_whole(&file, &document)?;
    println!("written: {DOCUMENT}");
    Ok(())
}

fn with_measured(document: &str, measured: &str) -> Result<String> {
    let missing = || format!("{DOCUMENT} lacks a marker; it must hold these two lines:\n{BEGIN}\n{END}");
    let (before, rest) = document.split_once(BEGIN).with_context(missing)?;
    let (_, after) = rest.split_once(END).with_context(missing)?;
    Ok(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", measured.trim()))
}

fn measured(rows: &[Row], outcomes: &[(Work, Outcome)], versions: &[&str]) -> String {
    let mut text = format!(
        "## Against other toolkits\n\nSmolLM2-135M-Instruct; medians of the rounds' ratios, both sides in turn.\n\n{}\n\
         ## What each side took\n\n{}\n## How it was measured\n\n",
        table(rows),
        details(outcomes)
    );
    for line in machine::describe() {
        let _ = writeln!(text, "- {line}");
    }
    let _ = writeln!(text, "- {}", versions.join(", "));
    text.push_str(
        "\nA turn is one process: a step of warm-up, then timed steps, of which it prints the median. Peak memory is \
         the largest resident set of the process, from `wait4`. `PEERS` is the toolkits' folder.\n\n```console\n\
         $ cargo xtask bench peers\n```\n\n",
    );
    for (work, Outcome { when, commit, commands, .. }) in outcomes {
        let _ = writeln!(text, "- {work}, {when} UTC, commit {commit}:");
        for command in commands {
            let _ = writeln!(text, "  - `{command}`");
        }
    }
    let peaks = |name: &str| -> Vec<String> {
        let rounds = outcomes.iter().flat_map(|(_, outcome)| &outcome.rounds);
        rounds.filter_map(|round| Some(format!("{:.0}", round.peak.as_ref()?.get(name)?))).collect()
    };
    let (bf16, f32) = (peaks("bf16_gflops"), peaks("f32_gflops"));
    if !bf16.is_empty() {
        let _ = write!(
            text,
            "\nThe machine's matrix products, best of several shapes, in the rounds of the DPO step: {} GFLOP/s in bf16, \
             {} in f32. Useful arithmetic is that of the step's matrix products, each counted once.\n",
            bf16.join(", "),
            f32.join(", ")
        );
    }
    let guard = outcomes.iter().find(|(work, _)| *work == Work::Guard);
    if let Some(guard) = guard.and_then(|(_, outcome)| outcome.rounds.first()) {
        let of = |name: &str| guard.ours.get(name).unwrap_or(f64::NAN);
        let _ = write!(
            text,
            "\nbf16 against f32, beside the table: a sequence's log-probability differs by {:.3}% in the mean, and of \
             {:.0}% of the sequences by at most 0.5%; the 50 steps' loss, which goes from {:.4} to {:.4} in f32, differs \
             by {:.2}% in the mean. Between sampler and trainer on the same weights, both in \
             bf16, a token's log-probability differs by {:.1e} in the mean and by {:.1e} at the 99.9th percentile; \
             the importance ratio is {:.6} in the mean.\n",
            100.0 * of("logps_mean"),
            100.0 * of("logps_near"),
            of("curve_first"),
            of("curve_last"),
            100.0 * of("curve_mean"),
            of("logp_difference_mean"),
            of("logp_difference_p99.9"),
            of("ratio_mean")
        );
    }
    text
}

/// A table whose columns are as wide as their widest cell.
fn markdown<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
        if number == 0 {
            for width in &widths {
                let _ = write!(text, "|{}", "-".repeat(width + 2));
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_by_hand_stays() {
        let first = with_measured(TEMPLATE, "one").expect("the template has its markers");
        let edited = first.replace("Not written yet.", "Half of it in the head.");
        let second = with_measured(&edited, "two").expect("the markers stay");
        assert!(second.contains("\n\ntwo\n\n") && !second.contains("one\n"), "{second}");
        assert!(
            second.ends_with("Half of it in the head.\n") && second.starts_with("# Performance"),
            "{second}"
        );
        assert_eq!(with_measured(&second, "two").expect("the markers stay"), second);
    }

    #[test]
    fn a_lost_marker_is_named_and_nothing_is_overwritten() {
        let error = with_measured("# Performance\n", "one").expect_err("no marker").to_string();
        assert!(error.contains(BEGIN) && error.contains(END), "{error}");
    }

    #[test]
    fn a_table_shows_bounds_and_what_is_missing() {
        let row =
            |unit, must, goal, values: &[f64]| Row { name: "w", unit, must, goal, values: values.to_vec() };
        let table = table(&[
            row(Unit::TimesFaster, 5.0, 9.0, &[6.0, 5.5, 7.25]),
            row(Unit::TimesAsMuch, 0.5, 0.25, &[]),
        ]);
        let lines: Vec<&str> = table.lines().collect();
        let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        assert_eq!(
            cells(lines[2])[1..7],
            ["w", "6.00 ×", "6.00 ×, 5.50 ×, 7.25 ×", "5.00 ×", "9.00 ×", "done, goal missed"]
        );
        assert_eq!(cells(lines[3])[1..7], ["w", "–", "", "≤ 0.50 ×", "≤ 0.25 ×", "not measured"]);
        assert_eq!(lines[0].chars().count(), lines[1].chars().count());
    }
}

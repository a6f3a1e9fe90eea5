//! Progress bars; plain lines where standard error is no terminal.

use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use arriero_actors::RunEvent;
use arriero_actors::event::EventLevel;
use indicatif::{ProgressBar, ProgressStyle};

use crate::table::percent;

/// Writes a line to standard error. If nobody reads it any more, the run goes on.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

/// How often a bar moves on its own, so that its clock runs.
const TICK: Duration = Duration::from_millis(500);

/// Columns of the name before a bar.
const NAME_WIDTH: usize = 28;

/// A bar that counts.
pub fn counter(total: u64, unit: &'static str) -> ProgressBar {
    let template = format!("{{prefix}}{{bar:30}} {{pos}}/{{len}} {unit}, {{msg}}{{eta}} left");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style)
}

/// Shows a run's events.
pub struct Progress {
    phase: Mutex<Option<PhaseBar>>,
}

struct PhaseBar {
    bar: ProgressBar,
    name: String,
    began: Instant,
}

impl Progress {
    /// Nothing yet.
    pub fn new() -> Self {
        Progress { phase: Mutex::new(None) }
    }

    /// Shows one event.
    pub fn show(&self, event: RunEvent) {
        let mut phase = self.phase.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match event {
            RunEvent::Started { directory, description } => say!("{directory}: {description}"),
            RunEvent::Phase { kind, arm, round, stage, total } => {
                end(&mut phase);
                let mut name = match arm.as_str() {
                    "" => kind.as_str().to_string(),
                    arm => format!("{arm} {}", kind.as_str()),
                };
                if arm != stage && kind == arriero_actors::event::PhaseKind::Training {
                    name = format!("{name} ({stage})");
                }
                if let Some(round) = round {
                    name = format!("{name}, round {round}");
                }
                *phase = Some(begin(name, total));
            }
            RunEvent::Progress { done, total, reward, rate } => {
                let Some(PhaseBar { bar, .. }) = &*phase else { return };
                bar.set_length(total);
                bar.set_position(done);
                let reward = reward.map(|reward| format!("reward {reward:.3}"));
                let rate = rate.map(|rate| format!("{rate:.0} tokens/s"));
                bar.set_message(listed([reward, rate]));
            }
            RunEvent::Step { done, metrics, rate } => {
                let Some(PhaseBar { bar, .. }) = &*phase else { return };
                bar.set_position(done);
                let shown =
                    [("loss", "loss"), ("rewards/accuracies", "accuracy"), ("rewards/margins", "margin")];
                let texts = shown
                    .iter()
                    .map(|(name, label)| metrics.get(*name).map(|value| format!("{label} {value:.3}")));
                let rate = rate.map(|rate| format!("{rate:.0} tokens/s"));
                bar.set_message(listed(texts.chain([rate])));
            }
            RunEvent::Evaluated { figures } => {
                let Some(PhaseBar { bar, .. }) = &*phase else { return };
                let accuracy = figures.prompt_accuracy.map(|accuracy| percent(&accuracy));
                bar.set_message(listed([accuracy.map(|text| format!("prompt accuracy {text}"))]));
                end(&mut phase);
            }
            RunEvent::ArmDone { .. } => end(&mut phase),
            RunEvent::Note { level, message } => {
                let level = match level {
                    EventLevel::Info => "note",
                    EventLevel::Warning => "warning",
                    EventLevel::Error => "error",
                };
                match &*phase {
                    Some(PhaseBar { bar, .. }) => bar.suspend(|| say!("{level}: {message}")),
                    None => say!("{level}: {message}"),
                }
            }
        }
    }
}

/// What is known, each followed by a comma: the time left comes next.
fn listed(texts: impl IntoIterator<Item = Option<String>>) -> String {
    texts.into_iter().flatten().map(|text| text + ", ").collect()
}

fn begin(name: String, total: u64) -> PhaseBar {
    let template = format!("{{prefix:{NAME_WIDTH}}} {{bar:24}} {{pos:>4}}/{{len}} {{msg}}{{eta}} left");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(total).with_style(style).with_prefix(name.clone());
    bar.enable_steady_tick(TICK);
    PhaseBar { bar, name, began: Instant::now() }
}

/// Leaves one line behind for a phase that is over.
fn end(phase: &mut Option<PhaseBar>) {
    let Some(PhaseBar { bar, name, began }) = phase.take() else { return };
    let seconds = began.elapsed().as_secs_f64();
    let message = bar.message();
    let message = message.trim_end_matches(", ");
    let done = bar.position();
    bar.finish_and_clear();
    let separator = if message.is_empty() { "" } else { ", " };
    match done {
        0 => say!("{name:NAME_WIDTH$} {seconds:>6.1} s"),
        done => say!("{name:NAME_WIDTH$} {seconds:>6.1} s  {done} done{separator}{message}"),
    }
}

//! The evaluation's suites: benchmarks of the version that is measured, one after the other.

use std::collections::VecDeque;
use std::sync::Arc;

use arriero_eval::{EvaluatedModel, Evaluation, SuiteConfig};
use arriero_results::SuiteResult;

/// The suites of an evaluation that is under way.
pub(crate) struct SuitesAtWork {
    subject: EvaluatedModel,
    seed: u64,
    waiting: VecDeque<SuiteConfig>,
    running: Option<Evaluation>,
    pub results: Vec<SuiteResult>,
}

impl SuitesAtWork {
    pub fn new(subject: EvaluatedModel, seed: u64, suites: &[SuiteConfig]) -> Self {
        let waiting = suites.iter().cloned().collect();
        SuitesAtWork { subject, seed, waiting, running: None, results: Vec::new() }
    }

    /// Items of the running suite that are done, and all of them.
    pub fn progress(&self) -> (u64, u64) {
        self.running.as_ref().map_or((0, 0), |running| (running.done() as u64, running.total() as u64))
    }

    /// Goes on a little; false when all suites are done.
    pub fn step(&mut self) -> Result<bool, String> {
        let words = |error: arriero_eval::EvalError| error.to_string();
        let Some(mut running) = self.running.take() else {
            let Some(suite) = self.waiting.pop_front() else { return Ok(false) };
            self.running = Some(Evaluation::new(&suite, &self.subject, self.seed).map_err(words)?);
            return Ok(true);
        };
        if running.step().map_err(words)? {
            self.running = Some(running);
            return Ok(true);
        }
        let (report, outcomes) = running.finish().map_err(words)?;
        self.results.push(SuiteResult { report, outcomes: Arc::new(outcomes) });
        Ok(!self.waiting.is_empty())
    }
}

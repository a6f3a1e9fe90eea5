//! What is recorded of a run: what the actors tell the recorder.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arriero_buffers::{Address, ScoredGroup, Selection, SelectionRule, Tree};
use arriero_results::{PromptOutcome, SuiteResult};
use arriero_store::EventLevel;

use crate::event::PhaseKind;

/// Something to write down.
#[derive(Debug, Clone)]
pub enum Record {
    /// The numbers of a step. `series` is what they are of: a stage, or a part of the work such as `evaluation`.
    Metrics {
        /// Where they belong.
        address: Address,
        /// What they are of.
        series: String,
        /// Optimiser steps since the arm began.
        step: u64,
        /// Which of the records of this step, from 0: a dataset's portions may be read with no step between them.
        part: u64,
        /// By name.
        metrics: BTreeMap<String, f64>,
    },
    /// A scored group and what became of it.
    Group {
        /// Where it belongs.
        address: Address,
        /// The group.
        scored: Arc<ScoredGroup>,
        /// The rule that was applied.
        rule: SelectionRule,
        /// What came of it.
        selection: Selection,
    },
    /// A tree with its reference log-probabilities. Its samples were recorded without them.
    Reference {
        /// Where it belongs.
        address: Address,
        /// The tree.
        tree: Tree,
    },
    /// Something that happened. Without an address it concerns all arms.
    Event {
        /// Where it happened.
        address: Option<Address>,
        /// How much it matters.
        level: EventLevel,
        /// Who says so.
        actor: &'static str,
        /// What.
        message: String,
    },
    /// A phase begins, or is over.
    Phase {
        /// Where.
        address: Address,
        /// Which.
        kind: PhaseKind,
        /// Which of the stage's phases of this kind, from 0: a dataset in portions has several.
        part: u64,
        /// Units of work that are done.
        done: u64,
        /// Units of work in all.
        total: u64,
        /// Whether it is over.
        is_over: bool,
    },
    /// What the weights after `step` steps did with each held-out prompt.
    Outcomes {
        /// The arm.
        address: Address,
        /// Steps since the arm began.
        step: u64,
        /// One a prompt.
        outcomes: Arc<Vec<PromptOutcome>>,
    },
    /// What came of a suite of the evaluation after `step` steps.
    Suite {
        /// The arm.
        address: Address,
        /// Steps since the arm began.
        step: u64,
        /// What came of it.
        result: Box<SuiteResult>,
    },
    /// Groups or rows that were not used.
    Drops {
        /// Of what.
        address: Address,
        /// Why.
        reason: String,
        /// Which of the counts for this reason, from 0: the portion of a dataset.
        part: u64,
        /// How many.
        count: u64,
    },
    /// Weights were written.
    Checkpoint {
        /// Of which arm.
        address: Address,
        /// Steps since it began.
        step: u64,
        /// Where.
        path: PathBuf,
        /// What stands beside them.
        manifest: serde_json::Value,
    },
    /// An arm's part of the final table.
    Summary {
        /// The arm.
        address: Address,
        /// As in `summary.json`.
        summary: serde_json::Value,
    },
}

impl Record {
    /// An event of one place.
    pub fn event(address: &Address, level: EventLevel, actor: &'static str, message: String) -> Self {
        Record::Event { address: Some(address.clone()), level, actor, message }
    }
}

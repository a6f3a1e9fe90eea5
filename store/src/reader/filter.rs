//! Which records to read.

use std::ops::RangeInclusive;

use rusqlite::types::Value;

/// Which metrics to read: those that meet all conditions. The default is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MetricFilter<'a> {
    /// Of this series only.
    pub series: Option<&'a str>,
    /// Of this name only.
    pub name: Option<&'a str>,
    /// Of these steps only.
    pub steps: Option<RangeInclusive<u64>>,
}

/// Which samples to read: those that meet all conditions. The default is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SampleFilter<'a> {
    /// Of this round only.
    pub round: Option<u64>,
    /// Of this stage only.
    pub stage: Option<&'a str>,
    /// Of this prompt only.
    pub prompt_id: Option<u64>,
    /// Only those of the evaluation of this step. Without it, samples of training and answers of suites are both read.
    pub evaluation: Option<u64>,
}

/// Conditions of a query and the values in them.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    sql: Vec<String>,
    pub values: Vec<Value>,
}

impl Conditions {
    /// Adds `condition`, such as "step >=", with its value.
    fn add(&mut self, condition: &str, value: impl Into<Value>) {
        self.values.push(value.into());
        self.sql.push(format!("{condition} ?{}", self.values.len()));
    }

    /// A clause for the query.
    pub(super) fn clause(&self) -> String {
        if self.sql.is_empty() { String::new() } else { format!("WHERE {}", self.sql.join(" AND ")) }
    }
}

impl MetricFilter<'_> {
    pub(super) fn conditions(&self) -> Conditions {
        let mut conditions = Conditions::default();
        if let Some(series) = self.series {
            conditions.add("series =", series.to_owned());
        }
        if let Some(name) = self.name {
            conditions.add("name =", name.to_owned());
        }
        if let Some(steps) = &self.steps {
            // SQLite's integers have a sign. No run takes 2^63 steps.
            let signed = |step: u64| i64::try_from(step).unwrap_or(i64::MAX);
            conditions.add("step >=", signed(*steps.start()));
            conditions.add("step <=", signed(*steps.end()));
        }
        conditions
    }
}

impl SampleFilter<'_> {
    pub(super) fn conditions(&self) -> Conditions {
        let mut conditions = Conditions::default();
        if let Some(round) = self.round {
            conditions.add("round =", round.cast_signed());
        }
        if let Some(stage) = self.stage {
            conditions.add("stage =", stage.to_owned());
        }
        if let Some(prompt_id) = self.prompt_id {
            conditions.add("prompt_id =", prompt_id.cast_signed());
        }
        if let Some(step) = self.evaluation {
            conditions.add("evaluation =", step.cast_signed());
        }
        conditions
    }
}

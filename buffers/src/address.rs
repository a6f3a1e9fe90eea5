//! Where a piece of work belongs.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The place of a piece of work in a run. Groups, trees, reports and records carry one. So whoever has an item knows
/// what it is part of.
///
/// Clones are cheap: the names are shared. The default has empty names and belongs to no run.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// The arm's name.
    pub arm: Arc<str>,
    /// The arm's seed.
    pub seed: u64,
    /// The round, from 0.
    pub round: u64,
    /// The stage's name.
    pub stage: Arc<str>,
}

impl Address {
    /// The place of this stage in this round of an arm.
    pub fn new(arm: impl Into<Arc<str>>, seed: u64, round: u64, stage: impl Into<Arc<str>>) -> Self {
        Address { arm: arm.into(), seed, round, stage: stage.into() }
    }
}

impl fmt::Display for Address {
    /// `ARM/SEED, round N, STAGE`, with rounds from 1 as people count.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { arm, seed, round, stage } = self;
        write!(f, "{arm}/{seed}, round {}, {stage}", round + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_as_people_count_and_comes_back_from_json() {
        let address = Address::new("rs-dpo", 17, 1, "dpo");
        assert_eq!(address.to_string(), "rs-dpo/17, round 2, dpo");
        let written = serde_json::to_string(&address).expect("it serialises");
        assert_eq!(written, r#"{"arm":"rs-dpo","seed":17,"round":1,"stage":"dpo"}"#);
        assert_eq!(serde_json::from_str::<Address>(&written).expect("it reads"), address);
    }
}

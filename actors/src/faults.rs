//! Faults on purpose: an actor that panics at a given unit of its work, to see what the others do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::role::ActorRole;

/// An actor panics when it begins its unit of work number `at` (from 1), and at each of the `repeats` units that
/// follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Who.
    pub role: ActorRole,
    /// When first.
    pub at: u64,
    /// How often again.
    pub repeats: u64,
}

/// The faults of a run, with the count of each actor's work, which survives its restarts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    planned: Arc<Vec<Fault>>,
    begun: Arc<Mutex<BTreeMap<ActorRole, u64>>>,
}

impl Faults {
    pub fn new(planned: Vec<Fault>) -> Self {
        Faults { planned: Arc::new(planned), begun: Arc::default() }
    }

    /// Called by an actor before each unit of its work.
    ///
    /// # Panics
    /// If a fault is planned here.
    pub fn begin(&self, role: ActorRole) {
        if self.planned.is_empty() {
            return;
        }
        let count = {
            let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
            let count = begun.entry(role).or_default();
            *count += 1;
            *count
        };
        for fault in self.planned.iter() {
            if fault.role == role && (fault.at..=fault.at + fault.repeats).contains(&count) {
                panic!("planned fault of the {} at unit {count}", role.as_str());
            }
        }
    }
}

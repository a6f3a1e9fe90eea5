//! What a scorer that waits for others shares with whoever waits for the scorer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long anybody sleeps before looking whether to stop.
const SLICE: Duration = Duration::from_millis(25);

/// Ends the waiting from outside, and shows that there is progress. All clones are one.
#[derive(Debug, Clone, Default)]
pub struct Watch(Arc<State>);

#[derive(Debug, Default)]
struct State {
    stopped: AtomicBool,
    activity: AtomicU64,
}

impl Watch {
    /// Asks the scorer to give up what it waits for. Its completions have no score then.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Release);
    }

    /// True from [`Watch::stop`] on.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Acquire)
    }

    /// How many answers and failures have come, so that a scorer that waits can be told from one that is stuck.
    pub fn activity(&self) -> u64 {
        self.0.activity.load(Ordering::Relaxed)
    }

    pub(crate) fn tick(&self) {
        self.0.activity.fetch_add(1, Ordering::Relaxed);
    }

    /// Looks for something until it is there, the deadline has passed, or the scorer is to stop. `look` waits for
    /// at most as long as it is told.
    pub(crate) fn wait<T>(
        &self,
        deadline: Instant,
        mut look: impl FnMut(Duration) -> Option<T>,
    ) -> Result<T, Waited> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(found) = look(left.min(SLICE)) {
                return Ok(found);
            }
            if self.is_stopped() {
                return Err(Waited::Stopped);
            }
            if left.is_zero() {
                return Err(Waited::TooLong);
            }
        }
    }

    /// Sleeps until then, or until the scorer is to stop.
    pub(crate) fn sleep_until(&self, then: Instant) -> Result<(), Waited> {
        let slept = self.wait(then, |slice| -> Option<()> {
            std::thread::sleep(slice);
            None
        });
        match slept {
            Err(Waited::Stopped) => Err(Waited::Stopped),
            _ => Ok(()),
        }
    }
}

/// Why nothing came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    /// The deadline has passed.
    TooLong,
    /// [`Watch::stop`] was called.
    Stopped,
}

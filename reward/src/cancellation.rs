//! What a scorer that waits for others shares with whoever waits for the scorer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long anybody sleeps before looking whether to stop.
const SLICE: Duration = Duration::from_millis(25);

/// Ends the waiting from outside, and shows that there is progress. All clones are one.
#[derive(Debug, Clone, Default)]
pub struct CancellationToken(Arc<State>);

#[derive(Debug, Default)]
struct State {
    cancelled: AtomicBool,
    activity: AtomicU64,
}

impl CancellationToken {
    /// Asks the scorer to give up what it waits for. Its completions have no score then.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
    }

    /// True from [`CancellationToken::cancel`] on.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
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
    ) -> Result<T, WaitError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(found) = look(left.min(SLICE)) {
                return Ok(found);
            }
            if self.is_cancelled() {
                return Err(WaitError::Cancelled);
            }
            if left.is_zero() {
                return Err(WaitError::TimedOut);
            }
        }
    }

    /// Sleeps until then, or until the scorer is to stop.
    pub(crate) fn sleep_until(&self, then: Instant) -> Result<(), WaitError> {
        let slept = self.wait(then, |slice| -> Option<()> {
            std::thread::sleep(slice);
            None
        });
        match slept {
            Err(WaitError::Cancelled) => Err(WaitError::Cancelled),
            _ => Ok(()),
        }
    }
}

/// Why nothing came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitError {
    /// The deadline has passed.
    TimedOut,
    /// [`CancellationToken::cancel`] was called.
    Cancelled,
}

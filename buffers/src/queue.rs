//! Bounded queues between the actors.
//!
//! A queue is a crossbeam channel with two additions. First, an item that a worker has taken stays leased to it until
//! it says [`Queue::done`]. So the item outlives a worker that dies over it. Second, every item is counted in and out.
//! So nothing can be lost without showing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, SendTimeoutError, Sender, TrySendError, bounded};

/// How often a blocked producer checks whether the queue was closed.
const POLL: Duration = Duration::from_millis(50);

/// Why an item was not queued; it comes back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushError<T> {
    /// There was no room within the time allowed.
    #[error("the queue was full for the whole time allowed")]
    Full(T),
    /// The queue is closed: the run is ending.
    #[error("the queue is closed")]
    Closed(T),
}

/// An item in a worker's hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased<T> {
    /// The item.
    pub item: T,
    /// How often it has been handed out, this time included. More than 1 means that a worker died
    /// over it.
    pub attempt: u32,
}

/// What has gone through a queue. `pushed` equals the sum of `done`, `dropped`, what is leased and what is waiting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Items accepted.
    pub pushed: u64,
    /// Items that were worked off.
    pub done: u64,
    /// Items given up, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Items in workers' hands.
    pub leased: u64,
    /// Items waiting.
    pub waiting: u64,
}

/// A bounded queue of experience; clones share it.
#[derive(Debug)]
pub struct Queue<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Queue { shared: Arc::clone(&self.shared) }
    }
}

#[derive(Debug)]
struct Shared<T> {
    name: &'static str,
    sender: Sender<T>,
    receiver: Receiver<T>,
    leases: Mutex<Leases<T>>,
    dropped: Mutex<BTreeMap<&'static str, u64>>,
    pushed: AtomicU64,
    done: AtomicU64,
    closed: AtomicBool,
}

/// What each worker that ever took an item has in hand. There are few workers, so looking through them is faster than
/// hashing their names.
#[derive(Debug)]
struct Leases<T>(Vec<(String, Option<Leased<T>>)>);

impl<T> Leases<T> {
    fn of(&mut self, worker: &str) -> Option<&mut Option<Leased<T>>> {
        self.0.iter_mut().find(|(name, _)| name == worker).map(|(_, lease)| lease)
    }

    fn give(&mut self, worker: &str, lease: Leased<T>) {
        match self.of(worker) {
            Some(slot) => *slot = Some(lease),
            None => self.0.push((worker.to_string(), Some(lease))),
        }
    }

    /// The worker's item, which it has no longer.
    fn end(&mut self, worker: &str) -> Option<Leased<T>> {
        self.of(worker)?.take()
    }
}

impl<T: Clone> Queue<T> {
    /// A queue that holds at most `capacity` items.
    ///
    /// # Panics
    /// If `capacity` is 0: a worker could then never find an item without waiting for its producer.
    pub fn bounded(name: &'static str, capacity: usize) -> Self {
        assert!(capacity > 0, "queue {name} needs room for at least one item");
        let (sender, receiver) = bounded(capacity);
        Queue {
            shared: Arc::new(Shared {
                name,
                sender,
                receiver,
                leases: Mutex::new(Leases(Vec::new())),
                dropped: Mutex::default(),
                pushed: AtomicU64::new(0),
                done: AtomicU64::new(0),
                closed: AtomicBool::new(false),
            }),
        }
    }

    /// The queue's name in metrics and messages.
    pub fn name(&self) -> &'static str {
        self.shared.name
    }

    /// Adds an item. Waits for room, for at most `patience`.
    ///
    /// # Errors
    /// With the item, if there was no room in time or the queue is or becomes closed.
    pub fn push(&self, item: T, patience: Duration) -> Result<(), PushError<T>> {
        if self.is_closed() {
            return Err(PushError::Closed(item));
        }
        let mut item = match self.shared.sender.try_send(item) {
            Ok(()) => {
                self.shared.pushed.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) => back,
        };
        let deadline = Instant::now() + patience;
        loop {
            if self.is_closed() {
                return Err(PushError::Closed(item));
            }
            let wait = POLL.min(deadline.saturating_duration_since(Instant::now()));
            match self.shared.sender.send_timeout(item, wait) {
                Ok(()) => {
                    self.shared.pushed.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Err(SendTimeoutError::Timeout(back)) if Instant::now() >= deadline => {
                    return Err(PushError::Full(back));
                }
                Err(SendTimeoutError::Timeout(back) | SendTimeoutError::Disconnected(back)) => item = back,
            }
        }
    }

    /// Leases the next item to `worker`. Waits for an item, for at most `patience`. A worker that died with a lease
    /// gets that item again.
    pub fn take(&self, worker: &str, patience: Duration) -> Option<Leased<T>> {
        if let Some(Some(lease)) = lock(&self.shared.leases).of(worker) {
            lease.attempt += 1;
            return Some(lease.clone());
        }
        let receiver = &self.shared.receiver;
        let item = receiver.try_recv().or_else(|_| receiver.recv_timeout(patience)).ok()?;
        let lease = Leased { item, attempt: 1 };
        lock(&self.shared.leases).give(worker, lease.clone());
        Some(lease)
    }

    /// Ends the worker's lease: its item was worked off.
    pub fn done(&self, worker: &str) {
        if lock(&self.shared.leases).end(worker).is_some() {
            self.shared.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends the worker's lease: its item is given up, and counted under `reason`.
    pub fn drop_leased(&self, worker: &str, reason: &'static str) {
        if lock(&self.shared.leases).end(worker).is_some() {
            *lock(&self.shared.dropped).entry(reason).or_default() += 1;
        }
    }

    /// Refuses items from now on. What waits can still be taken.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
    }

    /// True once [`Queue::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    /// Items waiting.
    pub fn len(&self) -> usize {
        self.shared.receiver.len()
    }

    /// True if no item waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The account. Exact when nobody is pushing or taking meanwhile.
    pub fn stats(&self) -> QueueStats {
        QueueStats {
            pushed: self.shared.pushed.load(Ordering::Relaxed),
            done: self.shared.done.load(Ordering::Relaxed),
            dropped: lock(&self.shared.dropped).clone(),
            leased: lock(&self.shared.leases).0.iter().filter(|(_, lease)| lease.is_some()).count() as u64,
            waiting: self.len() as u64,
        }
    }
}

/// The maps stay whole whatever a holder of the lock did: each change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn a_full_queue_gives_the_item_back() {
        let queue = Queue::bounded("test", 2);
        assert_eq!(queue.push(1, NOW), Ok(()));
        assert_eq!(queue.push(2, NOW), Ok(()));
        assert_eq!(queue.push(3, NOW), Err(PushError::Full(3)));
        queue.close();
        assert_eq!(queue.push(4, NOW), Err(PushError::Closed(4)));
        assert_eq!(queue.take("a", NOW), Some(Leased { item: 1, attempt: 1 }));
    }

    #[test]
    fn closing_wakes_a_blocked_producer() {
        let queue = Queue::bounded("test", 1);
        queue.push(1, NOW).expect("there is room");
        let blocked = queue.clone();
        let producer = std::thread::spawn(move || blocked.push(2, Duration::from_secs(600)));
        queue.close();
        assert_eq!(producer.join().expect("it returns"), Err(PushError::Closed(2)));
    }

    #[test]
    fn an_item_outlives_the_worker_that_dies_over_it() {
        let queue = Queue::bounded("test", 4);
        queue.push("first", NOW).expect("there is room");
        queue.push("second", NOW).expect("there is room");
        let worker = queue.clone();
        let died = std::thread::spawn(move || {
            worker.take("a", NOW);
            panic!("the worker dies");
        });
        assert!(died.join().is_err());
        assert_eq!(queue.take("b", NOW).map(|lease| lease.item), Some("second"));
        assert_eq!(queue.take("a", NOW), Some(Leased { item: "first", attempt: 2 }));
        queue.drop_leased("a", "worker_died");
        queue.done("b");
        let stats = queue.stats();
        assert_eq!((stats.pushed, stats.done, stats.leased), (2, 1, 0));
        assert_eq!(stats.dropped, BTreeMap::from([("worker_died", 1)]));
    }

    proptest! {
        /// Whatever is done in whatever order, every accepted item is accounted for.
        #[test]
        fn the_account_always_balances(steps in proptest::collection::vec((0u8..5, 0usize..3), 0..80)) {
            let queue = Queue::bounded("test", 5);
            for (step, worker) in steps {
                let worker = ["a", "b", "c"][worker];
                match step {
                    0 | 1 => drop(queue.push(0, NOW)),
                    2 => drop(queue.take(worker, NOW)),
                    3 => queue.done(worker),
                    _ => queue.drop_leased(worker, "test"),
                }
                let stats = queue.stats();
                let dropped: u64 = stats.dropped.values().sum();
                prop_assert_eq!(stats.pushed, stats.done + dropped + stats.leased + stats.waiting);
            }
        }
    }
}

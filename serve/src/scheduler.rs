//! Slots for a bounded number of sequences, and the engine on a thread of its own.
//!
//! A request takes a slot for each of its sequences before it is tokenised, and gives them back when it ends. So
//! neither the queue nor the answers can outgrow their bounds. A client's channel has room for all the tokens that it
//! may get. So the engine never waits for a slow reader.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use arriero_policy::generate::{DrawnToken, Engine, Request};
use crossbeam::channel::{Receiver, Sender, bounded};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot};

use crate::error::ApiError;

/// What the engine says: a token of the prompt with this index, or what went wrong.
pub(crate) type TokenEvent = Result<(usize, DrawnToken), String>;

/// A request on its way to the engine.
struct QueuedRequest {
    request: Request,
    prompt: usize,
    events: mpsc::Sender<TokenEvent>,
    slots: OwnedSemaphorePermit,
}

/// A request in the engine.
struct ActiveRequest {
    prompt: usize,
    events: mpsc::Sender<TokenEvent>,
    slots: Option<OwnedSemaphorePermit>,
}

/// Admits requests and hands them to the engine.
#[derive(Debug)]
pub(crate) struct Scheduler {
    queue: Sender<QueuedRequest>,
    slots: Arc<Semaphore>,
    slot_count: usize,
}

impl Scheduler {
    /// Starts the engine's thread. The thread ends when the scheduler is gone and nobody waits for tokens. The receiver
    /// hears of its end.
    pub fn start(
        engine: Engine,
        slot_count: usize,
    ) -> std::io::Result<(Self, JoinHandle<()>, oneshot::Receiver<()>)> {
        let (queue, queued) = bounded(slot_count);
        let (ending, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("engine".to_string()).spawn(move || {
            // Dropped at the end, and by a panic.
            let _ending: oneshot::Sender<()> = ending;
            run_engine(engine, &queued);
        })?;
        Ok((Scheduler { queue, slots: Arc::new(Semaphore::new(slot_count)), slot_count }, thread, ended))
    }

    /// Sequences that have a slot now.
    pub fn slots_in_use(&self) -> usize {
        self.slot_count - self.slots.available_permits()
    }

    /// Takes slots.
    pub fn reserve(&self, sequences: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let wanted = u32::try_from(sequences).unwrap_or(u32::MAX);
        Arc::clone(&self.slots).try_acquire_many_owned(wanted).map_err(|error| match error {
            TryAcquireError::NoPermits => ApiError::queue_full(format!(
                "{} of this server's {} slots are taken, and the request needs {sequences}; try again later",
                self.slots_in_use(),
                self.slot_count
            )),
            TryAcquireError::Closed => ApiError::internal("the server is ending"),
        })
    }

    /// Hands requests to the engine. Whoever drops the receiver cancels them.
    pub fn submit(
        &self,
        requests: Vec<Request>,
        mut slots: OwnedSemaphorePermit,
    ) -> Result<mpsc::Receiver<TokenEvent>, ApiError> {
        let most = |request: &Request| request.samples.saturating_mul(request.sampling.max_new_tokens);
        // One more each for an error.
        let room = requests.iter().map(|request| most(request).saturating_add(1));
        let room = room.fold(0, usize::saturating_add).min(Semaphore::MAX_PERMITS);
        let (events, receiver) = mpsc::channel(room.max(1));
        for (prompt, request) in requests.into_iter().enumerate() {
            let slots = slots.split(request.samples).ok_or_else(|| ApiError::internal("too few slots"))?;
            let queued = QueuedRequest { request, prompt, events: events.clone(), slots };
            self.queue.try_send(queued).map_err(|_| ApiError::internal("the engine is gone"))?;
        }
        Ok(receiver)
    }
}

/// The engine's thread.
fn run_engine(mut engine: Engine, queued: &Receiver<QueuedRequest>) {
    let mut active: HashMap<u64, ActiveRequest> = HashMap::new();
    loop {
        if engine.is_idle() {
            let Ok(request) = queued.recv() else { return };
            admit(&mut engine, &mut active, request);
        }
        while let Ok(request) = queued.try_recv() {
            admit(&mut engine, &mut active, request);
        }
        active.retain(|&id, request| {
            let is_cancelled = request.events.is_closed();
            if is_cancelled {
                engine.cancel(id);
            }
            !is_cancelled
        });
        match engine.step() {
            Ok(answers) => {
                // Free before its last token is told: a client may come back at once.
                for answer in &answers {
                    if let Some(request) = active.get_mut(&answer.request_id) {
                        request.slots = None;
                    }
                }
                for drawn in engine.take_drawn() {
                    if let Some(request) = active.get(&drawn.request_id) {
                        // Closed channels are found before the next step.
                        let _ = request.events.try_send(Ok((request.prompt, drawn)));
                    }
                }
                for answer in answers {
                    active.remove(&answer.request_id);
                }
            }
            Err(error) => {
                for (id, request) in active.drain() {
                    engine.cancel(id);
                    let _ = request.events.try_send(Err(error.to_string()));
                }
            }
        }
    }
}

fn admit(engine: &mut Engine, active: &mut HashMap<u64, ActiveRequest>, queued: QueuedRequest) {
    let QueuedRequest { request, prompt, events, slots } = queued;
    match engine.submit(request) {
        Ok(id) => {
            active.insert(id, ActiveRequest { prompt, events, slots: Some(slots) });
        }
        Err(error) => {
            let _ = events.try_send(Err(error.to_string()));
        }
    }
}

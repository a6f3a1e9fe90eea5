//! Places for a bounded number of sequences, and the engine on a thread of its own.
//!
//! A request takes a place for each of its sequences before it is tokenised, and gives them back when
//! it ends, so that neither the queue nor the answers can outgrow their bounds. A client's channel has
//! room for all the tokens that it may get: the engine never waits for a slow reader.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use arriero_policy::generate::{DrawnToken, Engine, Request};
use crossbeam::channel::{Receiver, Sender, bounded};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot};

use crate::error::Refusal;

/// What the engine tells: a token of the prompt with this index, or what went wrong.
pub(crate) type Told = Result<(usize, DrawnToken), String>;

/// A request on its way to the engine.
struct Job {
    request: Request,
    prompt: usize,
    told: mpsc::Sender<Told>,
    places: OwnedSemaphorePermit,
}

/// A request in the engine.
struct Guest {
    prompt: usize,
    told: mpsc::Sender<Told>,
    places: Option<OwnedSemaphorePermit>,
}

/// The way to the engine.
#[derive(Debug)]
pub(crate) struct House {
    jobs: Sender<Job>,
    places: Arc<Semaphore>,
    size: usize,
}

impl House {
    /// Starts the engine's thread. It ends when the house is gone and nobody waits for tokens; the
    /// receiver hears of its end.
    pub fn open(
        engine: Engine,
        size: usize,
    ) -> std::io::Result<(Self, JoinHandle<()>, oneshot::Receiver<()>)> {
        let (jobs, arriving) = bounded(size);
        let (ending, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("engine".to_string()).spawn(move || {
            // Dropped at the end, and by a panic.
            let _ending: oneshot::Sender<()> = ending;
            work(engine, &arriving);
        })?;
        Ok((House { jobs, places: Arc::new(Semaphore::new(size)), size }, thread, ended))
    }

    /// Sequences that have a place now.
    pub fn occupied(&self) -> usize {
        self.size - self.places.available_permits()
    }

    /// Takes places.
    pub fn reserve(&self, sequences: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let wanted = u32::try_from(sequences).unwrap_or(u32::MAX);
        Arc::clone(&self.places).try_acquire_many_owned(wanted).map_err(|error| match error {
            TryAcquireError::NoPermits => Refusal::full(format!(
                "{} of this server's {} places are taken, and the request needs {sequences}; try again later",
                self.occupied(),
                self.size
            )),
            TryAcquireError::Closed => Refusal::broken("the server is ending"),
        })
    }

    /// Hands requests to the engine. Whoever drops the receiver cancels them.
    pub fn submit(
        &self,
        requests: Vec<Request>,
        mut places: OwnedSemaphorePermit,
    ) -> Result<mpsc::Receiver<Told>, Refusal> {
        let most = |request: &Request| request.samples.saturating_mul(request.sampling.max_new_tokens);
        // One more each for an error.
        let room = requests.iter().map(|request| most(request).saturating_add(1));
        let room = room.fold(0, usize::saturating_add).min(Semaphore::MAX_PERMITS);
        let (told, receiver) = mpsc::channel(room.max(1));
        for (prompt, request) in requests.into_iter().enumerate() {
            let places = places.split(request.samples).ok_or_else(|| Refusal::broken("too few places"))?;
            let job = Job { request, prompt, told: told.clone(), places };
            self.jobs.try_send(job).map_err(|_| Refusal::broken("the engine is gone"))?;
        }
        Ok(receiver)
    }
}

/// The engine's thread.
fn work(mut engine: Engine, arriving: &Receiver<Job>) {
    let mut guests: HashMap<u64, Guest> = HashMap::new();
    loop {
        if engine.is_idle() {
            let Ok(job) = arriving.recv() else { return };
            welcome(&mut engine, &mut guests, job);
        }
        while let Ok(job) = arriving.try_recv() {
            welcome(&mut engine, &mut guests, job);
        }
        guests.retain(|&id, guest| {
            let left = guest.told.is_closed();
            if left {
                engine.cancel(id);
            }
            !left
        });
        match engine.step() {
            Ok(answers) => {
                // Free before its last token is told: a client may come back at once.
                for answer in &answers {
                    if let Some(guest) = guests.get_mut(&answer.request_id) {
                        guest.places = None;
                    }
                }
                for drawn in engine.take_drawn() {
                    if let Some(guest) = guests.get(&drawn.request_id) {
                        // Closed channels are found before the next step.
                        let _ = guest.told.try_send(Ok((guest.prompt, drawn)));
                    }
                }
                for answer in answers {
                    guests.remove(&answer.request_id);
                }
            }
            Err(error) => {
                for (id, guest) in guests.drain() {
                    engine.cancel(id);
                    let _ = guest.told.try_send(Err(error.to_string()));
                }
            }
        }
    }
}

fn welcome(engine: &mut Engine, guests: &mut HashMap<u64, Guest>, job: Job) {
    let Job { request, prompt, told, places } = job;
    match engine.submit(request) {
        Ok(id) => {
            guests.insert(id, Guest { prompt, told, places: Some(places) });
        }
        Err(error) => {
            let _ = told.try_send(Err(error.to_string()));
        }
    }
}

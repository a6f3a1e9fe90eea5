//! Immutable versioned weights: how the trainer's reach the generators.
//!
//! Messages carry a version number and no tensor; who needs the weights pulls them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::Tensor;

use crate::checkpoint::{Weights, handles};
use crate::config::ModelConfig;
use crate::device::Compute;
use crate::error::{PolicyError, Result};
use crate::model::Model;

/// Weights of one version.
#[derive(Debug)]
pub struct Snapshot {
    version: u32,
    config: ModelConfig,
    compute: Compute,
    // Tensors are `Send` and not `Sync`: the lock is held while handles are copied, never while
    // anything is computed. Nobody writes to the storage.
    weights: Mutex<Weights>,
}

impl Snapshot {
    /// Wraps weights that nobody will write to again.
    pub fn new(version: u32, config: ModelConfig, compute: Compute, weights: Weights) -> Arc<Self> {
        Arc::new(Snapshot { version, config, compute, weights: Mutex::new(weights) })
    }

    /// The number of optimiser steps behind these weights, as the trainer counts them.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The same weights for another device or precision; they share storage where nothing differs.
    pub fn in_precision(self: &Arc<Self>, compute: Compute) -> Arc<Self> {
        if self.compute == compute {
            return Arc::clone(self);
        }
        let place = |(name, tensor): (String, Tensor)| {
            let placed = compute.place(&name, &tensor);
            (name, placed)
        };
        let weights = self.weights().into_iter().map(place).collect();
        Snapshot::new(self.version, self.config.clone(), compute, weights)
    }

    /// A model that shares the snapshot's storage.
    ///
    /// # Errors
    /// If the weights do not fit the configuration.
    pub fn model(&self) -> Result<Model> {
        Model::new(&self.config, &self.weights(), self.compute)
    }

    /// Handles of the tensors.
    pub fn weights(&self) -> Weights {
        handles(&lock(&self.weights))
    }
}

/// Where snapshots are pulled from. The local one is a shared cell; one that reaches other hosts has
/// the same face.
pub trait WeightSource: Send + Sync {
    /// The snapshot of `version`.
    ///
    /// # Errors
    /// If another version is held.
    fn pull(&self, version: u32) -> Result<Arc<Snapshot>>;
}

/// The newest snapshot, shared within the process.
#[derive(Debug)]
pub struct WeightCell(Mutex<Arc<Snapshot>>);

impl WeightCell {
    /// A cell that holds `snapshot`.
    pub fn new(snapshot: Arc<Snapshot>) -> Arc<Self> {
        Arc::new(WeightCell(Mutex::new(snapshot)))
    }

    /// The newest snapshot, whatever its version.
    pub fn newest(&self) -> Arc<Snapshot> {
        Arc::clone(&lock(&self.0))
    }

    /// Replaces the snapshot.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        *lock(&self.0) = snapshot;
    }
}

impl WeightSource for WeightCell {
    fn pull(&self, version: u32) -> Result<Arc<Snapshot>> {
        let held = Arc::clone(&lock(&self.0));
        if held.version() == version {
            Ok(held)
        } else {
            Err(PolicyError::WrongVersion { asked: version, held: held.version() })
        }
    }
}

/// A holder that panicked cannot have left a map of immutable handles half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! A run from its plan to its summary.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use arriero_policy::checkpoint::Checkpoint;
use arriero_policy::device::Compute;
use arriero_policy::snapshot::Snapshot;
use arriero_store::{ArmStore, RunDir, StoreError};
use metrics_exporter_prometheus::PrometheusBuilder;
use ractor::Actor;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::conductor::{Conductor, ConductorMessage, RunOutcome, RunParts};
use crate::error::RunError;
use crate::event::RunEvent;
use crate::faults::{Fault, Faults};
use crate::schedule::Outline;
use arriero_experiment::{Plan, Preflight, preflight};
use arriero_results::{RunSummary, Status};

/// How long the actors' threads may take to end after a run.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

/// What is not part of the experiment.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// The folder that holds the runs.
    pub runs: PathBuf,
    /// Where to serve metrics in Prometheus' text format.
    pub metrics: Option<SocketAddr>,
    /// Faults to inject.
    pub faults: Vec<Fault>,
    /// End the run cleanly on ctrl-c.
    pub handle_ctrl_c: bool,
}

/// Runs an experiment to its end. Everything that can be wrong with the input is found before
/// weights are loaded or anything is written.
///
/// # Errors
/// See [`RunError`]. The store holds what had happened by then.
pub fn run(
    plan: Plan,
    options: RunOptions,
    observer: impl Fn(RunEvent) + Send + Sync + 'static,
) -> Result<RunSummary, RunError> {
    let began = Instant::now();
    let Preflight { model, tokenizer, computes, train, held_out, rows, notes, needed_bytes } =
        preflight(&plan, &options.runs)?;
    if let Some(address) = options.metrics {
        serve_metrics(address)?;
    }

    let mut checkpoint = Checkpoint::open(&plan.model.path)?;
    if let Some(folder) = &plan.model.adapter {
        checkpoint = checkpoint.with_adapter(folder)?;
    }
    let masters = Snapshot::new(0, model.clone(), Compute::CPU_F32, checkpoint.weights);
    let initial = masters.in_precision(computes.learner);

    let directory = RunDir::create(&options.runs, &plan.name, &plan.resolved, needed_bytes)?;
    let stores = match arm_stores(&directory, &plan) {
        Ok(stores) => stores,
        Err(error) => {
            // Nothing has run: the name stays free for the next try. The first error is the one to report.
            let _ = directory.remove();
            return Err(error.into());
        }
    };
    let outline = match Outline::of(&plan, &rows, train.len() as u64, held_out.len() as u64, notes) {
        Ok(outline) => outline,
        Err(cause) => {
            let _ = directory.remove();
            return Err(RunError::Failed(cause));
        }
    };
    observer(RunEvent::Started {
        directory: directory.path().display().to_string(),
        description: format!(
            "{}, {computes}{}",
            plan.model.path.display(),
            arriero_experiment::devices::unused(&plan.devices)
        ),
    });
    let outcome = Arc::default();
    let parts = RunParts {
        plan: Arc::new(plan),
        outline,
        computes,
        masters,
        initial,
        model: Arc::new(model),
        tokenizer,
        train,
        held_out: Arc::new(held_out),
        stores,
        faults: Faults::new(options.faults),
        observer: Arc::new(observer),
        began,
        outcome: Arc::clone(&outcome),
    };
    if let Err(error) = conduct(parts, options.handle_ctrl_c) {
        // No actor has worked: the name stays free for the next try.
        let _ = directory.remove();
        return Err(error);
    }

    let outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(RunOutcome { summary, unrecorded }) = outcome else {
        return Err(RunError::Failed("the conductor died; its panic message stands above".to_string()));
    };
    let value = serde_json::to_value(&summary).map_err(|error| RunError::Failed(error.to_string()))?;
    let name = &summary.name;
    directory.write_summary(&value).map_err(|error| {
        RunError::Failed(format!("run {name}: the summary could not be written: {error}"))
    })?;
    match (&summary.cause, unrecorded) {
        (Some(cause), _) if summary.status == Status::Failed => {
            Err(RunError::Failed(format!("run {}: {cause}", summary.name)))
        }
        (_, Some(cause)) => Err(RunError::Failed(format!(
            "run {}: the last records could not be written: {cause}",
            summary.name
        ))),
        _ => Ok(summary),
    }
}

/// Starts the conductor and waits until it is gone.
fn conduct(parts: RunParts, handle_ctrl_c: bool) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| RunError::Runtime(error.to_string()))?;
    let result = runtime.block_on(async {
        // Listened to from the start. What comes before the conductor is there waits for it.
        let mut interrupts = if handle_ctrl_c { Some(Interrupts::listen()?) } else { None };
        let (conductor, finished) = Conductor::spawn(None, Conductor, parts)
            .await
            .map_err(|error| RunError::Failed(format!("the actors could not start: {error}")))?;
        if let Some(mut interrupts) = interrupts.take() {
            tokio::spawn(async move {
                interrupts.next().await;
                let _ = conductor.cast(ConductorMessage::Interrupt);
                interrupts.next().await;
                // At once, without the exit handlers of libraries: they would free what threads that still compute use.
                signal_hook::low_level::exit(130);
            });
        }
        let _ = finished.await;
        Ok(())
    });
    runtime.shutdown_timeout(LEAVE_PATIENCE);
    result
}

/// Ctrl-c, and the request to end that service managers send.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn listen() -> Result<Self, RunError> {
        let listen = |kind| signal(kind).map_err(|error| RunError::Runtime(error.to_string()));
        Ok(Interrupts {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn arm_stores(directory: &RunDir, plan: &Plan) -> Result<BTreeMap<String, ArmStore>, StoreError> {
    plan.arms.iter().map(|arm| Ok((arm.name.clone(), directory.arm(&arm.name, plan.seed)?))).collect()
}

fn serve_metrics(address: SocketAddr) -> Result<(), RunError> {
    PrometheusBuilder::new()
        .with_http_listener(address)
        .install()
        .map_err(|error| RunError::Metrics { address, cause: error.to_string() })
}

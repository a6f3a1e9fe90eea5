//! Sockets, signals, the end.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arriero_policy::generate::Engine;
use arriero_policy::model::Model;
use arriero_policy::tokenizer::Tokenizer;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use crate::error::ServeError;
use crate::request::Limits;
use crate::response::now;
use crate::routes::{self, AppState};
use crate::scheduler::Scheduler;

/// Threads for HTTP, JSON and tokenising: the engine wants the cores.
const HTTP_THREADS: usize = 2;

/// How long the end waits for threads that tokenise.
const RUNTIME_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Options of a server.
#[derive(Debug, Clone, PartialEq)]
pub struct ServeConfig {
    /// A name or an IP address.
    pub host: String,
    /// 0 picks a free one.
    pub port: u16,
    /// What clients call the model.
    pub model_name: String,
    /// Sequences decoded at once.
    pub batch: usize,
    /// Sequences that may wait beyond these; a request that finds no place gets 429.
    pub queue: usize,
    /// Tokens of an answer where the request names none.
    pub max_tokens: usize,
    /// How long answers may go on after the server was told to end.
    pub grace: Duration,
    /// End on ctrl-c and SIGTERM.
    pub handle_signals: bool,
}

impl ServeConfig {
    /// For a program that serves itself: a free port of this machine, and no signals handled. Decodes 8 sequences at
    /// once, 64 may wait; 64 tokens where a request names none; a minute of grace.
    pub fn local(model_name: &str) -> Self {
        ServeConfig {
            host: "127.0.0.1".to_string(),
            port: 0,
            model_name: model_name.to_string(),
            batch: 8,
            queue: 64,
            max_tokens: 64,
            grace: Duration::from_secs(60),
            handle_signals: false,
        }
    }
}

/// Tells a server to end.
#[derive(Debug, Clone)]
pub struct ShutdownHandle(mpsc::Sender<()>);

impl ShutdownHandle {
    /// The first call lets answers in progress finish, the second one does not.
    pub fn shut_down(&self) {
        // A full channel has been told twice.
        let _ = self.0.try_send(());
    }
}

/// A server that has its address and waits to run.
#[derive(Debug)]
pub struct Server {
    runtime: Runtime,
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<AppState>,
    engine: JoinHandle<()>,
    engine_ended: oneshot::Receiver<()>,
    shutdown_handle: ShutdownHandle,
    stops: mpsc::Receiver<()>,
    grace: Duration,
    handle_signals: bool,
}

impl Server {
    /// Takes the address and starts the engine's thread.
    ///
    /// # Errors
    /// If the address cannot be had, or the system refuses a thread.
    pub fn bind(config: ServeConfig, model: Model, tokenizer: Tokenizer) -> Result<Self, ServeError> {
        let failed =
            |cause| ServeError::Address { address: format!("{}:{}", config.host, config.port), cause };
        let listener = TcpListener::bind((config.host.as_str(), config.port)).map_err(failed)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(HTTP_THREADS).enable_all().build()?;
        let (context, vocabulary) = (model.config().max_positions, model.config().vocab_size);
        let slots = config.batch.saturating_add(config.queue);
        let engine = Engine::new(model, 0, tokenizer.clone(), config.batch);
        let (scheduler, engine, engine_ended) = Scheduler::start(engine, slots)?;
        let limits = Limits { model: config.model_name, vocabulary, batch: config.batch, slots };
        let app =
            AppState { scheduler, tokenizer, limits, context, max_tokens: config.max_tokens, began: now() };
        let (shutdown_handle, stops) = mpsc::channel(2);
        Ok(Server {
            runtime,
            listener,
            address,
            app: Arc::new(app),
            engine,
            engine_ended,
            shutdown_handle: ShutdownHandle(shutdown_handle),
            stops,
            grace: config.grace,
            handle_signals: config.handle_signals,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle to end it with.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        self.shutdown_handle.clone()
    }

    /// Answers requests until it is told to end.
    ///
    /// # Errors
    /// If the system refuses sockets or signals, or the engine's thread dies.
    pub fn run(self) -> Result<(), ServeError> {
        let Server { runtime, listener, app, engine, engine_ended, shutdown_handle, mut stops, .. } = self;
        let router = routes::router(app);
        let served = runtime.block_on(async {
            if self.handle_signals {
                signals(shutdown_handle.clone())?;
            }
            let (begin, begun) = oneshot::channel::<()>();
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let serving = axum::serve(listener, router).with_graceful_shutdown(async {
                // Dropped or sent: the end has begun.
                let _ = begun.await;
            });
            let mut serving = Box::pin(serving.into_future());
            tokio::select! {
                result = &mut serving => return Ok(result?),
                _ = engine_ended => return Ok(()),
                _ = stops.recv() => drop(begin),
            }
            tokio::select! {
                result = &mut serving => Ok(result?),
                _ = stops.recv() => Ok(()),
                () = tokio::time::sleep(self.grace) => Ok(()),
            }
        });
        // Connections end with the runtime, their requests with them, and then the engine.
        runtime.shutdown_timeout(RUNTIME_SHUTDOWN_TIMEOUT);
        let cause = |panic: Box<dyn std::any::Any + Send>| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
        };
        engine.join().map_err(|panic| ServeError::Engine { cause: cause(panic) })?;
        served
    }
}

/// Has signals stop the server.
fn signals(shutdown_handle: ShutdownHandle) -> std::io::Result<()> {
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::spawn(async move {
        loop {
            #[cfg(unix)]
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            #[cfg(not(unix))]
            let _ = tokio::signal::ctrl_c().await;
            shutdown_handle.shut_down();
        }
    });
    Ok(())
}

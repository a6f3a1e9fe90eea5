//! A server on a port of its own, and HTTP by hand. HTTP/1.0, so that an answer ends with its connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use arriero_policy::checkpoint::Checkpoint;
use arriero_policy::device::Compute;
use arriero_policy::model::Model;
use arriero_policy::tokenizer::Tokenizer;
use arriero_serve::{ServeConfig, ServeError, Server, ShutdownHandle};
use serde_json::Value;

pub fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny")
}

pub fn load(path: &Path) -> (Model, Tokenizer) {
    let Checkpoint { config, weights, tokenizer } = Checkpoint::open(path).expect("the fixture");
    (Model::new(&config, &weights, Compute::CPU_F32).expect("it fits"), tokenizer)
}

/// A server that runs until it is dropped.
pub struct TestServer {
    address: SocketAddr,
    shutdown_handle: ShutdownHandle,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl TestServer {
    /// The fixture, 8 sequences at once and 16 more waiting.
    pub fn start() -> Self {
        TestServer::of(&fixture(), 8, 16)
    }

    /// The fixture with a context so long that an answer in it takes minutes.
    pub fn start_long(batch: usize, queue: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for entry in std::fs::read_dir(fixture()).expect("the fixture") {
            let entry = entry.expect("an entry");
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a copy");
        }
        let config = folder.path().join("config.json");
        let text = std::fs::read_to_string(&config).expect("the configuration");
        let longer = text.replace("\"max_position_embeddings\": 256", "\"max_position_embeddings\": 200000");
        assert_ne!(longer, text);
        std::fs::write(&config, longer).expect("written");
        TestServer::of(folder.path(), batch, queue)
    }

    fn of(path: &Path, batch: usize, queue: usize) -> Self {
        let (model, tokenizer) = load(path);
        let config = ServeConfig { batch, queue, ..ServeConfig::local("tiny") };
        let server = Server::bind(config, model, tokenizer).expect("it starts");
        let (address, shutdown_handle) = (server.address(), server.shutdown_handle());
        TestServer { address, shutdown_handle, thread: Some(std::thread::spawn(|| server.run())) }
    }

    pub fn stop(&self) {
        self.shutdown_handle.shut_down();
    }

    /// Waits for its end.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic").expect("a good end");
        }
        assert!(TcpStream::connect(self.address).is_err(), "somebody still listens");
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.shutdown_handle.shut_down();
        self.shutdown_handle.shut_down();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends a request to `/v1/` and leaves the answer to be read.
pub fn send(server: &TestServer, method: &str, path: &str, body: &[u8]) -> TcpStream {
    send_to(server, method, &format!("/v1/{path}"), body)
}

fn send_to(server: &TestServer, method: &str, path: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit");
    let head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).expect("it is sent");
    stream
}

/// Status and body.
pub fn raw(server: &TestServer, method: &str, path: &str, body: &[u8]) -> (u16, String) {
    read(send(server, method, path, body))
}

/// Status and body of a path from the root.
pub fn get(server: &TestServer, path: &str) -> (u16, String) {
    read(send_to(server, "GET", path, b""))
}

fn read(mut stream: TcpStream) -> (u16, String) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), body.to_string())
}

/// Posts JSON and reads JSON.
pub fn post(server: &TestServer, path: &str, body: &Value) -> (u16, Value) {
    let (status, answer) = raw(server, "POST", path, body.to_string().as_bytes());
    (status, serde_json::from_str(&answer).expect("JSON"))
}

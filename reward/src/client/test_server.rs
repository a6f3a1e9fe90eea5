//! A server for tests that behaves as badly as it is told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct ReceivedRequest {
    /// Request line and headers, in small letters.
    pub head: String,
    pub body: Value,
    pub at: Instant,
}

/// What becomes of a request.
pub(crate) enum Reply {
    Json(Value),
    Status(u16, &'static str, &'static str),
    /// These bytes and the end.
    Raw(&'static [u8]),
    /// Nothing, for longer than any test waits.
    Hang,
}

/// Serves until the process ends.
pub(crate) struct TestServer {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<ReceivedRequest>>>,
    most_at_once: Arc<AtomicUsize>,
}

impl TestServer {
    /// `reply` is told how many requests came before, and this one.
    pub fn start(reply: impl Fn(usize, &Value) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = TestServer {
            address: listener.local_addr().expect("its address"),
            asked: Arc::default(),
            most_at_once: Arc::default(),
        };
        let (asked, most) = (Arc::clone(&server.asked), Arc::clone(&server.most_at_once));
        let (reply, now) = (Arc::new(reply), Arc::new(AtomicUsize::new(0)));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (asked, most) = (Arc::clone(&asked), Arc::clone(&most));
                let (reply, now) = (Arc::clone(&reply), Arc::clone(&now));
                std::thread::spawn(move || {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    serve(stream, &asked, &*reply, || _ = now.fetch_sub(1, Ordering::SeqCst));
                });
            }
        });
        server
    }

    /// One that answers chats as OpenAI's servers do.
    pub fn chat(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        TestServer::start(move |_, body| {
            let last = body["messages"].as_array().and_then(|messages| messages.last());
            let text = answer(last.and_then(|message| message["content"].as_str()).unwrap_or_default());
            Reply::Json(json!({"choices": [{"message": {"role": "assistant", "content": text}}]}))
        })
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    pub fn requests(&self) -> Vec<ReceivedRequest> {
        self.asked.lock().expect("no panic").clone()
    }

    pub fn most_at_once(&self) -> usize {
        self.most_at_once.load(Ordering::SeqCst)
    }
}

fn serve(
    stream: TcpStream,
    asked: &Mutex<Vec<ReceivedRequest>>,
    reply: &impl Fn(usize, &Value) -> Reply,
    done: impl FnOnce(),
) {
    let at = Instant::now();
    let mut reader = BufReader::new(&stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return done();
        }
        let line = line.trim_end().to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        head += &line;
        head.push('\n');
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the body");
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    let before = {
        let mut asked = asked.lock().expect("no panic");
        asked.push(ReceivedRequest { head, body: body.clone(), at });
        asked.len() - 1
    };
    let answer = match reply(before, &body) {
        Reply::Json(value) => answer(200, "", &value.to_string()),
        Reply::Status(status, headers, text) => answer(status, headers, text),
        Reply::Raw(bytes) => bytes.to_vec(),
        Reply::Hang => {
            std::thread::sleep(Duration::from_secs(600));
            return;
        }
    };
    // It is over before the client can know: else it could have begun another one.
    done();
    let _ = (&stream).write_all(&answer);
}

fn answer(status: u16, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} as told\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
    .into()
}

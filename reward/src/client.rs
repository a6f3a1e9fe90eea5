//! JSON over HTTP for scorers: several requests at once, each with a time limit and some tries.

#[cfg(test)]
pub(crate) mod test_server;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::Agent;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Response};
use ureq::tls::{RootCerts, TlsConfig};

use crate::cancellation::{CancellationToken, WaitError};
use crate::error::quoted;

/// Bytes of an answer.
const MAX_ANSWER_BYTES: u64 = 16 << 20;
/// What the second try waits for; each one after it waits twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause between two tries, unless the server asks for more.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause that a server can ask for; one that wants more is taken for one that refuses.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// How requests are made.
#[derive(Debug, Clone)]
pub(crate) struct ClientOptions {
    pub url: String,
    /// Names and values. A value that begins with `$` names an environment variable.
    pub headers: BTreeMap<String, String>,
    /// The environment variable of a key that is sent as `Authorization: Bearer …`.
    pub api_key_env: Option<String>,
    /// For one try, from the connection to the end of the answer.
    pub timeout: Duration,
    /// Tries after the first.
    pub retries: u32,
    /// Requests under way at once.
    pub in_flight: usize,
    /// Tries that begin in a minute.
    pub per_minute: Option<f64>,
}

impl ClientOptions {
    /// Checks everything, the environment's variables too.
    ///
    /// # Errors
    /// A sentence that begins with the option's name, `url` for its URL.
    pub fn validate(&self) -> Result<(), String> {
        let ClientOptions { url, in_flight, per_minute, .. } = self;
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        let host = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
        match host {
            None | Some("") => {
                return Err(format!("url is {url:?}, but must be as http://127.0.0.1:8000/score"));
            }
            Some(host) if host.contains('@') => {
                return Err("url has a password, which would be written into the run's folder; use api_key_env, or a \
                            header with a value such as \"$MY_VARIABLE\""
                    .to_string());
            }
            Some(_) => {}
        }
        if ureq::http::Uri::try_from(url.as_str()).is_err() {
            return Err(format!("url is {url:?}, which is no URL"));
        }
        if !(1..=1024).contains(in_flight) {
            return Err(format!("max_in_flight is {in_flight}, but must be from 1 to 1024"));
        }
        if let Some(rate) = per_minute.filter(|&rate| !(0.001..=1e6).contains(&rate)) {
            return Err(format!("requests_per_minute is {rate}, but must be from 0.001 to 1000000"));
        }
        self.header_map().map(drop)
    }

    fn header_map(&self) -> Result<HeaderMap, String> {
        let secret = |option: &str, variable: &str| {
            std::env::var(variable).map_err(|_| {
                format!(
                    "{option} names {variable}, an environment variable that is not set; set it to the key"
                )
            })
        };
        let mut map = HeaderMap::new();
        let mut insert = |name: &str, value: &str| {
            let wrong = || format!("headers has {name:?}, which is no header, or whose value cannot be one");
            let name = HeaderName::try_from(name).map_err(|_| wrong())?;
            let mut value = HeaderValue::try_from(value.trim()).map_err(|_| wrong())?;
            value.set_sensitive(true);
            map.insert(name, value);
            Ok::<(), String>(())
        };
        for (name, value) in &self.headers {
            match value.strip_prefix('$') {
                Some(variable) => insert(name, &secret("headers", variable)?)?,
                None => insert(name, value)?,
            }
        }
        if let Some(variable) = &self.api_key_env {
            insert("authorization", &format!("Bearer {}", secret("api_key_env", variable)?.trim()))?;
        }
        Ok(map)
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The request failed, for this reason.
    #[error("{0}")]
    Failed(String),
    /// [`CancellationToken::cancel`] was called.
    #[error("interrupted")]
    Interrupted,
}

impl From<WaitError> for RequestError {
    fn from(_: WaitError) -> Self {
        RequestError::Interrupted
    }
}

/// Posts to one URL.
#[derive(Debug, Clone)]
pub(crate) struct Client(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: ClientOptions,
    headers: HeaderMap,
    agent: Agent,
    /// When the next try may begin.
    next: Mutex<Instant>,
}

/// What one try came to.
enum Attempt {
    Answer(Value),
    /// It may go better later; not before the pause that the server asked for.
    Later {
        cause: String,
        pause: Option<Duration>,
    },
    Refused(String),
}

impl Client {
    /// # Errors
    /// If an environment variable is not set.
    pub fn new(options: ClientOptions) -> Result<Self, String> {
        let headers = options.header_map()?;
        let agent = Agent::config_builder()
            .timeout_global(Some(options.timeout))
            .http_status_as_error(false)
            // A redirect would carry our headers to whatever host it names, and turn the request into another.
            .max_redirects(0)
            .max_idle_connections_per_host(options.in_flight)
            .user_agent(concat!("arriero/", env!("CARGO_PKG_VERSION")))
            // The machine's own list: servers of one's own often have certificates of one's own.
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .build()
            .new_agent();
        Ok(Client(Arc::new(Shared { options, headers, agent, next: Mutex::new(Instant::now()) })))
    }

    /// Posts every body, some at a time; the answers are in their order.
    pub fn post_all(
        &self,
        bodies: Vec<Value>,
        cancellation: &CancellationToken,
    ) -> Vec<Result<Value, RequestError>> {
        let count = bodies.len();
        let bodies = Arc::new(bodies);
        let next = Arc::new(AtomicUsize::new(0));
        let (found, answers) = channel();
        // The threads are not waited for: one that hangs in a request would hold up whoever wants to stop.
        for _ in 0..self.0.options.in_flight.min(count) {
            let (shared, bodies, next) = (Arc::clone(&self.0), Arc::clone(&bodies), Arc::clone(&next));
            let (found, cancellation) = (found.clone(), cancellation.clone());
            std::thread::spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(body) = bodies.get(index) else { return };
                    if found.send((index, shared.post(body, &cancellation))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(found);
        let mut outcomes: Vec<Option<Result<Value, RequestError>>> = vec![None; count];
        let mut missing = count;
        // Every request ends by itself: there is no deadline.
        let never = Instant::now() + Duration::from_secs(1 << 32);
        while missing > 0 {
            match cancellation.wait(never, |slice| answers.recv_timeout(slice).ok()) {
                Ok((index, answer)) => {
                    outcomes[index] = Some(answer);
                    missing -= 1;
                }
                Err(_) => break,
            }
        }
        outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(RequestError::Interrupted))).collect()
    }
}

impl Shared {
    fn post(&self, body: &Value, cancellation: &CancellationToken) -> Result<Value, RequestError> {
        let body = body.to_string();
        let mut pause = FIRST_PAUSE;
        for tries in 1.. {
            cancellation.sleep_until(self.next_slot())?;
            let tried = self.try_once(&body);
            cancellation.tick();
            let (cause, asked) = match tried {
                Attempt::Answer(answer) => return Ok(answer),
                Attempt::Refused(cause) => {
                    return Err(RequestError::Failed(format!("{}: {cause}", self.options.url)));
                }
                Attempt::Later { cause, pause } => (cause, pause),
            };
            let too_long = asked.is_some_and(|asked| asked > MAX_RETRY_AFTER);
            if tries > self.options.retries || too_long {
                let times = if tries == 1 { "once" } else { &format!("{tries} times") };
                return Err(RequestError::Failed(format!("{}: {cause} (tried {times})", self.options.url)));
            }
            if let Some(asked) = asked {
                self.pause_all(asked);
            }
            cancellation.sleep_until(Instant::now() + asked.unwrap_or(pause))?;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        Err(RequestError::Interrupted)
    }

    /// Takes a place in the order of tries: when it may begin.
    fn next_slot(&self) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = (*next).max(Instant::now());
        let gap = self.options.per_minute.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(60.0 / rate));
        *next = turn + gap;
        turn
    }

    /// Nobody begins before that.
    fn pause_all(&self, pause: Duration) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(Instant::now() + pause);
    }

    fn try_once(&self, body: &str) -> Attempt {
        let mut request = self.agent.post(&self.options.url).header("content-type", "application/json");
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        let mut response = match request.send(body.as_bytes()) {
            Ok(response) => response,
            Err(error) => return self.broken(error),
        };
        let status = response.status().as_u16();
        let asked = retry_after(&response);
        let location =
            response.headers().get("location").map(|to| String::from_utf8_lossy(to.as_bytes()).into());
        let text =
            response.body_mut().with_config().limit(MAX_ANSWER_BYTES).lossy_utf8(true).read_to_string();
        let text = match text {
            Ok(text) => text,
            Err(error) => return self.broken(error),
        };
        match status {
            200..=299 => match serde_json::from_str(&text) {
                Ok(answer) => Attempt::Answer(answer),
                Err(_) => Attempt::Refused(format!("the answer is no JSON: {}", quoted(&text))),
            },
            300..=399 => Attempt::Refused(redirected(status, location)),
            408 | 425 | 429 | 500.. => {
                Attempt::Later { cause: format!("status {status}: {}", quoted(&text)), pause: asked }
            }
            _ => Attempt::Refused(format!("status {status}: {}", quoted(&text))),
        }
    }

    fn broken(&self, error: ureq::Error) -> Attempt {
        let cause = match &error {
            ureq::Error::Timeout(_) => {
                format!("no answer within {} s", self.options.timeout.as_secs_f64())
            }
            other => other.to_string(),
        };
        match error {
            ureq::Error::BadUri(_)
            | ureq::Error::Http(_)
            | ureq::Error::BodyExceedsLimit(_)
            | ureq::Error::Tls(_) => Attempt::Refused(cause),
            _ => Attempt::Later { cause, pause: None },
        }
    }
}

/// Why a redirect is no answer, and what to do about it.
fn redirected(status: u16, location: Option<String>) -> String {
    let to = location.map_or_else(|| "nowhere".to_string(), |location| quoted(&location));
    format!(
        "status {status}: it redirects to {to}. Redirects are not followed, since headers can be secret and what \
         is posted would be lost; if that is the right place, name it in the configuration instead"
    )
}

/// The pause that `Retry-After` asks for, in seconds or as a date.
fn retry_after<T>(response: &Response<T>) -> Option<Duration> {
    let value = response.headers().get("retry-after")?.to_str().ok()?.trim();
    match value.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(std::time::SystemTime::now()).ok(),
    }
}

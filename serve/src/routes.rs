//! Which path does what.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use arriero_policy::generate::Request;
use arriero_policy::tokenizer::Tokenizer;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use crate::asked::{Chat, Completion, CompletionPrompt, Limits, Options};
use crate::error::Refusal;
use crate::fields::Fields;
use crate::house::House;
use crate::told::{Answering, Endpoint};

/// Bytes of a body.
const BODY_LIMIT: usize = 2 * 1024 * 1024;

/// What all handlers share.
#[derive(Debug)]
pub(crate) struct App {
    pub house: House,
    pub tokenizer: Tokenizer,
    pub limits: Limits,
    /// Tokens of a prompt with its answer.
    pub context: usize,
    /// Tokens of an answer where the request names none.
    pub max_tokens: usize,
    /// When the server began, in seconds since 1970.
    pub began: u64,
}

/// The server's paths.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(app)
}

fn json_response(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let house = &app.house;
    json_response(&json!({ "status": "ok", "sequences": house.occupied(), "places": app.limits.places }))
}

async fn models(State(app): State<Arc<App>>) -> Response {
    json_response(&json!({ "object": "list", "data": [model_card(&app)] }))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response, Refusal> {
    if name != app.limits.model {
        return Err(Refusal::no_model(&name, &app.limits.model));
    }
    Ok(json_response(&model_card(&app)))
}

fn model_card(app: &App) -> Value {
    json!({
        "id": app.limits.model, "object": "model", "created": app.began, "owned_by": "arriero",
        "max_model_len": app.context,
    })
}

async fn no_path(uri: Uri) -> Refusal {
    let paths = "/v1/chat/completions, /v1/completions, /v1/models and /health";
    Refusal::http(StatusCode::NOT_FOUND, format!("there is no {}; this server has {paths}", uri.path()))
}

async fn no_method(method: Method, uri: Uri) -> Refusal {
    Refusal::http(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
}

async fn chat(State(app): State<Arc<App>>, body: Result<Bytes, BytesRejection>) -> Result<Response, Refusal> {
    let Chat { messages, options } = Chat::read(fields(body)?, &app.limits)?;
    let tokenise = move |tokenizer: &Tokenizer| {
        let tokens = tokenizer.prompt_tokens(&messages);
        Ok(vec![tokens.map_err(|error| Refusal::field("messages", format!("cannot be read: {error}")))?])
    };
    answer(&app, Endpoint::Chat, "messages", 1, options, tokenise).await
}

async fn completions(
    State(app): State<Arc<App>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let Completion { prompts, options } = Completion::read(fields(body)?, &app.limits)?;
    let count = prompts.len();
    let tokenise = move |tokenizer: &Tokenizer| {
        let tokens = |prompt| match prompt {
            CompletionPrompt::Text(text) => tokenizer
                .text_tokens(&text)
                .map_err(|error| Refusal::field("prompt", format!("cannot be read: {error}"))),
            CompletionPrompt::Tokens(tokens) => Ok(tokens),
        };
        prompts.into_iter().map(tokens).collect()
    };
    answer(&app, Endpoint::Completions, "prompt", count, options, tokenise).await
}

fn fields(body: Result<Bytes, BytesRejection>) -> Result<Fields, Refusal> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Refusal::http(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body has more than {BODY_LIMIT} bytes, which this server does not take"),
        ),
        status => Refusal::http(status, rejection.body_text()),
    })?;
    Fields::parse(&body)
}

/// From prompts to the response. `source` is the field that they came from.
async fn answer(
    app: &App,
    endpoint: Endpoint,
    source: &str,
    prompts: usize,
    options: Options,
    tokenise: impl FnOnce(&Tokenizer) -> Result<Vec<Vec<u32>>, Refusal> + Send + 'static,
) -> Result<Response, Refusal> {
    let places = app.house.reserve(prompts * options.samples)?;
    let tokenizer = app.tokenizer.clone();
    // A long prompt would keep other connections waiting.
    let tokens = tokio::task::spawn_blocking(move || tokenise(&tokenizer)).await;
    let tokens = tokens.map_err(|_| Refusal::broken("the tokenizer stopped"))??;
    let prompt_tokens = tokens.iter().map(Vec::len).sum();
    let seed = options.seed.unwrap_or_else(random);
    let requests = tokens
        .into_iter()
        .enumerate()
        .map(|(index, tokens)| request(app, source, index, tokens, &options, seed))
        .collect::<Result<_, _>>()?;
    let told = app.house.submit(requests, places)?;
    let answering = Answering {
        endpoint,
        id: random(),
        model: app.limits.model.clone(),
        tokenizer: app.tokenizer.clone(),
        prompts,
        samples: options.samples,
        prompt_tokens,
        logprobs: options.logprobs.is_some(),
        include_usage: options.include_usage,
    };
    if options.stream {
        return Ok(answering.stream(told));
    }
    Ok(json_response(&answering.whole(told).await?))
}

/// One prompt as the engine takes it.
fn request(
    app: &App,
    source: &str,
    index: usize,
    tokens: Vec<u32>,
    options: &Options,
    seed: u64,
) -> Result<Request, Refusal> {
    let (length, context) = (tokens.len(), app.context);
    if length == 0 {
        return Err(Refusal::field(source, "is empty; the model needs at least one token"));
    }
    if length >= context {
        let message = format!(
            "{source} has {length} tokens; the model's context has {context}, and the answer needs room in it, too"
        );
        return Err(Refusal::too_long(source, message));
    }
    let room = context - length;
    if let Some(max) = options.max_tokens.filter(|&max| max > room) {
        let message = format!(
            "{source} has {length} tokens and max_tokens is {max}; together they exceed the model's context of \
             {context}"
        );
        return Err(Refusal::too_long("max_tokens", message));
    }
    let mut sampling = options.sampling.clone();
    sampling.max_new_tokens = options.max_tokens.unwrap_or(app.max_tokens).min(room);
    Ok(Request {
        tokens,
        samples: options.samples,
        sampling,
        end_tokens: app.tokenizer.eos_ids().to_vec(),
        seed,
        prompt_id: index as u64,
        greedy_last: false,
        mixed: 0,
        report: true,
        alternatives: options.logprobs.unwrap_or(0),
    })
}

/// A number that nobody has had before; not for secrets.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

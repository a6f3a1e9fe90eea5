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

use crate::error::ApiError;
use crate::fields::Fields;
use crate::request::{ChatRequest, CompletionPrompt, CompletionRequest, Limits, Options};
use crate::response::{Endpoint, ResponseBuilder};
use crate::scheduler::Scheduler;

/// Bytes of a body.
const BODY_LIMIT: usize = 2 * 1024 * 1024;

/// What all handlers share.
#[derive(Debug)]
pub(crate) struct AppState {
    pub scheduler: Scheduler,
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
pub(crate) fn router(app: Arc<AppState>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .fallback(path_not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(app)
}

fn json_response(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

async fn health(State(app): State<Arc<AppState>>) -> Response {
    let sequences = app.scheduler.slots_in_use();
    // Clients read `places`; here they are slots.
    json_response(&json!({ "status": "ok", "sequences": sequences, "places": app.limits.slots }))
}

async fn models(State(app): State<Arc<AppState>>) -> Response {
    json_response(&json!({ "object": "list", "data": [model_card(&app)] }))
}

async fn model(State(app): State<Arc<AppState>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    if name != app.limits.model {
        return Err(ApiError::model_not_found(&name, &app.limits.model));
    }
    Ok(json_response(&model_card(&app)))
}

fn model_card(app: &AppState) -> Value {
    json!({
        "id": app.limits.model, "object": "model", "created": app.began, "owned_by": "arriero",
        "max_model_len": app.context,
    })
}

async fn path_not_found(uri: Uri) -> ApiError {
    let paths = "/v1/chat/completions, /v1/completions, /v1/models and /health";
    ApiError::http(StatusCode::NOT_FOUND, format!("there is no {}; this server has {paths}", uri.path()))
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::http(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
}

async fn chat(
    State(app): State<Arc<AppState>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let ChatRequest { messages, options } = ChatRequest::read(fields(body)?, &app.limits)?;
    let tokenise = move |tokenizer: &Tokenizer| {
        let tokens = tokenizer.prompt_tokens(&messages);
        Ok(vec![
            tokens
                .map_err(|error| ApiError::invalid_field("messages", format!("cannot be read: {error}")))?,
        ])
    };
    answer(&app, Endpoint::Chat, "messages", 1, options, tokenise).await
}

async fn completions(
    State(app): State<Arc<AppState>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let CompletionRequest { prompts, options } = CompletionRequest::read(fields(body)?, &app.limits)?;
    let count = prompts.len();
    let tokenise = move |tokenizer: &Tokenizer| {
        let tokens = |prompt| match prompt {
            CompletionPrompt::Text(text) => tokenizer
                .text_tokens(&text)
                .map_err(|error| ApiError::invalid_field("prompt", format!("cannot be read: {error}"))),
            CompletionPrompt::Tokens(tokens) => Ok(tokens),
        };
        prompts.into_iter().map(tokens).collect()
    };
    answer(&app, Endpoint::Completions, "prompt", count, options, tokenise).await
}

fn fields(body: Result<Bytes, BytesRejection>) -> Result<Fields, ApiError> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::http(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body has more than {BODY_LIMIT} bytes, which this server does not take"),
        ),
        status => ApiError::http(status, rejection.body_text()),
    })?;
    Fields::parse(&body)
}

/// From prompts to the response. `source` is the field that they came from.
async fn answer(
    app: &AppState,
    endpoint: Endpoint,
    source: &str,
    prompts: usize,
    options: Options,
    tokenise: impl FnOnce(&Tokenizer) -> Result<Vec<Vec<u32>>, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let slots = app.scheduler.reserve(prompts * options.samples)?;
    let tokenizer = app.tokenizer.clone();
    // A long prompt would keep other connections waiting.
    let tokens = tokio::task::spawn_blocking(move || tokenise(&tokenizer)).await;
    let tokens = tokens.map_err(|_| ApiError::internal("the tokenizer stopped"))??;
    let prompt_tokens = tokens.iter().map(Vec::len).sum();
    let seed = options.seed.unwrap_or_else(random);
    let requests = tokens
        .into_iter()
        .enumerate()
        .map(|(index, tokens)| request(app, source, index, tokens, &options, seed))
        .collect::<Result<_, _>>()?;
    let events = app.scheduler.submit(requests, slots)?;
    let builder = ResponseBuilder {
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
        return Ok(builder.stream(events));
    }
    Ok(json_response(&builder.whole(events).await?))
}

/// One prompt as the engine takes it.
fn request(
    app: &AppState,
    source: &str,
    index: usize,
    tokens: Vec<u32>,
    options: &Options,
    seed: u64,
) -> Result<Request, ApiError> {
    let (length, context) = (tokens.len(), app.context);
    if length == 0 {
        return Err(ApiError::invalid_field(source, "is empty; the model needs at least one token"));
    }
    if length >= context {
        let message = format!(
            "{source} has {length} tokens; the model's context has {context}, and the answer needs room in it, too"
        );
        return Err(ApiError::context_length_exceeded(source, message));
    }
    let room = context - length;
    if let Some(max) = options.max_tokens.filter(|&max| max > room) {
        let message = format!(
            "{source} has {length} tokens and max_tokens is {max}; together they exceed the model's context of \
             {context}"
        );
        return Err(ApiError::context_length_exceeded("max_tokens", message));
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

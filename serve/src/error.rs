//! Errors of a request, as OpenAI's JSON, and why a server does not start.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Why a server does not start, or ends early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be had.
    #[error("cannot listen on {address}: {cause}; choose another --host or --port")]
    Address {
        /// Which.
        address: String,
        /// What the system says.
        cause: std::io::Error,
    },
    /// The system refuses threads, sockets or signals.
    #[error("the server cannot run: {cause}")]
    System {
        /// What the system says.
        #[from]
        cause: std::io::Error,
    },
    /// The engine's thread is gone.
    #[error("the engine stopped: {cause}")]
    Engine {
        /// Its last words.
        cause: String,
    },
}

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError { status, message: message.into(), kind: "invalid_request_error", param: None, code: None }
    }

    /// The request is wrong.
    pub fn invalid_request(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field is wrong; `message` goes on after its name.
    pub fn invalid_field(name: &str, message: impl std::fmt::Display) -> Self {
        let error = ApiError::invalid_request(format!("{name} {message}"));
        ApiError { param: Some(name.to_string()), ..error }
    }

    /// Prompt and answer exceed the context.
    pub fn context_length_exceeded(param: &str, message: String) -> Self {
        let code = Some("context_length_exceeded");
        ApiError { code, param: Some(param.to_string()), ..ApiError::invalid_request(message) }
    }

    /// There is no such model.
    pub fn model_not_found(requested: &str, served: &str) -> Self {
        let message = format!("the model \"{requested}\" is not here; this server has \"{served}\"");
        let error = ApiError::new(StatusCode::NOT_FOUND, message);
        ApiError { param: Some("model".to_string()), code: Some("model_not_found"), ..error }
    }

    /// What HTTP itself refuses: a path, a method, a body.
    pub fn http(status: StatusCode, message: String) -> Self {
        ApiError::new(status, message)
    }

    /// Too many sequences wait.
    pub fn queue_full(message: String) -> Self {
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, message);
        ApiError { kind: "rate_limit_error", code: Some("queue_full"), ..error }
    }

    /// Not the client's fault.
    pub fn internal(message: impl Into<String>) -> Self {
        let error = ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message);
        ApiError { kind: "server_error", ..error }
    }

    /// OpenAI's error object.
    pub fn json(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response =
            (self.status, [(header::CONTENT_TYPE, "application/json")], self.json().to_string())
                .into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

//! Errors of the HTTP API, in the format of vLLM.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::RETRY_AFTER;
use actors::request::{Refused, RequestError};
use serde::Serialize;

/// An error response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    /// HTTP status; also the body's `code`.
    pub(super) status: StatusCode,
    /// One sentence.
    pub(super) message: String,
    /// The field of the request that is wrong.
    pub(super) param: Option<String>,
    /// Value of `Retry-After`, for the statuses that have it.
    pub(super) retry_seconds: u64,
    /// The process drains and has not begun the request. The response has the header [`DRAINING`].
    pub(super) is_draining: bool,
}

/// The header of a refusal by a process that drains. A proxy sends such a request to another node, however many requests it retries then.
pub(super) const DRAINING: &str = "x-baton-draining";

/// The body: `{"error": {"message", "type", "param", "code"}}`.
#[derive(Serialize)]
struct ErrorBody<'a> {
    error: Detail<'a>,
}

#[derive(Serialize)]
struct Detail<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: u16,
}

impl ApiError {
    /// An error that concerns no single field.
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, retry_seconds: 1, is_draining: false }
    }

    /// Status 400 for one field.
    pub(super) fn field(name: &str, message: impl Into<String>) -> Self {
        Self { param: Some(name.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// The JSON text of the body. It is also the last event of a stream that fails.
    pub(super) fn body(&self) -> String {
        let error = Detail {
            message: &self.message,
            r#type: self.kind(),
            param: self.param.as_deref(),
            code: self.status.as_u16(),
        };
        serde_json::to_string(&ErrorBody { error }).unwrap_or_default()
    }

    /// The HTTP response.
    pub(super) fn response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&self.status) {
            response.insert_header((RETRY_AFTER, self.retry_seconds.to_string()));
        }
        if self.is_draining {
            response.insert_header((DRAINING, "true"));
        }
        if self.status == StatusCode::REQUEST_TIMEOUT {
            // The rest of the late body must not be read as the next request.
            response.force_close();
        }
        response.content_type("application/json").body(self.body())
    }

    /// The type of the error, as in the body.
    pub(super) fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::BAD_REQUEST => "BadRequestError",
            StatusCode::FORBIDDEN => "PermissionDeniedError",
            StatusCode::NOT_FOUND => "NotFoundError",
            StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowedError",
            StatusCode::REQUEST_TIMEOUT => "RequestTimeoutError",
            StatusCode::PAYLOAD_TOO_LARGE => "PayloadTooLargeError",
            StatusCode::UNSUPPORTED_MEDIA_TYPE => "UnsupportedMediaTypeError",
            StatusCode::TOO_MANY_REQUESTS => "TooManyRequestsError",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailableError",
            StatusCode::BAD_GATEWAY => "BadGatewayError",
            StatusCode::GATEWAY_TIMEOUT => "GatewayTimeoutError",
            _ => "InternalServerError",
        }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let status = match refused {
            Refused::TooLarge { .. } | Refused::TooLargeToSend => StatusCode::BAD_REQUEST,
            // Busy, shutting down, no prefiller: a later attempt may succeed.
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self { is_draining: refused == Refused::ShuttingDown, ..Self::new(status, refused.to_string()) }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let status = match error {
            RequestError::Refused(refused) => return refused.into(),
            RequestError::Deadline { .. } => StatusCode::GATEWAY_TIMEOUT,
            RequestError::Aborted | RequestError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

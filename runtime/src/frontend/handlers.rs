//! The HTTP handlers of the frontend, one function per endpoint.

use actix_web::http::StatusCode;
use actix_web::http::header::ALLOW;
use actix_web::{HttpRequest, HttpResponse, web};
use common::metrics::MetricsText;
use serde::Serialize;

use super::api_error::ApiError;
use super::generate::generate;
use super::openai::{ApiKind, check_name};
use super::openapi::document;
use super::response::{ModelCard, json, models};
use super::{Frontend, METRICS_TYPE};

type Shared = web::Data<Frontend>;

pub(super) async fn completions(frontend: Shared, request: HttpRequest, body: web::Payload) -> HttpResponse {
    generate(ApiKind::Completion, frontend.into_inner(), request, body).await.unwrap_or_else(|e| e.response())
}

pub(super) async fn chat_completions(
    frontend: Shared,
    request: HttpRequest,
    body: web::Payload,
) -> HttpResponse {
    generate(ApiKind::Chat, frontend.into_inner(), request, body).await.unwrap_or_else(|e| e.response())
}

pub(super) async fn responses(frontend: Shared, request: HttpRequest, body: web::Payload) -> HttpResponse {
    generate(ApiKind::Response, frontend.into_inner(), request, body).await.unwrap_or_else(|e| e.response())
}

/// The description of this API in OpenAPI's format.
pub(super) async fn openapi() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(document().to_string())
}

pub(super) async fn list_models(frontend: Shared) -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(models(vec![ModelCard::of(&frontend.model)]))
}

pub(super) async fn show_model(frontend: Shared, name: web::Path<String>) -> HttpResponse {
    match check_name(&name, &frontend.model) {
        Ok(()) => {
            HttpResponse::Ok().content_type("application/json").body(json(&ModelCard::of(&frontend.model)))
        }
        Err(error) => error.response(),
    }
}

pub(super) async fn health(frontend: Shared) -> HttpResponse {
    let health = (frontend.health)();
    HttpResponse::build(health.http_status()).content_type("application/json").body(health.body())
}

/// The status of `/health` without a body, for probes that check only the status.
pub(super) async fn ping(frontend: Shared) -> HttpResponse {
    HttpResponse::build((frontend.health)().http_status()).finish()
}

/// Whether the process has to be restarted: 503 after a fault. Has no body.
pub(super) async fn live(frontend: Shared) -> HttpResponse {
    HttpResponse::build((frontend.health)().live_status()).finish()
}

/// The state of this node, for routers of a fleet.
pub(super) async fn node(frontend: Shared, request: HttpRequest) -> HttpResponse {
    match &frontend.node {
        Some(node) => HttpResponse::Ok().content_type("application/json").body(json(&node())),
        None => no_such_path(request).await,
    }
}

pub(super) async fn version() -> HttpResponse {
    HttpResponse::Ok().json(serde_json::json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// The number of running answers and of answers of waiting requests. `server_load`, vLLM's name, is their sum.
pub(super) async fn load(frontend: Shared) -> HttpResponse {
    #[derive(Serialize)]
    struct Load {
        server_load: usize,
        running: usize,
        waiting: usize,
    }
    let (running, waiting) = (frontend.admission.running(), frontend.admission.waiting());
    let load = Load { server_load: running + waiting, running, waiting };
    HttpResponse::Ok().content_type("application/json").body(json(&load))
}

pub(super) async fn metrics(frontend: Shared) -> HttpResponse {
    let mut page = MetricsText::default();
    (frontend.metrics)(&mut page);
    HttpResponse::Ok().content_type(METRICS_TYPE).body(page.into_string())
}

pub(super) async fn no_such_path(request: HttpRequest) -> HttpResponse {
    let message = format!("path {} does not exist", request.path());
    ApiError::new(StatusCode::NOT_FOUND, message).response()
}

/// A handler that answers 405 and names `method` as the only method that the path allows.
pub(super) fn only(method: &'static str) -> impl Fn(HttpRequest) -> std::future::Ready<HttpResponse> + Clone {
    move |request| {
        let message = format!("path {} allows {method}, not {}", request.path(), request.method());
        let mut response = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message).response();
        let allow = actix_web::http::header::HeaderValue::from_static(method);
        response.headers_mut().insert(ALLOW, allow);
        std::future::ready(response)
    }
}

//! The check of the API key.

use actix_web::HttpResponse;
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use actix_web::middleware::Next;
use actix_web::web::Data;

/// The API key of a port; `None` accepts all clients.
pub(super) struct ApiKey(pub(super) Option<String>);

/// Paths that need no key, for probes and monitoring. The live page has no data of its own.
const OPEN: &[&str] =
    &["/", "/health", "/ping", "/live", "/node", "/version", "/load", "/metrics", "/openapi.json"];

/// Middleware that answers 401, with vLLM's body, to a request without the API key.
pub(super) async fn check<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let key = request.app_data::<Data<ApiKey>>().and_then(|key| key.0.as_deref());
    let sent = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let sent = sent.and_then(|value| value.strip_prefix("Bearer "));
    let open = OPEN.contains(&request.path());
    if open || key.is_none_or(|key| sent.is_some_and(|sent| same(key.as_bytes(), sent.as_bytes()))) {
        return next.call(request).await.map(ServiceResponse::map_into_boxed_body);
    }
    let response = HttpResponse::Unauthorized()
        .insert_header((WWW_AUTHENTICATE, "Bearer"))
        .content_type("application/json")
        .body(r#"{"error":"Unauthorized"}"#);
    Ok(request.into_response(response))
}

/// Compares two keys. The time does not depend on where keys of equal length differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

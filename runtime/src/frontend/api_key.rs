//! The key that clients may have to show.

use actix_web::HttpResponse;
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use actix_web::middleware::Next;
use actix_web::web::Data;

use super::Frontend;

/// Paths that anybody may ask: probes and monitoring have no key.
const OPEN: &[&str] = &["/health", "/ping", "/version", "/load", "/metrics"];

/// Answers 401, with vLLM's body, to whoever has to show the key and does not.
pub(super) async fn check<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let key = request.app_data::<Data<Frontend>>().and_then(|frontend| frontend.api_key.as_deref());
    let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| value.strip_prefix("Bearer "));
    let open = OPEN.contains(&request.path());
    if open || key.is_none_or(|key| shown.is_some_and(|shown| same(key.as_bytes(), shown.as_bytes()))) {
        return next.call(request).await.map(ServiceResponse::map_into_boxed_body);
    }
    let response = HttpResponse::Unauthorized()
        .insert_header((WWW_AUTHENTICATE, "Bearer"))
        .content_type("application/json")
        .body(r#"{"error":"Unauthorized"}"#);
    Ok(request.into_response(response))
}

/// Equality in a time that does not depend on where two keys of a length differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

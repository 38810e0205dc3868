//! `/admin/drain`: POST begins the drain of the process, GET reports it.
//!
//! [`operator`] says who may use it.

use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;

use super::Frontend;
use super::handlers::no_such_path;
use super::operator;
use super::response::json;
use crate::drain::{Drain, DrainStage};

/// What a port with `/admin/drain` needs.
pub struct DrainControl {
    /// The drain of the process.
    pub drain: Drain,
    /// Called for each answer. Must not block.
    pub work: Arc<dyn Fn() -> LeftWork + Send + Sync>,
}

/// The work that a draining process has.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct LeftWork {
    /// Answers that run.
    pub running: usize,
    /// Answers of waiting requests.
    pub waiting: usize,
    /// Prompts of peers that are prefilled or handed over here.
    pub prefills: u64,
    /// Pages that requests expect from peers.
    pub landing_pages: u64,
}

pub(super) async fn start_drain(frontend: web::Data<Frontend>, request: HttpRequest) -> HttpResponse {
    answer(&frontend, request, Drain::begin).await
}

pub(super) async fn show_drain(frontend: web::Data<Frontend>, request: HttpRequest) -> HttpResponse {
    answer(&frontend, request, |_| ()).await
}

async fn answer(frontend: &Frontend, request: HttpRequest, act: fn(&Drain)) -> HttpResponse {
    let Some(control) = &frontend.drain_control else { return no_such_path(request).await };
    if let Err(error) = operator::check(frontend.api_key.is_some(), &request) {
        return error.response();
    }
    act(&control.drain);
    #[derive(Serialize)]
    struct Report {
        state: &'static str,
        #[serde(flatten)]
        work: LeftWork,
    }
    let stage = control.drain.stage();
    let is_done = stage == DrainStage::Drained || stage == DrainStage::Serving;
    let status = if is_done { StatusCode::OK } else { StatusCode::ACCEPTED };
    let report = Report { state: stage.name(), work: (control.work)() };
    HttpResponse::build(status).content_type("application/json").body(json(&report))
}

//! `GET /`: the live page. It is one document without data; the data comes from `/debug/live`.
//!
//! The policy in the header lets a browser run this script and this style only, by their SHA-256, and lets the script connect to this port only.

use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::Frontend;
use super::handlers::no_such_path;

/// Its icon is an empty image, so that browsers do not ask for `/favicon.ico`.
const FRAME: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");

/// The parts of the script, in order. Together they are one module.
const SCRIPTS: [&str; 8] = [
    include_str!("page/dom.js"),
    include_str!("page/history.js"),
    include_str!("page/charts.js"),
    include_str!("page/waterfall.js"),
    include_str!("page/figures.js"),
    include_str!("page/fleet.js"),
    include_str!("page/chat.js"),
    include_str!("page/live.js"),
];

/// Where the style and the script stand in the frame.
const STYLE_MARK: &str = "/*STYLE*/";
const SCRIPT_MARK: &str = "/*SCRIPT*/";

/// The document and its policy.
#[derive(Clone, Debug)]
pub(super) struct PageText {
    html: Bytes,
    policy: String,
}

impl PageText {
    /// Puts the document together.
    pub(super) fn new() -> Self {
        let script = SCRIPTS.concat();
        let html = FRAME.replacen(STYLE_MARK, STYLE, 1).replacen(SCRIPT_MARK, &script, 1);
        let policy = format!(
            "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; \
             form-action 'none'",
            hash(&script),
            hash(STYLE)
        );
        Self { html: html.into(), policy }
    }
}

/// The source of a policy that allows an element with this text.
fn hash(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

impl PageText {
    /// The answer of `GET /`.
    pub(super) fn response(&self) -> HttpResponse {
        HttpResponse::Ok()
            .content_type("text/html; charset=utf-8")
            .insert_header((CONTENT_SECURITY_POLICY, self.policy.as_str()))
            .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
            .insert_header((REFERRER_POLICY, "no-referrer"))
            // A browser asks again, so that it shows the page of the running version.
            .insert_header((CACHE_CONTROL, "no-cache"))
            .body(self.html.clone())
    }
}

pub(super) async fn show(frontend: web::Data<Frontend>, request: HttpRequest) -> HttpResponse {
    match &frontend.page {
        Some(page) => page.text().response(),
        None => no_such_path(request).await,
    }
}

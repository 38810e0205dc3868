//! A collector of traces: it decodes what processes send by OTLP over HTTP.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};

use actix_web::{App, HttpResponse, HttpServer, web};
use anyhow::{Context, Result};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

/// A span, and the process that sent it.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) span: Span,
    pub(crate) pid: i64,
    pub(crate) role: String,
}

impl Found {
    /// Nanoseconds from its start to its end.
    pub(crate) fn duration(&self) -> u64 {
        self.span.end_time_unix_nano - self.span.start_time_unix_nano
    }

    /// The text of an attribute; empty if there is none.
    pub(crate) fn text(&self, name: &str) -> String {
        let value = self.span.attributes.iter().find(|attribute| attribute.key == name);
        match value.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
            Some(Value::StringValue(text)) => text.clone(),
            Some(Value::IntValue(number)) => number.to_string(),
            Some(Value::BoolValue(flag)) => flag.to_string(),
            _ => String::new(),
        }
    }
}

/// A collector that runs until the test ends.
pub(crate) struct Collector {
    /// `http://` and the address.
    pub(crate) url: String,
    found: Arc<Mutex<Vec<Found>>>,
}

fn decode(body: &[u8]) -> Result<Vec<Found>> {
    let request = ExportTraceServiceRequest::decode(body)?;
    let mut found = Vec::new();
    for of_process in request.resource_spans {
        let resource = of_process.resource.context("the spans have no resource")?;
        let about = Found {
            span: Span { attributes: resource.attributes, ..Span::default() },
            pid: 0,
            role: String::new(),
        };
        anyhow::ensure!(about.text("service.name") == "baton", "{about:?}");
        let (pid, role) = (about.text("process.pid").parse()?, about.text("baton.role"));
        let spans = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
        found.extend(spans.map(|span| Found { span, pid, role: role.clone() }));
    }
    Ok(found)
}

impl Collector {
    /// Starts a collector on a free port.
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let url = format!("http://{}", listener.local_addr()?);
        let found: Arc<Mutex<Vec<Found>>> = Arc::default();
        let kept = Arc::clone(&found);
        std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let take = move |body: web::Bytes| {
                    let spans = decode(&body);
                    let answer = match spans {
                        Ok(spans) => {
                            kept.lock().unwrap_or_else(PoisonError::into_inner).extend(spans);
                            HttpResponse::Ok().content_type("application/x-protobuf").finish()
                        }
                        Err(error) => HttpResponse::BadRequest().body(error.to_string()),
                    };
                    std::future::ready(answer)
                };
                let app = move || App::new().route("/v1/traces", web::post().to(take.clone()));
                HttpServer::new(app).workers(1).disable_signals().listen(listener)?.run().await
            })
        });
        Ok(Self { url, found })
    }

    /// The setting that sends traces here.
    pub(crate) fn setting(&self) -> String {
        format!("traces.otlp_endpoint={}", self.url)
    }

    /// All spans so far, by trace.
    pub(crate) fn traces(&self) -> BTreeMap<Vec<u8>, Vec<Found>> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let mut traces = BTreeMap::<_, Vec<Found>>::new();
        for span in found.iter() {
            traces.entry(span.span.trace_id.clone()).or_default().push(span.clone());
        }
        traces
    }
}

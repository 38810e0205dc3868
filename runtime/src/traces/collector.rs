//! The connection to the collector.

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::{KeyValue, Value};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanProcessor as _};

use crate::tls;

/// Where collectors take traces if a URL has no path.
const PATH: &str = "/v1/traces";

/// Maximum time for one request to the collector.
const PATIENCE: Duration = Duration::from_secs(10);

/// Maximum length of an answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// The exporter does not start.
#[derive(Debug, thiserror::Error)]
#[error(
    "traces.otlp_endpoint {endpoint}: {reason}; give the URL of an OTLP collector, such as http://localhost:4318"
)]
pub struct CollectorError {
    endpoint: String,
    reason: String,
}

/// Starts the thread that sends spans. Further settings are OpenTelemetry's variables, such as `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_BSP_SCHEDULE_DELAY`,
/// `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`.
pub(super) fn start(
    endpoint: &str,
    role: &'static str,
    certificates: Option<&Path>,
) -> Result<BatchSpanProcessor, CollectorError> {
    let failed = |reason: String| CollectorError { endpoint: endpoint.to_owned(), reason };
    let url = traces_url(endpoint);
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Client::new(&url, certificates).map_err(failed)?)
        .with_endpoint(url)
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let mut spans = BatchSpanProcessor::builder(exporter).build();
    spans.set_resource(&resource(role));
    Ok(spans)
}

/// The URL for traces at a collector: its endpoint, which the configuration has checked, with [`PATH`] if it has no path of its own.
fn traces_url(endpoint: &str) -> String {
    let path = endpoint.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map(|(_, path)| path);
    match path {
        None | Some("") => format!("{}{PATH}", endpoint.trim_end_matches('/')),
        Some(_) => endpoint.to_owned(),
    }
}

/// The attributes of this process. Those of the environment come first.
fn resource(role: &'static str) -> Resource {
    let pid = std::process::id();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim().to_owned();
    let given = Resource::builder().build();
    let is_own = |name: &Value| !name.as_str().starts_with("unknown_service");
    let name = given.get(&"service.name".into()).filter(is_own).unwrap_or_else(|| "baton".into());
    let others = given.iter().filter(|(key, _)| key.as_str() != "service.name");
    let others: Vec<KeyValue> =
        others.map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
    let own = [
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", format!("{host}:{pid}")),
        KeyValue::new("host.name", host),
        KeyValue::new("process.pid", i64::from(pid)),
        KeyValue::new("baton.role", role),
    ];
    Resource::builder_empty().with_attributes(own).with_attributes(others).with_service_name(name).build()
}

/// Minimum time between two warnings.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Sends requests of the exporter, on the exporter's thread.
struct Client {
    agent: ureq::Agent,
    warned: Mutex<Option<Instant>>,
}

impl Client {
    fn new(url: &str, certificates: Option<&Path>) -> Result<Self, String> {
        let mut config =
            ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false);
        if url.starts_with("https:") {
            config = config.tls_config(tls::for_ureq(certificates)?);
        }
        Ok(Self { agent: config.build().new_agent(), warned: Mutex::default() })
    }

    /// Sends a request. If the collector does not take it, the log says so now and then.
    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.try_send(request);
        let fault = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answers {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        if let Some(fault) = fault {
            self.warn(&fault);
        }
        answer
    }

    fn warn(&self, fault: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            *warned = Some(Instant::now());
            tracing::warn!(
                "traces are lost, because the collector (traces.otlp_endpoint) does not take them: {fault}"
            );
        }
    }

    fn try_send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let answer = self.agent.run(ureq::http::Request::from_parts(parts, body.to_vec()))?;
        let (parts, mut body) = answer.into_parts();
        let body = body.with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
        Ok(Response::from_parts(parts, body.into()))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

impl HttpClient for Client {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(std::future::ready(self.send(request)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_collector_is_added_if_it_is_missing() {
        let check = |given: &str, expect: &str| assert_eq!(traces_url(given), expect);
        check("http://localhost:4318", "http://localhost:4318/v1/traces");
        check("http://localhost:4318/", "http://localhost:4318/v1/traces");
        check("http://localhost:4318/v1/traces", "http://localhost:4318/v1/traces");
        check("http://gateway/tenant/traces", "http://gateway/tenant/traces");
    }

    #[test]
    fn a_wrong_endpoint_is_one_sentence() {
        let error = start("http://a b", "local", None).expect_err("it is no URL").to_string();
        assert!(error.starts_with("traces.otlp_endpoint http://a b: ") && !error.contains('\n'), "{error}");
        assert!(
            error.ends_with("; give the URL of an OTLP collector, such as http://localhost:4318"),
            "{error}"
        );
    }
}

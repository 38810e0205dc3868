//! The calls for the keys of one fleet.

use std::time::Duration;

use actors::membership::{Entry, KeyChange, LEASE, MEMBERS_MAX, ViewEvent};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::frontend::with_causes;
use crate::membership::gateway::{
    ANSWER_BYTES_MAX, CallError, Gateway, Header, KeyValue, base64, failure, message, number,
};
use crate::membership::json;

/// The keys of one fleet in an etcd.
pub(super) struct Calls {
    gateway: Gateway,
    /// `baton/v1/{cluster}/`.
    prefix: String,
}

#[derive(Deserialize)]
struct Ranged {
    #[serde(default)]
    header: Header,
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

#[derive(Deserialize)]
struct Granted {
    #[serde(rename = "ID", deserialize_with = "number")]
    id: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct KeptAlive {
    #[serde(rename = "TTL", deserialize_with = "number")]
    ttl: i64,
}

/// A line of a stream.
#[derive(Deserialize)]
struct Line<T> {
    result: Option<T>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Watched {
    header: Header,
    created: bool,
    canceled: bool,
    cancel_reason: String,
    #[serde(deserialize_with = "number")]
    compact_revision: i64,
    events: Vec<Event>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    kv: KeyValue,
}

impl Calls {
    /// The keys of this fleet.
    pub(super) fn new(gateway: Gateway, cluster: &str) -> Self {
        Self { gateway, prefix: format!("baton/v1/{cluster}/") }
    }

    pub(super) fn endpoints(&self) -> usize {
        self.gateway.endpoints()
    }

    /// The first key after those of the fleet: `/` is followed by `0`.
    fn end(&self) -> String {
        format!("{}0", self.prefix.trim_end_matches('/'))
    }

    fn entry(&self, kv: &KeyValue) -> Entry {
        json::read(&self.name(kv), &kv.value)
    }

    fn name(&self, kv: &KeyValue) -> String {
        let key = String::from_utf8_lossy(&kv.key).into_owned();
        key.strip_prefix(&self.prefix).unwrap_or(&key).to_owned()
    }

    /// All keys.
    pub(super) async fn range(&self, endpoint: usize) -> Result<ViewEvent, CallError> {
        let body = json!({
            "key": base64(self.prefix.as_bytes()), "range_end": base64(self.end().as_bytes()), "limit": (2 * MEMBERS_MAX).to_string(),
        });
        let ranged: Ranged = self.gateway.call(endpoint, "/v3/kv/range", &body).await?;
        let entries = ranged.kvs.iter().map(|kv| self.entry(kv)).collect();
        Ok(ViewEvent::Ranged { cluster: ranged.header.cluster_id, revision: ranged.header.revision, entries })
    }

    /// Watches all keys from a revision on.
    pub(super) async fn watch(&self, endpoint: usize, from: i64) -> Result<WatchLines<'_>, CallError> {
        let body = json!({ "create_request": {
            "key": base64(self.prefix.as_bytes()), "range_end": base64(self.end().as_bytes()), "start_revision": from.to_string(),
        } });
        let response = self.gateway.open(endpoint, "/v3/watch", &body).await?;
        Ok(WatchLines { calls: self, body: response.into_body(), read: Vec::new() })
    }

    pub(super) async fn grant(&self, endpoint: usize) -> Result<i64, CallError> {
        let body = json!({ "TTL": LEASE.as_secs().to_string() });
        let granted: Granted = self.gateway.call(endpoint, "/v3/lease/grant", &body).await?;
        Ok(granted.id)
    }

    /// Puts a key under a lease, unless it is there under this lease.
    pub(super) async fn put(
        &self,
        endpoint: usize,
        name: &str,
        value: &[u8],
        lease: i64,
    ) -> Result<(), CallError> {
        let (key, lease) = (base64(format!("{}{name}", self.prefix).as_bytes()), lease.to_string());
        let body = json!({
            "compare": [{ "key": key, "target": "LEASE", "result": "EQUAL", "lease": lease }],
            "failure": [{ "request_put": { "key": key, "value": base64(value), "lease": lease } }],
        });
        self.gateway.call::<Value>(endpoint, "/v3/kv/txn", &body).await.map(drop)
    }

    /// Renews a lease. Returns its new life.
    pub(super) async fn keep_alive(&self, endpoint: usize, lease: i64) -> Result<Duration, CallError> {
        let body = json!({ "ID": lease.to_string() });
        let line: Line<KeptAlive> = self.gateway.call(endpoint, "/v3/lease/keepalive", &body).await?;
        // A lease that does not exist has no TTL.
        let seconds = line.result.unwrap_or_default().ttl;
        u64::try_from(seconds)
            .ok()
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs)
            .ok_or(CallError::LeaseGone)
    }

    pub(super) async fn revoke(&self, endpoint: usize, lease: i64) -> Result<(), CallError> {
        let body = json!({ "ID": lease.to_string() });
        self.gateway.call::<Value>(endpoint, "/v3/lease/revoke", &body).await.map(drop)
    }
}

/// The answers of a watch. Dropping it ends the watch.
pub(super) struct WatchLines<'a> {
    calls: &'a Calls,
    body: Incoming,
    /// Bytes that are no whole line yet.
    read: Vec<u8>,
}

impl WatchLines<'_> {
    /// The next answer. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Result<ViewEvent, CallError> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return self.event(&line);
            }
            if self.read.len() > ANSWER_BYTES_MAX {
                return Err(CallError::Other("an answer of the watch is too long".to_owned()));
            }
            let frame = self.body.frame().await;
            let frame = frame.ok_or_else(|| CallError::Other("the watch has ended".to_owned()))?;
            let frame = frame.map_err(|error| CallError::Other(with_causes(&error)))?;
            self.read.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
    }

    fn event(&self, line: &[u8]) -> Result<ViewEvent, CallError> {
        let parsed: Line<Watched> =
            serde_json::from_slice(line).map_err(|error| CallError::Other(format!("watch: {error}")))?;
        let Some(watched) = parsed.result else {
            return Err(failure(message(line).unwrap_or_else(|| "the watch has failed".to_owned())));
        };
        let Header { cluster_id: cluster, revision } = watched.header;
        if watched.compact_revision > 0 {
            return Ok(ViewEvent::Compacted);
        }
        if watched.canceled {
            return Err(CallError::Other(format!("etcd has ended the watch: {}", watched.cancel_reason)));
        }
        if watched.created {
            return Ok(ViewEvent::WatchBegun { cluster, revision });
        }
        let change = |event: &Event| {
            let change = if event.kind == "DELETE" {
                KeyChange::Delete(json::shown(&self.calls.name(&event.kv)))
            } else {
                KeyChange::Put(self.calls.entry(&event.kv))
            };
            (event.kv.mod_revision, change)
        };
        Ok(ViewEvent::Watched { cluster, changes: watched.events.iter().map(change).collect() })
    }
}

//! Translates LMCache's configuration files for disaggregated prefill.
//!
//! Each LMCache key sets a key of Baton, or is checked against the role of the process, or is ignored. The log names the ignored keys
//! in one line.

use figment::value::{Dict, Value};

use super::Role;
use super::values::named;

/// The translation of an LMCache file.
#[derive(Debug, Default)]
pub(super) struct Translated {
    /// Keys of Baton, their values, and the LMCache keys that set them.
    pub(super) settings: Vec<(&'static str, Value, &'static str)>,
    /// LMCache keys that have no counterpart in Baton.
    pub(super) ignored: Vec<String>,
    /// LMCache keys with invalid values, and the reasons.
    pub(super) problems: Vec<(String, String)>,
}

/// Keys for features that Baton does not have: copies of KV in host memory or on disk, serialisation, garbage-collected buffers.
const IGNORED: &[&str] = &[
    "local_cpu",
    "max_local_cpu_size",
    "local_disk",
    "max_local_disk_size",
    "remote_url",
    "remote_serde",
    "chunk_size",
    "save_decode_cache",
    "nixl_enable_gc",
];
/// Keys that Baton uses or checks.
const USED: &[&str] = &[
    "enable_nixl",
    "nixl_role",
    "nixl_peer_host",
    "nixl_peer_port",
    "nixl_buffer_size",
    "nixl_buffer_device",
];

/// Whether the file has an LMCache key at its top level.
pub(super) fn is_lmcache(entries: &Dict) -> bool {
    entries.keys().any(|key| USED.contains(&&**key) || IGNORED.contains(&&**key))
}

/// The role in `nixl_role`.
pub(super) fn role(entries: &Dict) -> Option<Result<Role, String>> {
    let value = entries.get("nixl_role")?;
    Some(match value.as_str() {
        Some("sender") => Ok(Role::Sender),
        Some("receiver") => Ok(Role::Receiver),
        _ => Err(format!("must be sender or receiver, not {}", named(value))),
    })
}

/// Removes the LMCache keys from `entries` and translates them.
pub(super) fn translate(entries: &mut Dict, process: Role) -> Translated {
    let mut out = Translated::default();
    match role(entries) {
        Some(Ok(role)) if role != process => {
            let reason = format!(
                "is {}, but the role of this process is {}; start it with --role {}, or use the file for its role",
                role.name(),
                process.name(),
                role.name()
            );
            out.problems.push(("nixl_role".to_owned(), reason));
        }
        Some(Err(reason)) => out.problems.push(("nixl_role".to_owned(), reason)),
        _ => {}
    }
    entries.remove("nixl_role");
    let (host, port) = (entries.remove("nixl_peer_host"), entries.remove("nixl_peer_port"));
    match (process, host, port) {
        (Role::Sender, Some(host), Some(port)) => {
            let peer = format!("{}:{}", plain(&host), plain(&port));
            out.settings.push(("link.peers", Value::from(peer), "nixl_peer_host and nixl_peer_port"));
        }
        (_, host, port) => {
            out.settings.extend(host.map(|host| ("link.host", host, "nixl_peer_host")));
            out.settings.extend(port.map(|port| ("link.port", port, "nixl_peer_port")));
        }
    }
    let bytes = entries.remove("nixl_buffer_size");
    out.settings.extend(bytes.map(|bytes| ("ring.bytes", bytes, "nixl_buffer_size")));
    if let Some(device) = entries.remove("nixl_buffer_device") {
        match device.as_str() {
            // Pages are put from the memory of the engine's device, so this key has no effect.
            Some("cuda" | "cpu") => {}
            _ => out.problems.push((
                "nixl_buffer_device".to_owned(),
                format!("must be cuda or cpu, not {}", named(&device)),
            )),
        }
    }
    if let Some(enabled) = entries.remove("enable_nixl")
        && enabled.to_bool() != Some(true)
        && process != Role::Local
    {
        let reason = format!(
            "is {}, but a sender or receiver always uses UCX; set it to True, or start with --role local",
            named(&enabled)
        );
        out.problems.push(("enable_nixl".to_owned(), reason));
    }
    out.ignored =
        IGNORED.iter().filter(|key| entries.remove(**key).is_some()).map(|key| (*key).to_owned()).collect();
    out
}

/// A string or a whole number as text.
fn plain(value: &Value) -> String {
    match value {
        Value::String(_, text) => text.clone(),
        Value::Num(_, number) => number.to_u128().map_or_else(|| named(value), |number| number.to_string()),
        other => named(other),
    }
}

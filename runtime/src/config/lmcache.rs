//! LMCache's configuration files for disaggregated prefill, read as they are.
//!
//! Each of their keys sets a key of Baton, is checked against what the process is, or is named in one line of the log because
//! there is nothing here that it could set.

use figment::value::{Dict, Value};

use super::Role;
use super::values::named;

/// What a file of LMCache comes to.
#[derive(Debug, Default)]
pub(super) struct Translated {
    /// Keys of Baton, their values, and the keys that they come from.
    pub(super) settings: Vec<(&'static str, Value, &'static str)>,
    /// Keys that have nothing to set here.
    pub(super) idle: Vec<String>,
    /// Keys with values that cannot be used, and why.
    pub(super) problems: Vec<(String, String)>,
}

/// Keys that size or tune what Baton does not have: copies of KV in host memory or on disk, serialisation, collected buffers.
const IDLE: &[&str] = &[
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
const MEANT: &[&str] = &[
    "enable_nixl",
    "nixl_role",
    "nixl_peer_host",
    "nixl_peer_port",
    "nixl_buffer_size",
    "nixl_buffer_device",
];

/// True if a file's top level has a key of LMCache: then it is read as one of its files.
pub(super) fn is_lmcache(entries: &Dict) -> bool {
    entries.keys().any(|key| MEANT.contains(&&**key) || IDLE.contains(&&**key))
}

/// The role that a file names.
pub(super) fn role(entries: &Dict) -> Option<Result<Role, String>> {
    let value = entries.get("nixl_role")?;
    Some(match value.as_str() {
        Some("sender") => Ok(Role::Sender),
        Some("receiver") => Ok(Role::Receiver),
        _ => Err(format!("must be sender or receiver, not {}", named(value))),
    })
}

/// Takes LMCache's keys out of `entries`; what is left are Baton's own, or nobody's.
pub(super) fn translate(entries: &mut Dict, process: Role) -> Translated {
    let mut out = Translated::default();
    match role(entries) {
        Some(Ok(role)) if role != process => {
            let reason = format!(
                "is {}, and this process is to be a {}; start it with --role {}, or name the other file",
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
            // Pages are put from where the engine computes them, so `cuda` means the engine's device.
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
            "is {}, but pages travel over UCX or not at all; set it to True, or start with --role local",
            named(&enabled)
        );
        out.problems.push(("enable_nixl".to_owned(), reason));
    }
    out.idle =
        IDLE.iter().filter(|key| entries.remove(**key).is_some()).map(|key| (*key).to_owned()).collect();
    out
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(_, text) => text.clone(),
        Value::Num(_, number) => number.to_u128().map_or_else(|| named(value), |number| number.to_string()),
        other => named(other),
    }
}

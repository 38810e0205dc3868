//! Checks of the network of this machine: loopback and the ports that a start opens.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::Subject;
use super::port_holder::holder;
use super::report::Finding;
use crate::config::{Config, Secret};
use crate::frontend::{BindError, bind};
use crate::roles::exposure::Port;
use crate::roles::plan;

/// Time limit of a connection to this machine.
const CONNECT: Duration = Duration::from_secs(2);

pub(super) fn loopback(_: &Subject) -> Vec<Finding> {
    let connect = || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        TcpStream::connect_timeout(&listener.local_addr()?, CONNECT).map(drop)
    };
    vec![judge_loopback(connect())]
}

pub(super) fn judge_loopback(connected: io::Result<()>) -> Finding {
    match connected {
        Ok(()) => Finding::ok("loopback", "127.0.0.1 answers"),
        Err(error) => {
            let what = format!("127.0.0.1 does not answer: {error}");
            Finding::fault(
                "loopback",
                what,
                "run `ip link set lo up` in the network namespace of the process",
            )
        }
    }
}

pub(super) fn ports(subject: &Subject) -> Vec<Finding> {
    let config = &subject.config;
    let judge = |port: plan::PlannedPort<'_>| {
        let opened = bind(port.key, port.host, port.port);
        let address = opened.as_ref().ok().and_then(|listener| listener.local_addr().ok());
        let holder = matches!(opened, Err(BindError::InUse { .. })).then(|| holder(port.port)).flatten();
        let exposed = address.and_then(|address| exposure(config, port.key, address));
        judge_port(port, &opened.map(drop).map_err(|error| error.to_string()), holder, exposed)
    };
    plan::ports(config.role, config).into_iter().map(judge).collect()
}

/// The warning for a port that other machines reach without a secret.
fn exposure(config: &Config, key: &str, address: SocketAddr) -> Option<&'static str> {
    let (purpose, secret): (_, Option<&Secret>) = match key {
        "link.port" => (Port::link(config)?, config.link.secret.as_ref()),
        "http.port" | "frontend.port" => (Port::Http, config.request.api_key.as_ref()),
        _ => (Port::KvEvents, None),
    };
    purpose.warning(address, secret)
}

pub(super) fn judge_port(
    port: plan::PlannedPort<'_>,
    opened: &Result<(), String>,
    holder: Option<String>,
    exposed: Option<&str>,
) -> Finding {
    let plan::PlannedPort { key, host, port } = port;
    match (opened, exposed) {
        (Err(error), _) => {
            let mut finding = Finding::from_error(key, error, "set another host or port");
            if let Some(holder) = holder {
                finding.what = format!("{}, by {holder}", finding.what);
            }
            finding
        }
        (Ok(()), Some(warning)) => {
            let error = Finding::from_error(key, warning, "set a secret");
            Finding {
                state: super::CheckState::Warning,
                what: format!("{host}:{port} is free, but {}", error.what),
                ..error
            }
        }
        (Ok(()), None) if port == 0 => Finding::ok(key, format!("{host}, any free port")),
        (Ok(()), None) => Finding::ok(key, format!("{host}:{port} is free")),
    }
}

//! The processes of the fleet: a node on each host, and the proxies.

use anyhow::{Context, Result, bail};
use integration_tests::client::get;
use integration_tests::process::{Process, binary, start_member};

use crate::network::{DEVICE, Network, address};

/// The name of the fleet in etcd.
pub(crate) const CLUSTER: &str = "hosts";

/// Maximum time for a request. A client has an answer by then.
pub(crate) const DEADLINE: &str = "request.deadline=30s";

/// A node on a host of its own.
pub(crate) struct Node {
    /// `unshare`, which ends with the node and has its log.
    pub(crate) process: Process,
    /// The host's number.
    pub(crate) host: usize,
    /// The node's process in the PID namespace of this program.
    pid: u32,
    incarnation: String,
}

impl Node {
    /// Starts a node and does not wait until it serves.
    pub(crate) fn spawn(network: &Network, host: usize, etcd: &str, tls: Option<&str>) -> Result<Process> {
        let mut arguments = network.run_on(host);
        arguments.push(binary()?.display().to_string());
        arguments.extend(["--role", "node"].map(str::to_owned));
        let ip = address(host);
        let sets = [
            format!("http.host={ip}"),
            format!("link.host={ip}"),
            "link.secret=hosts".to_owned(),
            "frontend.enabled=false".to_owned(),
            format!("fleet.etcd_endpoints={etcd}"),
            format!("fleet.cluster={CLUSTER}"),
            "engine.threads=1".to_owned(),
            "engine.kv_bytes=128MiB".to_owned(),
            // Prompts repeat. Each is to be prefilled again.
            "engine.prefix_cache=false".to_owned(),
            DEADLINE.to_owned(),
        ];
        sets.into_iter().for_each(|set| arguments.extend(["--set".to_owned(), set]));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let variables = [Some(("UCX_NET_DEVICES", DEVICE)), tls.map(|tls| ("UCX_TLS", tls))];
        let variables: Vec<_> = variables.into_iter().flatten().collect();
        Process::start_program("ip".as_ref(), &arguments, &variables)
    }

    /// Waits until a started node serves.
    pub(crate) fn new(process: Process, host: usize) -> Result<Self> {
        process.wait_healthy("http.port")?;
        let pid = child(process.pid())?;
        let incarnation = incarnation(host)?;
        Ok(Self { process, host, pid, incarnation })
    }

    /// The address of its HTTP port.
    pub(crate) fn http(&self) -> String {
        http(self.host)
    }

    /// Sends a signal to the node itself.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        let status = std::process::Command::new("kill").arg(signal).arg(self.pid.to_string()).status()?;
        if status.success() { Ok(()) } else { bail!("kill {signal} {}: {status}", self.pid) }
    }

    /// Checks that the process is the one that was started.
    pub(crate) fn check_same(&self) -> Result<()> {
        let (pid, incarnation) = (child(self.process.pid())?, incarnation(self.host)?);
        if (pid, &incarnation) == (self.pid, &self.incarnation) {
            return Ok(());
        }
        bail!("host {} has process {pid} {incarnation}, not {} {}", self.host + 1, self.pid, self.incarnation)
    }
}

/// The address of the HTTP port of a host's node.
pub(crate) fn http(host: usize) -> String {
    format!("{}:8200", address(host))
}

fn incarnation(host: usize) -> Result<String> {
    let (_, report) = get(&http(host), "/node")?;
    Ok(report["incarnation"].as_str().with_context(|| format!("no incarnation in {report}"))?.to_owned())
}

/// The only child of a process.
fn child(parent: u32) -> Result<u32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let children = children.with_context(|| format!("process {parent} has ended"))?;
    children.trim().parse().with_context(|| format!("process {parent} has the children {children:?}"))
}

/// A proxy and the address of its frontend.
pub(crate) struct Proxy {
    pub(crate) process: Process,
    pub(crate) frontend: String,
}

impl Proxy {
    /// Starts a proxy of the fleet.
    pub(crate) fn start(etcd: &str) -> Result<Self> {
        let sets = [format!("fleet.etcd_endpoints={etcd}"), format!("fleet.cluster={CLUSTER}")];
        let process = start_member("proxy", &[&sets[0], &sets[1], DEADLINE])?;
        let frontend = process.address("frontend.port")?;
        Ok(Self { process, frontend })
    }

    /// Waits until the proxy sends requests to this number of nodes.
    pub(crate) fn wait_nodes(&self, nodes: usize) -> Result<()> {
        self.process.until(&format!("{nodes} nodes are ready"), || {
            Ok(get(&self.frontend, "/health")?.1["nodes_ready"] == nodes)
        })
    }
}

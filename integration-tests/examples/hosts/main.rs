//! A fleet on eight hosts of one machine: nodes join, leave, are killed and cut off while clients ask two proxies, and etcd loses its data. Prints
//! how long each recovery took.
//!
//! ```text
//! cargo build --release -p runtime
//! cargo run --release -p integration-tests --example hosts -- [--quick] [--rate R] [--requests N] [--tls LIST] [--logs FOLDER]
//! ```
//! It needs Linux, root, `ip` (iproute2), `unshare` and `setpriv` (util-linux), and `etcd` in PATH. Each node has its own network and PID namespace, and a
//! veth pair to a bridge. Pages travel over UCX/TCP. The proxies, etcd and the clients are on the bridge.
//!
//! Every answer with status 200 must have the token ids that a single node computed before. `events.rs` has the events and their bounds. If one
//! is missed, the exit code is 1 and a line says which. `--logs` writes the logs of all processes into a folder. `--tls` is the nodes' `UCX_TLS`. If the
//! list has lanes that need proof, as `posix,cma,tcp` has, the lane of each session decides when its pages return.
//!
//! **Clean-up.** The program runs itself again inside a mount, network and PID namespace of its own. When it ends, for any reason, the kernel ends all processes
//! in there and removes the network.
#![forbid(unsafe_code)]

mod cpu;
#[path = "../../tests/membership/etcd.rs"]
#[expect(dead_code, reason = "the tests of the membership use the rest")]
mod etcd;
mod events;
mod fleet;
mod handover;
mod load;
mod network;
mod table;
mod watch;

use std::path::PathBuf;
use std::process::{Command, exit};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use events::Events;

/// The first argument of the program inside its namespaces.
const INSIDE: &str = "--inside";

/// The size of a run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Nodes at the start.
    pub(crate) first: usize,
    /// Nodes that join later.
    pub(crate) joining: usize,
    /// Minimum number of requests.
    pub(crate) requests: usize,
    /// Requests per second.
    pub(crate) rate: f64,
    /// Different prompts.
    pub(crate) prompts: usize,
    /// Time between two events.
    pub(crate) pause: Duration,
    /// Time for which a node is cut off.
    pub(crate) cut: Duration,
    /// Time for which etcd is stopped.
    pub(crate) outage: Duration,
    /// `UCX_TLS` of the nodes, if it is not the default.
    pub(crate) tls: Option<String>,
    /// Folder for the logs.
    pub(crate) logs: Option<PathBuf>,
}

impl Plan {
    fn read(arguments: &[String]) -> Result<Self> {
        let seconds = Duration::from_secs;
        let mut plan = Self {
            first: 6,
            joining: 2,
            requests: 2000,
            rate: 5.0,
            prompts: 64,
            pause: seconds(30),
            cut: seconds(15),
            outage: seconds(60),
            tls: None,
            logs: None,
        };
        if arguments.iter().any(|argument| argument == "--quick") {
            let (pause, cut, outage) = (seconds(8), seconds(8), seconds(10));
            plan = Self {
                first: 3,
                joining: 1,
                requests: 200,
                rate: 2.0,
                prompts: 16,
                pause,
                cut,
                outage,
                ..plan
            };
        }
        let mut arguments = arguments.iter();
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{name} needs a value"));
            match name.as_str() {
                "--quick" => {}
                "--rate" => plan.rate = value()?.parse().context("--rate is not a number")?,
                "--requests" => plan.requests = value()?.parse().context("--requests is not a number")?,
                "--tls" => plan.tls = Some(value()?.clone()),
                "--logs" => plan.logs = Some(value()?.into()),
                _ => bail!("unknown argument {name}"),
            }
        }
        Ok(plan)
    }
}

/// Runs this program again in namespaces of its own, which end with it, and returns its exit code.
fn run_inside(arguments: &[String]) -> Result<i32> {
    let mut command = Command::new("setpriv");
    // If this process ends, `unshare` gets SIGKILL and passes it to its child, the first process of the PID namespace.
    command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid"]);
    command.args(["--fork", "--mount-proc", "--kill-child"]);
    command.arg(std::env::current_exe()?).arg(INSIDE).args(arguments);
    // A file system in memory that ends with the mount namespace.
    let status = command.env("TMPDIR", network::RUN).status().context("cannot run setpriv")?;
    Ok(status.code().unwrap_or(1))
}

fn main() -> Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_none_or(|first| first != INSIDE) {
        Plan::read(&arguments)?;
        exit(run_inside(&arguments)?);
    }
    arguments.remove(0);
    let Some(mut events) = Events::start(Plan::read(&arguments)?)? else { bail!("etcd is needed") };
    let result = events.run();
    events.write_logs()?;
    let table = events.finish();
    print!("{table}");
    result?;
    if table.print_missed() > 0 {
        exit(1);
    }
    Ok(())
}

//! The two processes and the proxies between them: starts, deaths, repairs, and the check that the pair is whole.

use anyhow::{Context, Result, ensure};

use super::clients::DEADLINE;
use super::proxy::Proxy;
use super::{Kill, Roles};
use crate::client::{Metrics, complete, get, metrics};
use crate::deadline::STATE_WITHIN;
use crate::fixtures::Prompt;
use crate::process::{Process, free_port, start_node, start_receiver_with, until};

/// The link port of a process, and the address at which its peer dials it: that of a proxy.
struct LinkPort {
    port: u16,
    proxy: Proxy,
}

impl LinkPort {
    fn new() -> Result<Self> {
        let port = free_port()?;
        Ok(Self { port, proxy: Proxy::start(format!("127.0.0.1:{port}"))? })
    }
}

/// The link ports of the processes, and what a replacement of a process needs.
struct Setup {
    receiver: LinkPort,
    /// The link port of the sender, if both processes are nodes.
    sender: Option<LinkPort>,
    /// `UCX_TLS`, if set.
    lanes: Option<String>,
}

impl Setup {
    fn variables(&self) -> Vec<(&str, &str)> {
        self.lanes.iter().map(|lanes| ("UCX_TLS", lanes.as_str())).collect()
    }

    fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        [Some(&self.receiver), self.sender.as_ref()].into_iter().flatten().map(|port| &port.proxy)
    }

    fn start_receiver(&self) -> Result<Process> {
        let deadline = format!("request.deadline={}s", DEADLINE.as_secs());
        match &self.sender {
            Some(sender) => node(&self.receiver, sender, &deadline, &self.variables()),
            None => {
                let port = format!("link.port={}", self.receiver.port);
                start_receiver_with(&[&deadline, &port], &self.variables())
            }
        }
    }

    fn start_sender(&self) -> Result<Process> {
        if let Some(sender) = &self.sender {
            let deadline = format!("request.deadline={}s", DEADLINE.as_secs());
            return node(sender, &self.receiver, &deadline, &self.variables());
        }
        let peers = format!("link.peers={}", self.receiver.proxy.address());
        Process::start(&["--role", "sender", "--set", "http.port=0", "--set", &peers], &self.variables())
    }

    /// Number of sessions that each process has.
    fn sessions(&self) -> u64 {
        if self.sender.is_some() { 2 } else { 1 }
    }
}

/// Starts a node that lists its own address and that of the other node.
fn node(own: &LinkPort, other: &LinkPort, set: &str, variables: &[(&str, &str)]) -> Result<Process> {
    let peers = [format!("127.0.0.1:{}", own.port), other.proxy.address().to_owned()];
    start_node(own.port, &peers, &[set], variables)
}

/// A pair with a proxy in its link, or two nodes with a proxy in each link.
pub(super) struct Parts {
    receiver: Process,
    sender: Process,
    frontend: String,
    setup: Setup,
}

impl Parts {
    /// Starts both processes and waits until pages can travel.
    pub(super) fn start(roles: Roles, lanes: Option<&str>) -> Result<Self> {
        let sender = (roles == Roles::Nodes).then(LinkPort::new).transpose()?;
        let setup = Setup { receiver: LinkPort::new()?, sender, lanes: lanes.map(str::to_owned) };
        let (receiver, sender) = (setup.start_receiver()?, setup.start_sender()?);
        receiver.wait_peers(setup.sessions())?;
        sender.wait_peers(setup.sessions())?;
        let frontend = receiver.address("frontend.port")?;
        Ok(Self { receiver, sender, frontend, setup })
    }

    /// The address of the sender's frontend, if it is a node.
    pub(super) fn frontend_of_sender(&self) -> Result<Option<String>> {
        self.setup.sender.as_ref().map(|_| self.sender.address("frontend.port")).transpose()
    }

    /// The address of the receiver's frontend.
    pub(super) fn frontend(&self) -> &str {
        &self.frontend
    }

    pub(super) fn receiver_metrics(&self) -> Result<Metrics> {
        metrics(&self.frontend).context("cannot read the receiver's metrics")
    }

    pub(super) fn sender_metrics(&self) -> Result<Metrics> {
        metrics(&self.sender.address("http.port")?).context("cannot read the sender's metrics")
    }

    /// Prompts that the sender has not yet handed over.
    pub(super) fn prefills_live(&self) -> Result<u64> {
        self.sender_metrics()?.get("baton_prefills_live")
    }

    /// The logs and metrics of both processes.
    pub(super) fn report(&self) -> String {
        // A dead process has no metrics.
        let counts = |of: Result<Metrics>| of.map_or_else(|error| error.to_string(), |all| all.to_string());
        format!(
            "receiver:\n{}\n{}\nsender:\n{}\n{}",
            self.receiver.log(),
            counts(self.receiver_metrics()),
            self.sender.log(),
            counts(self.sender_metrics())
        )
    }

    /// Causes the death. Clients disconnect elsewhere.
    pub(super) fn inject(&self, kill: Kill) -> Result<()> {
        match kill {
            Kill::Sender => self.sender.signal("-KILL")?,
            Kill::Receiver => self.receiver.signal("-KILL")?,
            Kill::SenderStops => self.sender.signal("-STOP")?,
            Kill::LinkCloses => self.setup.proxies().for_each(Proxy::close),
            Kill::LinkStalls => self.setup.proxies().for_each(Proxy::stall),
            Kill::ClientsMidStream | Kill::ClientsMidPrefill => {}
        }
        Ok(())
    }

    /// Replaces a dead process, continues a stopped one, or reopens the link.
    pub(super) fn repair(&mut self, kill: Kill) -> Result<()> {
        match kill {
            Kill::Sender => {
                // The ports are free when the process has ended, shortly after the signal.
                self.sender.wait()?;
                self.sender = self.setup.start_sender()?;
            }
            Kill::Receiver => {
                self.receiver.wait()?;
                self.receiver = self.setup.start_receiver()?;
                self.frontend = self.receiver.address("frontend.port")?;
            }
            Kill::SenderStops => self.sender.signal("-CONT")?,
            Kill::LinkCloses | Kill::LinkStalls => self.setup.proxies().for_each(Proxy::heal),
            Kill::ClientsMidStream | Kill::ClientsMidPrefill => {}
        }
        Ok(())
    }

    /// Waits until exactly these two processes hand over again, every page and credit is free, and both are healthy.
    pub(super) fn until_whole(&self, prompt: &Prompt) -> Result<()> {
        self.until_handed_over(prompt, &self.frontend, &self.receiver, &self.sender)?;
        if let Some(frontend) = self.frontend_of_sender()? {
            self.until_handed_over(prompt, &frontend, &self.sender, &self.receiver)?;
        }
        until("every page and credit is free", STATE_WITHIN, || {
            self.check_quarantine_health()?;
            let (receiver, sender) = (self.receiver_metrics()?, self.sender_metrics()?);
            let mismatches = receiver.get("baton_page_hash_mismatches_total")?
                + sender.get("baton_page_hash_mismatches_total")?;
            ensure!(mismatches == 0, "{mismatches} pages had a wrong hash");
            let names = [
                "baton_pages_reserved",
                "baton_pages_live",
                "baton_pages_quarantined",
                "baton_pages_outstanding",
                "baton_prefills_live",
            ];
            Ok(receiver.are_all_zero(&names)? && sender.are_all_zero(&names)?)
        })?;
        let senders = self.sender.address("http.port")?;
        for (address, process) in [(&self.frontend, &self.receiver), (&senders, &self.sender)] {
            let (status, health) = get(address, "/health")?;
            let healthy = status == 200 && health["status"] == "ok" && health["pid"] == process.pid();
            ensure!(healthy, "process {}: {status} {health}", process.pid());
        }
        Ok(())
    }

    /// Waits until `prefiller` prefills a request that `decoder` takes.
    fn until_handed_over(
        &self,
        prompt: &Prompt,
        frontend: &str,
        decoder: &Process,
        prefiller: &Process,
    ) -> Result<()> {
        until("a request is handed over again", STATE_WITHIN, || {
            self.check_quarantine_health()?;
            let answer = complete(frontend, &prompt.input(), 2)?;
            ensure!(prompt.ids.starts_with(&answer.ids), "wrong tokens with status 200: {:?}", answer.text);
            let timings = answer.timings;
            ensure!(timings["decode_pid"] == decoder.pid(), "another process decoded: {timings}");
            let handed_over = timings["disaggregated"] == true;
            ensure!(!handed_over || timings["prefill_pid"] == prefiller.pid(), "another sender: {timings}");
            Ok(handed_over)
        })
    }

    /// Checks that `/health` reports pages in quarantine.
    pub(super) fn check_quarantine_health(&self) -> Result<()> {
        let waiting = || Ok::<_, anyhow::Error>(self.receiver_metrics()?.get("baton_pages_quarantined")? > 0);
        let before = waiting()?;
        let (_, health) = get(&self.frontend, "/health")?;
        // The pages may have left the quarantine in between.
        let reported = health["status"] == "degraded" || !before || !waiting()?;
        ensure!(reported, "pages are in quarantine, but /health answers {health}");
        Ok(())
    }
}

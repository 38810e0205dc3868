//! The two processes and the proxy between them: starts, deaths, repairs, and the check that the pair is whole.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use super::Kill;
use super::clients::DEADLINE;
use super::proxy::Proxy;
use crate::client::{Metrics, complete, get, metrics};
use crate::deadline::STATE_WITHIN;
use crate::fixtures::Prompt;
use crate::process::{Process, start_receiver_with, until};

/// A pair with a proxy in its link.
pub(super) struct Parts {
    receiver: Process,
    sender: Process,
    proxy: Proxy,
    frontend: String,
    /// Settings of the receiver, for its replacement.
    settings: [String; 2],
    /// `UCX_TLS`, if set.
    lanes: Option<String>,
}

impl Parts {
    /// Starts both processes and waits until pages can travel.
    pub(super) fn start(lanes: Option<&str>) -> Result<Self> {
        // Below the ports that the kernel gives to connections, so that the port is free again after a kill. Each bench begins its
        // search at another port.
        static BENCHES: AtomicU32 = AtomicU32::new(0);
        let bench = std::process::id() + 4000 * BENCHES.fetch_add(1, Ordering::Relaxed);
        let first = 21_000 + (bench % 8000) as u16;
        let mut ports = (first..29_000).chain(21_000..first);
        let free = ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
        let settings = [
            format!("request.deadline={}s", DEADLINE.as_secs()),
            format!("link.port={}", free.context("no port is free")?),
        ];
        let receiver = start_receiver(&settings, lanes)?;
        let proxy = Proxy::start(receiver.address("link.port")?)?;
        let sender = start_sender(&proxy, lanes)?;
        receiver.wait_peers(1)?;
        sender.wait_peers(1)?;
        let frontend = receiver.address("frontend.port")?;
        let lanes = lanes.map(str::to_owned);
        Ok(Self { receiver, sender, proxy, frontend, settings, lanes })
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
            Kill::LinkCloses => self.proxy.close(),
            Kill::LinkStalls => self.proxy.stall(),
            Kill::ClientsMidStream | Kill::ClientsMidPrefill => {}
        }
        Ok(())
    }

    /// Replaces a dead process, continues a stopped one, or reopens the link.
    pub(super) fn repair(&mut self, kill: Kill) -> Result<()> {
        match kill {
            Kill::Sender => self.sender = start_sender(&self.proxy, self.lanes.as_deref())?,
            Kill::Receiver => {
                // The ports are free when the process has ended, shortly after the signal.
                self.receiver.wait()?;
                self.receiver = start_receiver(&self.settings, self.lanes.as_deref())?;
                self.frontend = self.receiver.address("frontend.port")?;
            }
            Kill::SenderStops => self.sender.signal("-CONT")?,
            Kill::LinkCloses | Kill::LinkStalls => self.proxy.heal(),
            Kill::ClientsMidStream | Kill::ClientsMidPrefill => {}
        }
        Ok(())
    }

    /// Waits until exactly these two processes hand over again, every page and credit is free, and both are healthy.
    pub(super) fn until_whole(&self, prompt: &Prompt) -> Result<()> {
        until("a request is handed over again", STATE_WITHIN, || {
            self.check_quarantine_health()?;
            let answer = complete(&self.frontend, &prompt.input(), 2)?;
            ensure!(prompt.ids.starts_with(&answer.ids), "wrong tokens with status 200: {:?}", answer.text);
            let timings = answer.timings;
            ensure!(timings["decode_pid"] == self.receiver.pid(), "another receiver: {timings}");
            let handed_over = timings["disaggregated"] == true;
            ensure!(!handed_over || timings["prefill_pid"] == self.sender.pid(), "another sender: {timings}");
            Ok(handed_over)
        })?;
        until("every page and credit is free", STATE_WITHIN, || {
            self.check_quarantine_health()?;
            let (receiver, sender) = (self.receiver_metrics()?, self.sender_metrics()?);
            let mismatches = receiver.get("baton_page_hash_mismatches_total")?;
            ensure!(mismatches == 0, "{mismatches} pages had a wrong hash");
            Ok(receiver.get("baton_pages_reserved")? == 0
                && receiver.get("baton_pages_live")? == 0
                && receiver.get("baton_pages_quarantined")? == 0
                && receiver.get("baton_pages_outstanding")? == 0
                && sender.get("baton_pages_live")? == 0
                && sender.get("baton_prefills_live")? == 0)
        })?;
        let senders = self.sender.address("http.port")?;
        for (address, process) in [(&self.frontend, &self.receiver), (&senders, &self.sender)] {
            let (status, health) = get(address, "/health")?;
            let healthy = status == 200 && health["status"] == "ok" && health["pid"] == process.pid();
            ensure!(healthy, "process {}: {status} {health}", process.pid());
        }
        Ok(())
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

fn start_receiver(settings: &[String; 2], lanes: Option<&str>) -> Result<Process> {
    let variables: Vec<_> = lanes.map(|lanes| ("UCX_TLS", lanes)).into_iter().collect();
    start_receiver_with(&settings.each_ref().map(String::as_str), &variables)
}

fn start_sender(proxy: &Proxy, lanes: Option<&str>) -> Result<Process> {
    let variables: Vec<_> = lanes.map(|lanes| ("UCX_TLS", lanes)).into_iter().collect();
    let peers = format!("link.peers={}", proxy.address());
    Process::start(&["--role", "sender", "--set", "http.port=0", "--set", &peers], &variables)
}

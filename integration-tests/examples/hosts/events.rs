//! The events, in their order, and the bounds that each has to keep.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration_tests::client::{get, metrics};
use integration_tests::deadline::STATE_WITHIN;
use integration_tests::process::until;
use integration_tests::statistics::quantile;

use crate::Plan;
use crate::cpu::Cpu;
use crate::etcd::Etcd;
use crate::fleet::{CLUSTER, Node, Proxy, http};
use crate::handover::{Begun, Handover};
use crate::load::{Asked, End, Load, questions};
use crate::network::{BRIDGE, Network};
use crate::table::{Table, seconds};
use crate::watch::{EVERY, Metric, Watch};

/// Maximum time until a request of a dead node has failed or is at another node.
const ACCOUNTED: Duration = Duration::from_secs(5);
/// Maximum time from the end of a session until its pages are free. Over TCP, the destruction of the receiver's own worker is proof, and it is a part
/// of this time.
const RETURNED: Duration = Duration::from_secs(1);
/// Maximum time until a node that is reachable again answers a request.
const USED: Duration = Duration::from_secs(10);
/// After this time without a report, a proxy sends a node no requests. Requests that begin earlier are at the victim.
const UNKNOWN_AFTER: Duration = actors::fleet::UNKNOWN_AFTER;
/// The least share of right answers among the requests that are not at victims.
const RIGHT: f64 = 0.95;

/// The nodes that events happen to.
const LEAVES: usize = 0;
const KILLED: usize = 1;
const CUT: usize = 2;

/// A node that stopped to answer.
struct Death {
    event: &'static str,
    host: usize,
    at: Instant,
    /// End of the time in which its effects are counted.
    end: Instant,
}

impl Death {
    /// Whether a request may have been at the node when it stopped to answer.
    fn concerns(&self, asked: &Asked) -> bool {
        asked.began < self.at + UNKNOWN_AFTER && asked.ended > self.at
    }
}

/// The fleet, its load, and the results so far.
pub(crate) struct Events {
    plan: Plan,
    table: Table,
    network: Network,
    watch: Watch,
    load: Load,
    handover: Handover,
    proxies: Vec<Proxy>,
    nodes: Vec<Option<Node>>,
    etcd: Etcd,
    /// The etcd's URL for the hosts.
    url: String,
    deaths: Vec<Death>,
    /// When the load began.
    cpu: Cpu,
    /// Logs of processes that have ended.
    old_logs: Vec<(String, String)>,
}

impl Events {
    /// Starts the network, etcd, the first nodes, the proxies and the load. `None` without an etcd.
    pub(crate) fn start(plan: Plan) -> Result<Option<Self>> {
        let network = Network::make(plan.first + plan.joining)?;
        let url = format!("http://{BRIDGE}:2379");
        let Some(etcd) = Etcd::start_with(&["--listen-client-urls", &url])? else { return Ok(None) };
        let started: Vec<_> = (0..plan.first)
            .map(|host| Node::spawn(&network, host, &url, plan.tls.as_deref()))
            .collect::<Result<_>>()?;
        let nodes = started.into_iter().enumerate();
        let nodes: Vec<_> =
            nodes.map(|(host, process)| Node::new(process, host).map(Some)).collect::<Result<_>>()?;
        let proxies = vec![Proxy::start(&url)?, Proxy::start(&url)?];
        proxies.iter().try_for_each(|proxy| proxy.wait_nodes(plan.first))?;
        let began = Instant::now();
        let questions = questions(plan.prompts, &http(0))?;
        let alone = plan.prompts as f64 / began.elapsed().as_secs_f64();
        let handover = Handover::new(&http(0))?;
        let peers = 2 * (plan.first as u64 - 1);
        nodes.iter().flatten().try_for_each(|node| wait_peers(node, peers))?;
        let watch = Watch::default();
        nodes.iter().flatten().for_each(|node| watch.add(&node.http()));
        proxies.iter().for_each(|proxy| watch.add(&proxy.frontend));
        let mut table = Table::default();
        table.note("start", "nodes", plan.first);
        table.note("start", "requests/s of one node without other load", format!("{alone:.1}"));
        table.note("start", "requests/s that clients send", format!("{:.1}", plan.rate));
        let frontends = proxies.iter().map(|proxy| proxy.frontend.clone()).collect();
        let load = Load::start(questions, frontends, plan.rate);
        let (deaths, old_logs, cpu) = (Vec::new(), Vec::new(), Cpu::now()?);
        Ok(Some(Self {
            plan,
            table,
            network,
            watch,
            load,
            handover,
            proxies,
            nodes,
            etcd,
            url,
            deaths,
            cpu,
            old_logs,
        }))
    }

    /// Runs all events.
    pub(crate) fn run(&mut self) -> Result<()> {
        self.pause();
        self.join().context("join")?;
        self.pause();
        self.leave().context("leave")?;
        self.pause();
        self.kill().context("kill -9")?;
        self.pause();
        self.cut().context("cut off")?;
        self.pause();
        self.outage().context("etcd stopped")?;
        self.pause();
        self.come_back().context("comes back")?;
        self.pause();
        self.stall().context("a proxy stops")?;
        self.pause();
        self.load.finish(self.plan.requests);
        self.check_survivors();
        let (own, others) = Cpu::now()?.since(&self.cpu);
        self.table.note(
            "end",
            "cores used: by the fleet, by other programs",
            format!("{own:.2}, {others:.2}"),
        );
        Ok(())
    }

    fn pause(&self) {
        sleep(self.plan.pause);
    }

    fn node(&self, host: usize) -> Result<&Node> {
        self.nodes[host].as_ref().with_context(|| format!("no node on host {}", host + 1))
    }

    /// Starts a node and returns the time until it has answered a request.
    fn start_node(&mut self, host: usize) -> Result<Duration> {
        let began = Instant::now();
        let node = Node::new(Node::spawn(&self.network, host, &self.url, self.plan.tls.as_deref())?, host)?;
        let healthy = Instant::now();
        self.table.note(
            &format!("host {} starts", host + 1),
            "time until it is healthy",
            seconds(began.elapsed()),
        );
        self.watch.add(&node.http());
        self.nodes[host] = Some(node);
        let name = format!("host {} starts", host + 1);
        let used = self.until_used(host, began);
        self.table.check_time(
            &name,
            "time from healthy until it has answered a request",
            used.map(|used| (began + used).saturating_duration_since(healthy)),
            USED,
        );
        Ok(began.elapsed())
    }

    /// Waits, at most 30 s, until a node has answered a request after `since`.
    fn until_used(&self, host: usize, since: Instant) -> Option<Duration> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let used = self.watch.first_answer(&http(host), since);
            if used.is_some() || Instant::now() > end {
                return used;
            }
            sleep(EVERY);
        }
    }

    /// Waits until a request runs on a node, and until it has handed over some but not all pages of a prompt to the last node.
    fn until_busy(&self, host: usize) -> Result<Begun> {
        let running = || Ok(get(&http(host), "/node")?.1["running"].as_u64().unwrap_or(0) > 0);
        until("a request runs on the node", STATE_WITHIN, running)?;
        let last = self.nodes.iter().flatten().next_back().context("a node runs")?;
        self.handover.begin(&last.http(), &http(host))
    }

    /// Reports the answer to the prompt whose prefiller has stopped.
    fn check_handover(&mut self, event: &str, begun: Begun) -> Result<()> {
        let is_right = begun.finish()?;
        self.table.check(event, "the prompt in transit has the right answer", is_right, "true", is_right);
        Ok(())
    }

    fn join(&mut self) -> Result<()> {
        let began = Instant::now();
        for host in self.plan.first..self.plan.first + self.plan.joining {
            self.nodes.push(None);
            self.start_node(host)?;
        }
        self.check_failures("join", began);
        Ok(())
    }

    fn leave(&mut self) -> Result<()> {
        let began = Instant::now();
        let mut node = self.nodes[LEAVES].take().context("the node runs")?;
        node.signal("-TERM")?;
        let status = node.process.wait()?;
        self.table.check("SIGTERM", "exit code", status, "0", status.code() == Some(0));
        self.table.note("SIGTERM", "time until the process has ended", seconds(began.elapsed()));
        self.old_logs.push(("node-1-left".to_owned(), node.process.log()));
        sleep(ACCOUNTED);
        self.check_failures("SIGTERM", began);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        let begun = self.until_busy(KILLED)?;
        let began = Instant::now();
        let node = self.nodes[KILLED].take().context("the node runs")?;
        node.signal("-KILL")?;
        sleep(2 * ACCOUNTED);
        self.old_logs.push(("node-2-killed".to_owned(), node.process.log()));
        self.deaths.push(Death { event: "kill -9", host: KILLED, at: began, end: Instant::now() });
        self.check_handover("kill -9", begun)
    }

    fn cut(&mut self) -> Result<()> {
        let begun = self.until_busy(CUT)?;
        let began = Instant::now();
        self.network.cut(CUT)?;
        sleep(self.plan.cut);
        let healed = Instant::now();
        self.network.heal(CUT)?;
        self.deaths.push(Death { event: "cut off", host: CUT, at: began, end: healed });
        self.check_handover("cut off", begun)?;
        let used = self.until_used(CUT, healed);
        self.table.check_time("healed", "time until it has answered a request", used, USED);
        let peers = 2 * (self.nodes.iter().flatten().count() as u64 - 1);
        wait_peers(self.node(CUT)?, peers)?;
        self.table.note("healed", "time until it has all sessions", seconds(healed.elapsed()));
        self.check_failures("healed", healed);
        Ok(())
    }

    fn outage(&mut self) -> Result<()> {
        let before = self.right_per_second(Instant::now() - self.plan.pause, Instant::now());
        let began = Instant::now();
        self.etcd.kill()?;
        sleep(self.plan.outage);
        let during = self.right_per_second(began, Instant::now());
        let back = Instant::now();
        self.etcd.restart_empty()?;
        let members = self.nodes.iter().flatten().count();
        self.etcd.until_keys(&format!("baton/v1/{CLUSTER}/"), members)?;
        self.table.note(
            "etcd stopped",
            "right answers/s before and during",
            format!("{before:.1}, {during:.1}"),
        );
        let registered = back.elapsed();
        self.table.note(
            "etcd empty",
            "time from its start until all nodes are registered",
            seconds(registered),
        );
        self.check_failures("etcd stopped", began);
        Ok(())
    }

    fn come_back(&mut self) -> Result<()> {
        let began = Instant::now();
        self.start_node(KILLED)?;
        let (node, members) = (self.node(KILLED)?, self.nodes.iter().flatten().count() as u64);
        wait_peers(node, 2 * (members - 1))?;
        self.table.note("comes back", "time until it has all sessions", seconds(began.elapsed()));
        self.check_failures("comes back", began);
        Ok(())
    }

    /// A proxy is stopped for longer than the silence after which it takes nodes for lost, as on a machine that pauses. The nodes live.
    fn stall(&mut self) -> Result<()> {
        const PROXY: usize = 0;
        let proxy = &self.proxies[PROXY];
        let busy = || Ok(metrics(&proxy.frontend)?.get("baton_proxy_requests_live")? > 0);
        until("a request runs on the proxy", STATE_WITHIN, busy)?;
        let began = Instant::now();
        proxy.process.signal("-STOP")?;
        sleep(actors::fleet::LOST_AFTER + Duration::from_secs(1));
        proxy.process.signal("-CONT")?;
        let back = Instant::now();
        sleep(ACCOUNTED);
        let asked = self.load.asked();
        let at =
            asked.iter().filter(|asked| asked.proxy == PROXY && asked.began < back && asked.ended > began);
        let (right, failed): (Vec<_>, Vec<_>) = at.partition(|asked| asked.is_right());
        let counts = format!("{}, {}", right.len(), failed.len());
        self.table.note("a proxy stops 4 s", "requests at this proxy: right, failed", counts);
        Ok(())
    }

    /// Right answers that ended between two times, per second.
    fn right_per_second(&self, since: Instant, end: Instant) -> f64 {
        let asked = self.load.asked();
        let right =
            asked.iter().filter(|asked| asked.is_right() && asked.ended > since && asked.ended <= end);
        right.count() as f64 / (end - since).as_secs_f64()
    }

    /// Whether a request may have been at a node when it stopped to answer.
    fn is_of_victim(&self, asked: &Asked) -> bool {
        self.deaths.iter().any(|death| death.concerns(asked))
    }

    /// Reports the requests that have failed since then.
    fn check_failures(&mut self, event: &str, since: Instant) {
        let asked = self.load.asked();
        let failed = asked.iter().filter(|asked| asked.ended > since && !asked.is_right());
        let elsewhere = failed.filter(|asked| !self.is_of_victim(asked)).count();
        self.table.note(event, "requests failed that were not at a victim", elsewhere);
    }

    /// Reports what a death has cost.
    fn check_death(&mut self, death: &Death, asked: &[Asked]) {
        let (event, died) = (death.event, death.at);
        let concerned: Vec<_> = asked.iter().filter(|asked| death.concerns(asked)).collect();
        let failed = concerned.iter().filter(|asked| !asked.is_right()).count();
        let counts = format!("{}, {failed}", concerned.len());
        self.table.note(event, "requests that may have been at the victim: all, failed", counts);
        let last = concerned.iter().map(|asked| asked.ended - died).max();
        let what = "time until the last of them was answered";
        self.table.check_time(event, what, Some(last.unwrap_or_default()), ACCOUNTED);
        let moved = self.watch.last_rise(&[Metric::Retries, Metric::Recomputes], died, death.end);
        let what = "time until the last request was sent to another node";
        self.table.check_time(event, what, Some(moved.unwrap_or_default()), ACCOUNTED);
        let (pages, longest) = self.watch.quarantine(&http(death.host), died, death.end);
        self.table.note(event, "most pages in quarantine at a survivor, in samples", pages);
        let what = "longest quarantine at a survivor, in samples";
        self.table.check_time(event, what, Some(longest), RETURNED + EVERY);
        let growth = |metric| self.watch.growth(metric, &http(death.host), died, death.end);
        let lost: u64 = growth(Metric::Lost).iter().sum();
        let micros = growth(Metric::QuarantineMicros).into_iter().max().unwrap_or_default();
        self.table.check(event, "pages that were quarantined at survivors", lost, "> 0", lost > 0);
        let what = "time from the end of a session until its pages are free";
        self.table.check_time(event, what, Some(Duration::from_micros(micros)), RETURNED);
    }

    /// Checks that no survivor was started again.
    fn check_survivors(&mut self) {
        let nodes = self.nodes.iter().flatten().filter(|node| node.host != KILLED);
        let (mut same, mut all) = (0, 0);
        for node in nodes {
            all += 1;
            match node.check_same() {
                Ok(()) => same += 1,
                Err(error) => eprintln!("host {}: {error:#}", node.host + 1),
            }
        }
        let value = format!("{same} of {all}");
        self.table.check("end", "survivors with their first process", value, "all", same == all);
    }

    /// Stops the load, adds the totals, and returns the table.
    pub(crate) fn finish(mut self) -> Table {
        self.load.stop();
        self.watch.stop();
        let asked = self.load.asked();
        for death in std::mem::take(&mut self.deaths) {
            self.check_death(&death, &asked);
            self.deaths.push(death);
        }
        self.print_failures(&asked);
        let count = |is: &dyn Fn(&Asked) -> bool| asked.iter().filter(|asked| is(asked)).count();
        let right = count(&Asked::is_right);
        let wrong = count(&|asked| matches!(asked.end, End::Wrong(_)));
        let handed_over = count(&|asked| asked.end == End::Right { handed_over: true });
        let outside = count(&|asked| asked.is_right() || !self.is_of_victim(asked));
        for (address, finished) in self.watch.finished() {
            self.table.note("end", &format!("requests finished by {address}"), finished);
        }
        let share = right as f64 / outside.max(1) as f64;
        let enough = asked.len() >= self.plan.requests;
        let table = &mut self.table;
        table.check("end", "requests", asked.len(), &format!(">= {}", self.plan.requests), enough);
        table.check("end", "answers 200 with wrong ids", wrong, "0", wrong == 0);
        table.note("end", "right answers whose prompt another node prefilled", handed_over);
        let value = format!("{:.2} %", share * 100.0);
        table.check(
            "end",
            "right answers among the requests outside the victims",
            value,
            ">= 95 %",
            share >= RIGHT,
        );
        let times: Vec<f64> = asked.iter().map(|asked| asked.time().as_secs_f64()).collect();
        if !times.is_empty() {
            let [half, most, all] = [0.5, 0.99, 1.0].map(|part| quantile(times.clone(), part));
            let value = format!("{half:.2} / {most:.2} / {all:.2}");
            table.note("end", "seconds per request: median, 99 %, worst", value);
        }
        self.table
    }

    /// Prints the requests that have failed.
    fn print_failures(&self, asked: &[Asked]) {
        for asked in asked.iter().filter(|asked| !asked.is_right()) {
            let (at, time) = (self.load.since_start(asked.began), asked.time());
            println!("failed: began at {}, took {}: {:?}", seconds(at), seconds(time), asked.end);
        }
        for death in &self.deaths {
            println!("{} at {}", death.event, seconds(self.load.since_start(death.at)));
        }
    }

    /// Writes the logs of all processes.
    pub(crate) fn write_logs(&self) -> Result<()> {
        let Some(folder) = &self.plan.logs else { return Ok(()) };
        std::fs::create_dir_all(folder)?;
        let write = |name: &str, log: &str| std::fs::write(folder.join(format!("{name}.log")), log);
        self.old_logs.iter().try_for_each(|(name, log)| write(name, log))?;
        let nodes = self.nodes.iter().flatten();
        nodes
            .into_iter()
            .try_for_each(|node| write(&format!("node-{}", node.host + 1), &node.process.log()))?;
        let proxies = self.proxies.iter().enumerate();
        proxies
            .into_iter()
            .try_for_each(|(n, proxy)| write(&format!("proxy-{}", n + 1), &proxy.process.log()))?;
        Ok(())
    }
}

/// Waits until a node has this number of sessions.
fn wait_peers(node: &Node, sessions: u64) -> Result<()> {
    node.process.wait_peers(sessions)?;
    ensure!(sessions > 0, "a fleet has two nodes");
    Ok(())
}

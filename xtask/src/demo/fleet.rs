//! `cargo xtask demo --fleet`: starts seven processes, sends them a burst of requests, kills a receiver during a second burst, and shows what
//! happened.
//!
//! The logs of seven processes would hide the few lines of the demo, so they go to files.

mod burst;
mod etcd;
mod layout;
mod loss;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::child::{self, Child, Log};
use super::client::{self, Metrics};
use super::group::Group;
use super::options::Options;
use super::screen::Screen;
use crate::place;
use burst::{AT_ONCE, Burst, Progress, REQUESTS, Served};
use etcd::Etcd;
use layout::{Layout, Member};
use loss::{Kill, Loss};
use table::{Row, Table};

/// The process that is killed. A receiver has answers that have begun and requests that have not, so both cases show.
const VICTIM: &str = "receiver-2";
/// The process is killed once so many requests of the burst are over and it decodes others.
const KILL_FROM: usize = REQUESTS / 4;
/// It is killed when so many are over, also if it decodes nothing.
const KILL_BY: usize = REQUESTS * 3 / 4;
/// The proxy notices a lost node within about 1 s, and later on a busy machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);
/// Defaults of the demo for processes with an engine. The environment overrides them. Six engines share the cores and the memory.
const ENGINE: [(&str, &str); 2] = [("BATON_ENGINE__THREADS", "1"), ("BATON_ENGINE__KV_BYTES", "256MiB")];

/// Runs the demo of a fleet.
///
/// # Errors
/// A step fails, a request fails for another reason than the killed process, or no prompt is handed over.
pub(super) fn run(options: &Options) -> Result<()> {
    let (layout, has_etcd) = (Layout::new(options.port_base), Etcd::is_installed());
    layout.require_free(has_etcd)?;
    let runtime = super::prepare(options)?;
    let screen = Screen::new();
    let mut fleet = Fleet::launch(&runtime, layout, has_etcd, &screen)?;
    fleet.wait_until_ready()?;
    fleet.show_burst()?;
    fleet.show_kill()?;
    if options.once {
        return fleet.group.stop();
    }
    screen.print_line(&format!("{}\n\nserving until Ctrl-C", super::curl_line(fleet.layout.proxy)));
    fleet.group.serve()
}

/// The running processes.
struct Fleet<'a> {
    group: Group,
    /// It ends after the others.
    _etcd: Option<Etcd>,
    layout: Layout,
    /// The process ids of the members, in the order of the layout.
    pids: Vec<u32>,
    screen: &'a Screen,
    start: Instant,
}

impl<'a> Fleet<'a> {
    fn launch(runtime: &Path, layout: Layout, has_etcd: bool, screen: &'a Screen) -> Result<Self> {
        let logs = logs()?;
        screen.print_line(&format!(
            "starting a fleet from {}; its logs are in {}\n",
            runtime.display(),
            logs.display()
        ));
        let mut group = Group::new(screen);
        let etcd = if has_etcd { Some(Etcd::start(&layout, &logs)?) } else { None };
        let start = Instant::now();
        let mut add = |name: &str, arguments: Vec<String>, ports: String| -> Result<()> {
            let mut command = Command::new(runtime);
            command.args(arguments);
            command.envs(
                ENGINE.into_iter().filter(|(key, _)| name != "proxy" && std::env::var_os(key).is_none()),
            );
            let child = Child::start(name, command, Log::File(logs.join(format!("{name}.log"))))?;
            screen.print_line(&format!("  {name:<12}pid {:<8} {ports}", child.pid()));
            group.add(child);
            Ok(())
        };
        for member in &layout.members {
            let link = member.link.map_or_else(String::new, |link| format!(", link {link}"));
            add(member.name, layout.of_member(member, has_etcd), format!("HTTP {}{link}", member.http))?;
        }
        // The last process is ended first. So the proxy sends no requests to processes that end.
        add("proxy", layout.of_proxy(has_etcd), format!("HTTP {}", layout.proxy))?;
        screen.print_line(&match has_etcd {
            true => format!("\nThey find each other in an etcd at {}.", layout.etcd_url()),
            false => {
                "\nThey find each other by lists of addresses, because the program `etcd` is not in PATH."
                    .into()
            }
        });
        let pids = layout.members.iter().map(|member| group.pid(member.name)).collect::<Result<_>>()?;
        Ok(Self { group, _etcd: etcd, layout, pids, screen, start })
    }

    /// Waits until the proxy has found all processes and they are connected.
    fn wait_until_ready(&mut self) -> Result<()> {
        let layout = &self.layout;
        self.group.wait_until_ready(|| missing(layout).unwrap_or_else(|error| Some(format!("{error:#}"))))?;
        self.screen.print_line(&format!(
            "All are ready after {:.1} s: the proxy sees {} processes that decode, and {} sessions connect them with those that prefill.\n",
            self.start.elapsed().as_secs_f64(),
            layout.decoders(),
            layout.sessions()
        ));
        Ok(())
    }

    /// The first burst: nothing is killed.
    fn show_burst(&mut self) -> Result<()> {
        self.screen.print_line(&format!("First burst: {REQUESTS} requests to the proxy, {AT_ONCE} at once."));
        let before = self.computed(None)?;
        let (burst, ()) = burst::run(self.layout.proxy, 0..REQUESTS, |_| ());
        self.check(&burst, None)?;
        let table = self.table(&burst, &before, None)?;
        self.screen.print_line(&format!(
            "  {} answered in {:.1} s. {} prompts were prefilled in one process and decoded in another.\n\n{table}\n",
            burst.answers.len(),
            burst.seconds,
            table.handed_over()
        ));
        ensure!(
            table.handed_over() > 0,
            "no prompt was handed over: each process prefilled the prompts that it decoded"
        );
        Ok(())
    }

    /// The second burst, in which a process is killed.
    fn show_kill(&mut self) -> Result<()> {
        let (proxy, pid) = (self.layout.proxy, self.group.pid(VICTIM)?);
        self.screen.print_line(&format!(
            "Second burst: {REQUESTS} other requests. SIGKILL ends {VICTIM} meanwhile."
        ));
        let before = self.computed(None)?;
        let retries = || Metrics::get(proxy)?.value("baton_proxy_retries_total");
        let retries_before = retries()?;
        let (group, layout) = (&mut self.group, &self.layout);
        let (burst, kill) =
            burst::run(proxy, REQUESTS..2 * REQUESTS, |progress| kill_during(group, layout, progress));
        self.group.require_unasked()?;
        let kill = kill?;
        self.check(&burst, Some(kill.at))?;
        let table = self.table(&burst, &before, Some(VICTIM))?;
        let loss = Loss {
            name: VICTIM,
            pid,
            kill,
            retries: retries()? - retries_before,
            decoders: self.layout.decoders(),
        };
        self.screen.print_line(&format!("{}\n\n{table}\n", loss.summary(&burst)));
        Ok(())
    }

    /// Prompt tokens that each member has computed since its start; `None` for the killed one.
    fn computed(&self, killed: Option<&str>) -> Result<Vec<Option<u64>>> {
        let of = |member: &Member| match Some(member.name) == killed {
            true => Ok(None),
            false => Metrics::get(member.http)?.value("baton_prompt_tokens_computed_total").map(Some),
        };
        self.layout.members.iter().map(of).collect()
    }

    /// What each process did in a burst. `before` has the tokens that were computed until then.
    fn table(&self, burst: &Burst, before: &[Option<u64>], killed: Option<&str>) -> Result<Table> {
        let after = self.computed(killed)?;
        let members = self.layout.members.iter().zip(&self.pids);
        let rows = members.zip(before.iter().zip(after)).map(|((member, pid), (before, after))| {
            let (pid, answers) = (u64::from(*pid), burst.answers.iter());
            let is_for_others = |served: &&Served| served.prefill_pid == pid && served.is_handed_over();
            Row {
                name: member.name,
                answers: answers.clone().filter(|served| served.decode_pid == pid).count(),
                for_others: answers.filter(is_for_others).count(),
                tokens: after.zip(*before).map(|(after, before)| after - before),
            }
        });
        Ok(Table(rows.collect()))
    }

    /// Fails if a request failed for another reason than the process that was killed at `killed`.
    fn check(&mut self, burst: &Burst, killed: Option<Instant>) -> Result<()> {
        self.group.require_unasked()?;
        let verdict = loss::judge(burst, killed);
        if verdict.is_err() {
            // If a process has ended, that is the error to report.
            self.group.explain()?;
        }
        verdict
    }
}

/// The empty folder for logs.
fn logs() -> Result<PathBuf> {
    let logs = place::target().join("demo-fleet");
    if logs.exists() {
        fs::remove_dir_all(&logs).with_context(|| format!("cannot empty {}", logs.display()))?;
    }
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    Ok(logs)
}

/// What is missing until the fleet is ready.
fn missing(layout: &Layout) -> Result<Option<String>> {
    let ready = nodes_ready(layout.proxy)?;
    let mut ends = 0;
    for member in &layout.members {
        ends += Metrics::get(member.http)?.value("baton_sessions_ready")?;
    }
    let is_ready = ready == layout.decoders() && ends == 2 * layout.sessions();
    let found = || {
        let (decoders, sessions) = (layout.decoders(), layout.sessions());
        format!(
            "the proxy sees {ready} of {decoders} processes that decode, and {} of {sessions} sessions are ready",
            ends / 2
        )
    };
    Ok((!is_ready).then(found))
}

fn nodes_ready(proxy: u16) -> Result<u64> {
    client::report(proxy, "/health")?["nodes_ready"]
        .as_u64()
        .context("the proxy's /health has no nodes_ready")
}

/// Kills the process while it decodes, and waits until the proxy counts one node less.
fn kill_during(group: &mut Group, layout: &Layout, progress: &Progress) -> Result<Kill> {
    let victim = layout.members.iter().find(|member| member.name == VICTIM).context("no process to kill")?;
    let decodes =
        || -> Result<bool> { Ok(client::report(victim.http, "/node")?["decoding"].as_u64() > Some(0)) };
    while progress.over() < KILL_FROM || (progress.over() < KILL_BY && !decodes()?) {
        ensure!(child::asked_to_end().is_none(), "interrupted before the demo was complete");
        group.require_alive()?;
        thread::sleep(POLL);
    }
    let (at, over) = (Instant::now(), progress.over());
    group.kill(VICTIM);
    let expect = layout.decoders() - 1;
    // A single look may fail on a busy machine.
    while nodes_ready(layout.proxy).ok() != Some(expect) {
        let limit = NOTICED_WITHIN.as_secs();
        ensure!(
            at.elapsed() < NOTICED_WITHIN,
            "the proxy has not noticed the end of {VICTIM} within {limit} s"
        );
        thread::sleep(POLL);
    }
    Ok(Kill { at, over, noticed: at.elapsed() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_killed_process_is_a_member_that_decodes() {
        let layout = Layout::new(None);
        assert!(layout.members.iter().any(|member| member.name == VICTIM && member.link.is_some()));
    }
}

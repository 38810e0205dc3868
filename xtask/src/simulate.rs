//! `cargo xtask sim` runs the simulator. `cargo xtask mutants` checks that the simulator detects broken rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::place;

mod fleet;
mod shards;

const BUILD: [&str; 5] = ["build", "--locked", "-p", "integration-tests", "--bin=sim"];
/// The arguments of the simulator for a mutant: the first seed and the number of histories (simulated runs).
const HISTORIES: &[&str] = &["--seed", "1", "--histories", "20000"];

/// A change at one place of the source that breaks one rule.
struct Mutant {
    rule: &'static str,
    file: &'static str,
    /// Occurs in the file exactly once.
    from: &'static str,
    to: &'static str,
    /// The arguments of the simulator.
    histories: &'static [&'static str],
}

const fn mutant(rule: &'static str, file: &'static str, from: &'static str, to: &'static str) -> Mutant {
    Mutant { rule, file, from, to, histories: HISTORIES }
}

fn all() -> impl Iterator<Item = &'static Mutant> {
    MUTANTS.iter().chain(shards::MUTANTS).chain(fleet::MUTANTS)
}

const MUTANTS: &[Mutant] = &[
    mutant(
        "skip the credit check",
        "connector/src/ring.rs",
        "if first.0 != self.tail {",
        "if first.0 > u64::MAX - 1 {",
    ),
    mutant(
        "release pages without proof that the peer has stopped writing",
        "actors/src/peer_link/state/proof.rs",
        "Direction::Incoming { close_is_proof: false, .. } => return None,",
        "Direction::Incoming { close_is_proof: false, .. } if self.closing => return None,",
    ),
    mutant(
        "take the end of our worker for proof on every lane",
        "actors/src/peer_link/state/proof.rs",
        "if ends_with_worker(lane) {",
        "if ends_with_worker(lane) || !lane.is_empty() {",
    ),
    mutant(
        "grant credits before the lane is named",
        "actors/src/peer_link/state.rs",
        "vec![to::sockets(SayWelcome { connection, session, descriptor })]",
        "vec![to::buffer_manager(live.opened(session)), to::sockets(SayWelcome { connection, session, descriptor })]",
    ),
    mutant(
        "accept any Hello as proof that the old session can no longer write",
        "actors/src/peer_link/state/proof.rs",
        "|| (drained && peer.number == previous))",
        "|| peer.number == previous)",
    ),
    mutant(
        "free a lost session's pages at once",
        "actors/src/buffer_manager/state/landing.rs",
        "        let mut effects = self.quarantine_changed();\n        if",
        "        let mut effects = self.on_session_drained(now, SessionDrained { session });\n        if",
    ),
    mutant(
        "never again place a request that waits for room",
        "actors/src/decoder/state/ending.rs",
        "effects.extend(self.place_waiting());",
        "",
    ),
    mutant(
        "forget a first token that was held",
        "actors/src/decoder/state/entry.rs",
        "self.held = self.delivery(token);",
        "drop(self.delivery(token));",
    ),
    mutant(
        "announce pages before the flush completes",
        "actors/src/transfer/state/session.rs",
        "let is_whole = |put: &&Put| put.credit.0 < flushed && put.is_over();",
        "let is_whole = |put: &&Put| (put.credit.0 < flushed || put.is_done()) && put.is_over();",
    ),
    mutant(
        "reserve more pages for a transfer than the pool has",
        "actors/src/buffer_manager/state/serving.rs",
        "cost + credit <= unclaimed && credit <= self.rings.room()",
        "(credit == 1 || cost <= unclaimed) && credit <= self.rings.room()",
    ),
    mutant(
        "ask the sender before pages are reserved",
        "actors/src/decoder/state.rs",
        "self.begin(request, placement, ReservePriority::New)",
        "let (sequence, landing) = (SequenceId::Own(request), self.pages_for(self.requests[&request].generate.prompt.len()));\n        \
         let early = PagesReserved { sequence, resident: 0, landing, pages: Vec::new() };\n        \
         let asked: Vec<Effect> = self.begin(request, placement, ReservePriority::New);\n        \
         [asked, self.on_reserved(now, early)].concat()",
    ),
    mutant(
        "skip the hash check",
        "actors/src/buffer_manager/state/landing.rs",
        "if !hasher.is_none_or(is_whole) {",
        "if hasher.is_some_and(|hasher| !is_whole(hasher) && filled.count == 0) {",
    ),
    mutant(
        "accept a Hello after a newer one has been read",
        "actors/src/peer_link/state/proof.rs",
        "if hello.number < youngest {",
        "if hello.number < 1 {",
    ),
    mutant(
        "release pages that the engine still uses",
        "actors/src/decoder/state/ending.rs",
        "return vec![self.ended(request, event), stop];",
        "return [vec![stop, self.ended(request, event)], self.forget(request)].concat();",
    ),
    mutant(
        "release pages that puts still read",
        "actors/src/transfer/state.rs",
        "if live.is_drained(request) { vec![drained(session, request)] } else { Vec::new() }",
        "vec![drained(session, request)]",
    ),
    mutant(
        "forget a lost sender's requests",
        "actors/src/decoder/state.rs",
        "lost.into_iter().flat_map(|request| self.recover(request, PrefillOutcome::Failed)).collect()",
        "drop(lost);\n        Vec::new()",
    ),
    mutant(
        "evict pages that are in use",
        "actors/src/buffer_manager/state.rs",
        "            self.cache.on_used(*page);\n",
        "",
    ),
    mutant(
        "use the next page before it is reserved",
        "actors/src/generator/state.rs",
        "next as u64 <= sequence.pages.len() as u64 * u64::from(self.page_tokens)",
        "next as u64 <= (sequence.pages.len() as u64 + 1) * u64::from(self.page_tokens)",
    ),
    mutant(
        "sample more rows than the engine accepts",
        "actors/src/generator/state.rs",
        "let mut rows = self.limits.rows;",
        "let mut rows = self.limits.tokens;",
    ),
    mutant(
        "when a step is refused, use the result of the next step",
        "actors/src/generator/state.rs",
        "self.flights.iter_mut().for_each(|next| next.is_void = true);",
        "",
    ),
    mutant(
        "follow a failed step",
        "actors/src/generator/state.rs",
        "if flight.is_void || flight.parts.len()",
        "if flight.parts.len()",
    ),
    mutant(
        "advance past a late row",
        "actors/src/generator/state.rs",
        "sequence.is_late) = (computed - 1, 0, true);",
        "sequence.is_late) = (computed, 0, true);",
    ),
    mutant(
        "run ahead of a late row",
        "actors/src/generator/state.rs",
        "(sequence.resident, sequence.flights, sequence.is_late) = (computed - 1, 0, true);\n                \
         self.flights.iter_mut().for_each(|next| next.parts.retain(|(part, _)| *part != key));",
        "(sequence.resident, sequence.is_late) = (computed - 1, true);",
    ),
    mutant(
        "ignore deadlines",
        "actors/src/decoder/state/ending.rs",
        ".filter(|(_, entry)| now >= entry.generate.deadline && ",
        ".filter(|(_, entry)| now < entry.admitted && ",
    ),
    mutant(
        "forget emitted tokens when a request is recomputed",
        "actors/src/decoder/state/entry.rs",
        "self.generate.prompt.iter().chain(&self.emitted).copied().collect()",
        "self.generate.prompt.clone()",
    ),
    mutant(
        "find cached pages of another salt",
        "actors/src/buffer_manager/prefix_cache.rs",
        "Parent::Root(salt) => self.roots.get(&salt)?,",
        "Parent::Root(salt) => self.roots.get(&salt).or_else(|| self.roots.values().next())?,",
    ),
    mutant(
        "announce pages with a salt to routers",
        "actors/src/buffer_manager/prefix_cache.rs",
        "            Parent::Root(Some(_)) => return None,\n",
        "            Parent::Root(Some(_)) => None,\n",
    ),
    mutant(
        "do not tell routers about evicted pages",
        "actors/src/buffer_manager/prefix_cache.rs",
        "            events.removed(hash);\n",
        "            let _ = (hash, events);\n",
    ),
    mutant(
        "ignore the salt of a receiver's request",
        "actors/src/peer_link/state/frames.rs",
        "let salt = salt.map(CacheSalt);",
        "let salt = salt.map(CacheSalt).filter(|_| session.0 == 0);",
    ),
    mutant(
        "prefill before the grammar is compiled",
        "actors/src/prefiller/state.rs",
        "let compiling = |hash| Phase::Compiling(hash, deadline.min(now + COMPILING_MAX));",
        "let compiling = |_| Phase::Reserving;",
    ),
    mutant(
        "use another grammar of the session",
        "actors/src/prefiller/state/grammars.rs",
        "of_session.find(|(_, stored)| stored.hash == hash)",
        "of_session.find(|(_, stored)| stored.hash == hash || session.0 > 0)",
    ),
    mutant(
        "drop an effect: SessionDrained",
        "actors/src/peer_link/state/proof.rs",
        "Direction::Incoming { .. } => Some(to::buffer_manager(SessionDrained { session })),",
        "Direction::Incoming { .. } => None,",
    ),
    mutant(
        "drop an effect: PeerLost to the decoder",
        "actors/src/peer_link/state.rs",
        "vec![to::proxy(lost), to::decoder(lost), to::buffer_manager(lost)]",
        "vec![to::proxy(lost), to::buffer_manager(lost)]",
    ),
    mutant(
        "adopt a page from any session",
        "actors/src/buffer_manager/state/landing.rs",
        "(holding.from == Some(session)).then_some",
        "(holding.from.is_some()).then_some",
    ),
    mutant(
        "reserve pages for a transfer although its first credit has no room",
        "actors/src/buffer_manager/state/serving.rs",
        "Some(ring) if ring.outstanding() == 0 => 1,",
        "Some(ring) if ring.outstanding() > u32::MAX - 1 => 1,",
    ),
    mutant(
        "promise pages that lost sessions may still write",
        "actors/src/buffer_manager/state.rs",
        "self.config.pages.saturating_sub(self.config.ring_pages + quota + self.rings.lasting())",
        "self.config.pages.saturating_sub(self.config.ring_pages + quota)",
    ),
    mutant(
        "let a peer's prompt wait for pages",
        "actors/src/buffer_manager/state/serving.rs",
        "            return denied(PagesDenied { sequence, needed, usable });\n",
        "            self.waiting.push_back(reserve);\n            \
         let _ = (sequence, PagesDenied { sequence, needed, usable });\n            \
         let (pages, usable, quarantined) = (self.config.pages, self.usable(), self.rings.quarantined());\n            \
         return to::proxy(crate::messages::RoomChanged { pages, usable, quarantined });\n",
    ),
    mutant(
        "let peers' prompts wait in the queue of own requests",
        "actors/src/buffer_manager/state.rs",
        "if let (SequenceId::Peer(_), Some(_)) = (reserve.sequence, self.config.prefill_pages) {",
        "if let (SequenceId::Peer(_), Some(u32::MAX)) = (reserve.sequence, self.config.prefill_pages) {",
    ),
    mutant(
        "give the pages of peers' prompts to credits and own requests",
        "actors/src/buffer_manager/state.rs",
        "self.unclaimed().saturating_sub(self.quota())",
        "self.unclaimed()",
    ),
    mutant(
        "let a peer's prompt wait for credits for ever",
        "actors/src/prefiller/state/ending.rs",
        "now.saturating_duration_since(since(*session)) >= NO_CREDIT_MAX",
        "now.saturating_duration_since(since(*session)) == Duration::MAX",
    ),
    mutant(
        "expect pages for a request that is computed here",
        "actors/src/buffer_manager/state.rs",
        "(mem::take(&mut holding.landing), holding.from.take());",
        "(mem::take(&mut holding.landing), holding.from);",
    ),
    mutant(
        "replace more pages than were expected",
        "actors/src/buffer_manager/state.rs",
        "let pages: Vec<PageId> = self.take(landing).into_iter().map(PageId).collect();",
        "let pages: Vec<PageId> = self.take(landing + 1).into_iter().map(PageId).collect();",
    ),
    mutant(
        "begin a session with the own process",
        "actors/src/peer_link/state/dialling.rs",
        "if incarnation == own {",
        "if incarnation == own && sessions == 0 {",
    ),
    mutant(
        "prefill here although only peers may prefill",
        "actors/src/decoder/state/placing.rs",
        "if !entry.may_fall_back {\n            let session = *session;",
        "if !entry.may_fall_back && entry.emitted.len() > 1 {\n            let session = *session;",
    ),
    mutant(
        "forget a session that may still write",
        "actors/src/peer_link/dialler.rs",
        "record.live.is_none() && record.previous_drained",
        "record.live.is_none()",
    ),
    mutant(
        "treat an earlier session as drained because a later one is",
        "actors/src/peer_link/dialler.rs",
        " && !record.has_unproved;",
        ";",
    ),
    mutant(
        "report that no lost session has outstanding credits",
        "actors/src/buffer_manager/state/landing.rs",
        "if !self.rings.is_quarantined(session) {",
        "if session.0 > 0 {",
    ),
    mutant(
        "drop an effect: PeerLost to the buffer manager",
        "actors/src/peer_link/state.rs",
        "vec![to::proxy(lost), to::decoder(lost), to::buffer_manager(lost)]",
        "vec![to::proxy(lost), to::decoder(lost)]",
    ),
    mutant(
        "deliver an effect twice: StartSequence",
        "actors/src/decoder/state/entry.rs",
        "vec![to::buffer_manager(computed), self.start(resident, pages)]",
        "vec![to::buffer_manager(computed), self.start(resident, pages.clone()), self.start(resident, pages)]",
    ),
    mutant(
        "deliver an effect twice: Grant",
        "actors/src/buffer_manager/state/serving.rs",
        "effects.push(frame(session, Frame::Grant { first, pages: pages.to_vec() }));",
        "effects.push(frame(session, Frame::Grant { first, pages: pages.to_vec() }));\n                        \
         effects.push(frame(session, Frame::Grant { first, pages: pages.to_vec() }));",
    ),
    mutant(
        "swap two recipients: PagesReserved",
        "actors/src/buffer_manager/state/serving.rs",
        "SequenceId::Own(_) => to::decoder(reserved),\n        SequenceId::Peer(_) => to::prefiller(reserved),",
        "SequenceId::Own(_) => to::prefiller(reserved),\n        SequenceId::Peer(_) => to::decoder(reserved),",
    ),
    mutant(
        "swap two recipients: SequenceAdvanced",
        "actors/src/generator/state.rs",
        "SequenceId::Own(_) => to::decoder(event),\n        SequenceId::Peer(_) => to::prefiller(event),",
        "SequenceId::Own(_) => to::prefiller(event),\n        SequenceId::Peer(_) => to::decoder(event),",
    ),
];

/// Runs the simulator with these arguments.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let status = place::cargo().args(BUILD).status().context("cannot start cargo")?;
    ensure!(status.success(), "the simulator does not build");
    let program = place::target().join("debug/sim");
    let status = Command::new(&program).args(arguments).status().context("cannot start the simulator")?;
    ensure!(status.success(), "the simulator ended with {status}");
    Ok(())
}

/// For each rule: breaks the rule in a copy of the tree, then runs histories until one fails. If `named` is not empty, only rules whose
/// names contain one of its words are broken.
pub(crate) fn mutants(named: &[String]) -> Result<()> {
    // Mutants get their own target folder. In a shared one, cargo would mistake a mutant's build for a build of the tree.
    let (tree, target) = (place::target().join("mutants/tree"), place::target().join("mutants/target"));
    println!("{:<68} {:>17} {:>8}", "broken rule", "passed histories", "seconds");
    let mut undetected = Vec::new();
    let wanted = |mutant: &&Mutant| named.is_empty() || named.iter().any(|part| mutant.rule.contains(part));
    let build = |rule: &str| -> Result<()> {
        let mut cargo = place::cargo();
        cargo.args(BUILD).current_dir(&tree).env("CARGO_TARGET_DIR", &target).stderr(Stdio::piped());
        let built = cargo.output().context("cannot start cargo")?;
        let errors = String::from_utf8_lossy(&built.stderr);
        ensure!(built.status.success(), "{rule:?} does not build:\n{errors}");
        Ok(())
    };
    let simulate = |rule: &str, histories: &[&str]| -> Result<Option<String>> {
        let began = Instant::now();
        let mut sim = Command::new(target.join("debug/sim"));
        let output = sim.args(histories).output().context("cannot start the simulator")?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let passed = printed.split(' ').next().unwrap_or_default();
        println!("{rule:<68} {passed:>17} {:>8.1}", began.elapsed().as_secs_f64());
        Ok((!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    // A failure counts as noticed only if the unbroken tree has none.
    copy_tree(&tree)?;
    build("the unbroken tree")?;
    let histories: BTreeSet<&[&str]> = all().filter(wanted).map(|mutant| mutant.histories).collect();
    for histories in histories {
        if let Some(errors) = simulate("none", histories)? {
            bail!("the simulator finds a fault in the unbroken tree:\n{errors}");
        }
    }
    for mutant in all().filter(wanted) {
        copy_tree(&tree)?;
        let path = tree.join(mutant.file);
        let text = fs::read_to_string(&path).with_context(|| mutant.file.to_owned())?;
        fs::write(&path, broken(&text, mutant)?)?;
        build(mutant.rule)?;
        let Some(errors) = simulate(mutant.rule, mutant.histories)? else {
            undetected.push(mutant.rule);
            continue;
        };
        let is_reason = |line: &&str| ["seed", "panicked", "broken"].iter().any(|word| line.contains(word));
        let reason = errors.lines().find(is_reason).or(errors.lines().next()).unwrap_or_default();
        println!("    {}", reason.trim_start_matches("Error: "));
    }
    if !undetected.is_empty() {
        bail!("the simulator did not detect: {}", undetected.join("; "));
    }
    Ok(())
}

fn broken(text: &str, mutant: &Mutant) -> Result<String> {
    let count = text.matches(mutant.from).count();
    ensure!(
        count == 1,
        "{} contains {:?} {count} times, but the mutant {:?} needs it exactly once",
        mutant.file,
        mutant.from,
        mutant.rule
    );
    Ok(text.replacen(mutant.from, mutant.to, 1))
}

/// Copies the files that a build of the workspace needs. Copies only changed files, so that little is rebuilt.
fn copy_tree(to: &Path) -> Result<()> {
    let root = place::root();
    fs::create_dir_all(to)?;
    for name in [
        "Cargo.toml",
        "Cargo.lock",
        "runtime",
        "actors",
        "common",
        "connector",
        "engine",
        "examples",
        "integration-tests",
        "xtask",
    ] {
        copy(&root.join(name), &to.join(name))?;
    }
    Ok(())
}

fn copy(from: &PathBuf, to: &PathBuf) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            copy(&from.join(&name), &to.join(&name))?;
        }
        // Remove files of an earlier copy that the tree no longer has.
        for entry in fs::read_dir(to)? {
            let path = entry?.path();
            if !from.join(path.file_name().unwrap_or_default()).exists() {
                if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
            }
        }
        return Ok(());
    }
    let content = fs::read(from)?;
    if fs::read(to).ok().as_ref() != Some(&content) {
        fs::write(to, content)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_finds_its_place() {
        for mutant in all() {
            let text = fs::read_to_string(place::root().join(mutant.file)).unwrap();
            let changed = broken(&text, mutant).unwrap();
            assert_ne!(changed, text, "{}", mutant.rule);
        }
    }
}

//! Rules of the states of a fleet. The simulator of fleets must notice when one of them is broken.

use super::Mutant;

const HISTORIES: &[&str] = &["--fleet", "--seed", "1", "--histories", "300"];

const fn mutant(rule: &'static str, file: &'static str, from: &'static str, to: &'static str) -> Mutant {
    Mutant { rule, file, from, to, histories: HISTORIES }
}

pub(super) const MUTANTS: &[Mutant] = &[
    mutant(
        "fleet: route to a node that has said that it leaves",
        "actors/src/fleet.rs",
        "let accepts = view.accepts && is_fresh && node.breaker.admits(now);",
        "let accepts = is_fresh && node.breaker.admits(now);",
    ),
    mutant(
        "fleet: route to a node that is silent",
        "actors/src/fleet.rs",
        "let accepts = view.accepts && is_fresh && node.breaker.admits(now);",
        "let accepts = view.accepts && (is_fresh || node.is_named) && node.breaker.admits(now);",
    ),
    mutant(
        "fleet: keep what routing knows of a node that has left",
        "actors/src/fleet/members.rs",
        "            self.forget(id, &report);\n",
        "            drop(report);\n",
    ),
    mutant(
        "fleet: remove a node that the membership does not name although it answers",
        "actors/src/fleet/members.rs",
        "!node.is_named && node.heard.is_some_and(is_silent)",
        "!node.is_named && node.heard.is_none_or(|at| is_silent(at) || node.last.is_some())",
    ),
    mutant(
        "fleet: after a resync, add known nodes again, so that requests are placed twice",
        "actors/src/fleet/members.rs",
        "node.is_named = new.remove(&node.address);",
        "node.is_named = new.contains(&node.address);",
    ),
    mutant(
        "fleet: cut no connections to a lost node",
        "actors/src/fleet.rs",
        "                cut.push(id);\n",
        "",
    ),
    mutant(
        "fleet: a pause of the proxy makes its nodes unknown",
        "actors/src/fleet.rs",
        "let now = self.ticked.map_or(now, |ticked| now.min(ticked + TICK_MAX));",
        "let now = self.ticked.map_or(now, |ticked| now.min(ticked + LOST_AFTER));",
    ),
    mutant(
        "fleet: retry a request whose answer has begun",
        "actors/src/fleet/requests.rs",
        "nodes >= ATTEMPTS || request.is_answered || ",
        "nodes >= ATTEMPTS || ",
    ),
    mutant(
        "fleet: ignore the retry budget",
        "actors/src/fleet/requests.rs",
        "(needs_place && !may_begin)",
        "(needs_place && !may_begin && nodes > ATTEMPTS)",
    ),
    mutant(
        "fleet: retry on a node that has failed",
        "actors/src/fleet/requests.rs",
        "            not_on: &request.tried,\n",
        "            not_on: &request.tried[..0],\n",
    ),
    mutant(
        "fleet: count the pages of a request that has ended",
        "actors/src/fleet/requests.rs",
        "model.routing.decoded(placement.decode_on, placement.decode);",
        "let _ = (&model.routing, placement.decode);",
    ),
    mutant(
        "fleet: never probe a node whose connections broke",
        "actors/src/fleet/breaker.rs",
        "self.until.is_none_or(|until| now >= until && !self.probe.is_some_and(is_held))",
        "self.until.is_none_or(|until| now == until && !self.probe.is_some_and(is_held))",
    ),
    mutant(
        "fleet: forget that a lease is lost",
        "actors/src/membership/registration.rs",
        "(self.lease, self.is_put, self.lives_until) = (None, false, None),",
        "self.lives_until = None,",
    ),
    mutant(
        "fleet: keep members that a range no longer has",
        "actors/src/membership.rs",
        "gone.iter().filter_map(|name| self.remove(name)).collect();",
        "Vec::with_capacity(gone.len());",
    ),
];

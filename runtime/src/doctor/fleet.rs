//! Checks of a fleet: etcd, DNS, and the nodes of a proxy.

use std::net::ToSocketAddrs;
use std::time::Duration;

use actors::membership::Member;
use connector::frame::Versions;
use futures_util::future::join_all;
use tokio::time::timeout;

use super::Subject;
use super::report::{Finding, divided};
use crate::config::Role;
use crate::frontend::{NodeReport, NodeState, ask_node_report};
use crate::membership::{self, Source};
use crate::roles::{certificates, joining};
use crate::tls::NodesTls;

/// Time limit for the answer of a node.
const ANSWER: Duration = Duration::from_secs(3);
/// Time for which the fingerprint of the model is awaited.
const FINGERPRINT: Duration = Duration::from_secs(6);
/// Nodes beyond this number are not asked.
const NODES_MAX: usize = 16;

/// An endpoint of an etcd, and its members or why it does not answer.
type EndpointAnswer = (String, Result<Vec<Member>, String>);

pub(super) fn check(subject: &Subject) -> Vec<Finding> {
    let config = &subject.config;
    if config.role == Role::Local {
        return Vec::new();
    }
    let mut findings = match joining::source(config.role, config) {
        Some(Source::Etcd(settings)) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let looked = runtime
                .map_err(anyhow::Error::from)
                .and_then(|runtime| runtime.block_on(membership::look(&settings)));
            let fingerprint = subject.fingerprint(FINGERPRINT).and_then(Result::ok);
            let own =
                fingerprint.map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
            judge_etcd(looked.map_err(|error| format!("{error:#}")), own.as_deref())
        }
        Some(Source::Dns { name, .. }) => {
            let found = name.to_socket_addrs().map(Iterator::count).map_err(|error| error.to_string());
            vec![judge_dns(&name, found)]
        }
        None => Vec::new(),
    };
    if config.role == Role::Proxy {
        let nodes: Vec<&String> = config.fleet.nodes.iter().take(NODES_MAX).collect();
        // A file that cannot be used is a finding of another check.
        let tls = certificates::nodes(config.role, config).map(|(file, name)| NodesTls::open(file, name));
        let Ok(tls) = tls.map(|opened| opened.map(|(tls, _)| tls)).transpose() else { return findings };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let asked = nodes.iter().map(|node| async { judge_node(node, &ask_node(node, tls.clone()).await) });
        match runtime {
            Ok(runtime) => findings.extend(runtime.block_on(join_all(asked))),
            Err(error) => {
                findings.push(Finding::fault("nodes", error.to_string(), "raise the limit of open files"));
            }
        }
    }
    findings
}

/// Judges the answers of etcd. `own` is the fingerprint of the model, in hexadecimal digits.
pub(super) fn judge_etcd(looked: Result<Vec<EndpointAnswer>, String>, own: Option<&str>) -> Vec<Finding> {
    const CHECK: &str = "etcd";
    let endpoints = match looked {
        Ok(endpoints) => endpoints,
        Err(error) => {
            return vec![Finding::from_error(
                CHECK,
                &error,
                "correct the files of fleet.etcd_ca_file and fleet.etcd_cert_file",
            )];
        }
    };
    let has_answer = endpoints.iter().any(|(_, members)| members.is_ok());
    let judge = |(url, members): EndpointAnswer| match members {
        Ok(members) => judge_members(&url, &members, own),
        // The error begins with the URL.
        Err(error) if has_answer => Finding::warning(CHECK, error, "repair this endpoint; the others answer"),
        Err(error) => {
            let remedy = etcd_remedy(&error);
            Finding::fault(CHECK, error, remedy)
        }
    };
    endpoints.into_iter().map(judge).collect()
}

/// What to do if no endpoint of an etcd answers.
fn etcd_remedy(error: &str) -> &'static str {
    let is_about = |words: &[&str]| words.iter().any(|word| error.contains(word));
    if is_about(&["user name is empty", "auth", "permission denied", "password"]) {
        return "set fleet.etcd_user and fleet.etcd_password_file to a user that may read and write the keys below baton/v1/";
    }
    if is_about(&["certificate", "UnknownIssuer", "tls", "TLS", "HandshakeFailure"]) {
        return "set fleet.etcd_ca_file to the certificates that sign those of etcd, and fleet.etcd_cert_file if etcd wants one";
    }
    "start etcd, or correct fleet.etcd_endpoints; see if a firewall drops packets to its client port"
}

/// Judges the members that an endpoint knows.
fn judge_members(url: &str, members: &[Member], own: Option<&str>) -> Finding {
    const CHECK: &str = "etcd";
    let says = || members.iter().filter_map(|member| member.says.as_ref());
    let strangers = says().filter(|says| Versions::agree(Versions::OURS, says.protocol).is_err()).count();
    let others = own.map_or(0, |own| says().filter(|says| says.fingerprint != own).count());
    let count = members.len();
    let what = format!("{url} answers, {count} member{} registered", if count == 1 { "" } else { "s" });
    match (strangers, others) {
        (0, 0) => Finding::ok(CHECK, what),
        (0, others) => Finding::warning(
            CHECK,
            format!("{what}, {others} with another model"),
            "use another fleet.cluster for each model, or give all members the same model",
        ),
        (strangers, _) => Finding::warning(
            CHECK,
            format!("{what}, {strangers} with no common version of the link protocol"),
            "upgrade the older processes",
        ),
    }
}

/// Judges the number of addresses of a name.
pub(super) fn judge_dns(name: &str, found: Result<usize, String>) -> Finding {
    const CHECK: &str = "dns";
    let remedy = "correct fleet.dns, and see if the name server answers (getent hosts NAME)";
    match found {
        Ok(0) => Finding::fault(CHECK, format!("{name} has no address"), remedy),
        Ok(count) => {
            Finding::ok(CHECK, format!("{name} has {count} address{}", if count == 1 { "" } else { "es" }))
        }
        Err(error) => Finding::fault(CHECK, format!("{name} does not resolve: {error}"), remedy),
    }
}

/// Asks a node for its report, directly and without the API key, which `/node` does not need.
async fn ask_node(node: &str, tls: Option<NodesTls>) -> Result<NodeReport, String> {
    let asked = timeout(ANSWER, ask_node_report(node, tls)).await;
    asked.unwrap_or_else(|_| Err(format!("no answer in {} s", ANSWER.as_secs())))
}

pub(super) fn judge_node(node: &str, answer: &Result<NodeReport, String>) -> Finding {
    const CHECK: &str = "nodes";
    let report = match answer {
        Ok(report) => report,
        Err(error) => {
            let remedy = "start the node, or correct fleet.nodes (the http.port of each node); a proxy asks it until it answers";
            let (error, advice) = divided(error);
            let remedy = advice.unwrap_or_else(|| remedy.to_owned());
            return Finding::warning(CHECK, format!("{node} gives no report: {error}"), remedy);
        }
    };
    let NodeReport { state, role, model, reason, .. } = report;
    let what = format!("{node} serves {model} as {role}");
    let (reason, advice) = divided(reason.as_deref().unwrap_or_default());
    match state {
        NodeState::Ok => Finding::ok(CHECK, what),
        state => {
            let what = format!("{node} is {state:?}: {reason}").to_lowercase();
            Finding::warning(CHECK, what, advice.unwrap_or_else(|| "see the log of the node".to_owned()))
        }
    }
}

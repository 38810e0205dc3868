//! Two nodes that prefill for each other.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use super::{ALWAYS_HANDED_OVER, ANY_PORTS, Process, start_role};

/// A free port that stays free when its process is killed and started again: it is below the ports that the kernel gives to connections.
/// Each call begins its search at another port, so that programs that search at the same time find different ports.
///
/// # Errors
/// All ports are in use.
pub fn free_port() -> Result<u16> {
    const PORTS: (u16, u16) = (21_000, 29_000);
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id() * 3 + 1009 * CALLS.fetch_add(1, Ordering::Relaxed);
    let first = PORTS.0 + (start % u32::from(PORTS.1 - PORTS.0)) as u16;
    let mut ports = (first..PORTS.1).chain(PORTS.0..first);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).context("no port is free")
}

/// Starts a node and waits until it serves. Its link is on `port`, and it prefills for `peers`.
///
/// # Errors
/// The process does not start or does not become ready.
pub fn start_node(port: u16, peers: &[String], sets: &[&str], variables: &[(&str, &str)]) -> Result<Process> {
    let (port, peers) = (format!("link.port={port}"), format!("link.peers={}", peers.join(",")));
    start_role("node", &[&[&*port, &*peers], sets].concat(), variables)
}

/// Two connected nodes. Each lists the link ports of both.
pub struct Nodes {
    /// The nodes.
    pub nodes: [Process; 2],
    /// The address of each node's frontend.
    pub frontends: [String; 2],
}

impl Nodes {
    /// Starts both with the same settings and waits until pages can travel both ways.
    ///
    /// # Errors
    /// A process does not start or does not become ready.
    pub fn start(sets: &[&str]) -> Result<Self> {
        let ports = [free_port()?, free_port()?];
        let peers = ports.map(|port| format!("127.0.0.1:{port}"));
        let start = |port| start_node(port, &peers, sets, &[]);
        let nodes = [start(ports[0])?, start(ports[1])?];
        // One session in each direction.
        nodes.iter().try_for_each(|node| node.wait_peers(2))?;
        let frontends = [nodes[0].address("frontend.port")?, nodes[1].address("frontend.port")?];
        Ok(Self { nodes, frontends })
    }
}

/// Starts a proxy for the nodes with these HTTP ports, and waits until it serves.
///
/// # Errors
/// The process does not start or does not become ready.
pub fn start_proxy(nodes: &[String], sets: &[&str]) -> Result<Process> {
    let nodes = format!("fleet.nodes={}", nodes.join(","));
    start_role("proxy", &[&[&*nodes], sets].concat(), &[])
}

/// Starts a member of a fleet with this role on free ports, and waits until it listens. A proxy without nodes is not healthy yet.
///
/// # Errors
/// The process does not start.
pub fn start_member(role: &str, sets: &[&str]) -> Result<Process> {
    let mut arguments = vec!["--role", role];
    arguments.extend(ANY_PORTS);
    arguments.extend(ALWAYS_HANDED_OVER);
    sets.iter().for_each(|set| arguments.extend(["--set", set]));
    let process = Process::start(&arguments, &[])?;
    process.address(if role == "proxy" { "frontend.port" } else { "http.port" })?;
    Ok(process)
}

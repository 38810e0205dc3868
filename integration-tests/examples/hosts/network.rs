//! The hosts: network namespaces with a veth pair each to a bridge in the namespace of this program.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A file system in memory is mounted here. `ip netns` has the names of its namespaces in a folder of it.
pub(crate) const RUN: &str = "/run";

/// The address of the bridge, where the proxies, etcd and the clients are.
pub(crate) const BRIDGE: &str = "10.77.0.254";

/// The device of each host that leads to the bridge.
pub(crate) const DEVICE: &str = "eth0";

/// The IP address of a host. Hosts are numbered from 0.
pub(crate) fn address(host: usize) -> String {
    format!("10.77.0.{}", host + 1)
}

/// The name of a host's network namespace.
fn name(host: usize) -> String {
    format!("host{}", host + 1)
}

/// The bridge and its hosts. The kernel removes them when the namespaces of this program end.
pub(crate) struct Network;

impl Network {
    /// Makes the bridge and this number of hosts.
    pub(crate) fn make(hosts: usize) -> Result<Self> {
        run(&format!("mount -t tmpfs tmpfs {RUN}"))?;
        run("ip link set lo up")?;
        run("ip link add bridge0 type bridge")?;
        run(&format!("ip addr add {BRIDGE}/24 dev bridge0"))?;
        run("ip link set bridge0 up")?;
        for host in 0..hosts {
            let (name, address) = (name(host), address(host));
            run(&format!("ip netns add {name}"))?;
            run(&format!("ip link add {name} type veth peer name {DEVICE} netns {name}"))?;
            run(&format!("ip link set {name} master bridge0 up"))?;
            run(&format!("ip -n {name} link set lo up"))?;
            run(&format!("ip -n {name} addr add {address}/24 dev {DEVICE}"))?;
            run(&format!("ip -n {name} link set {DEVICE} up"))?;
        }
        Ok(Self)
    }

    /// The arguments of `ip` that run a program on a host, as the first process of a PID namespace. The program follows.
    pub(crate) fn run_on(&self, host: usize) -> Vec<String> {
        let unshare = "unshare --pid --fork --mount-proc --kill-child";
        format!("netns exec {} {unshare}", name(host)).split(' ').map(str::to_owned).collect()
    }

    /// Takes a host's link to the bridge down: packets are lost, and no connection is reset.
    pub(crate) fn cut(&self, host: usize) -> Result<()> {
        run(&format!("ip link set {} down", name(host)))
    }

    /// Undoes [`cut`](Self::cut).
    pub(crate) fn heal(&self, host: usize) -> Result<()> {
        run(&format!("ip link set {} up", name(host)))
    }
}

fn run(line: &str) -> Result<()> {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().with_context(|| line.to_owned())?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

//! Which lanes can write no more pages after the receiver has destroyed the session's worker.
//!
//! A lane ends with the worker if its receiving end belongs to the worker, and so to this session alone:
//!
//! - **TCP**: the receiver's worker copies the bytes from its own socket.
//! - **RC** (RDMA): the sender's network card writes, but the receiver's card accepts a write only for a queue pair that exists. UCX makes
//!   the queue pairs for each interface, and the interfaces for each worker. `ucp_worker_destroy` destroys them before it returns. The
//!   registration of the memory belongs to the context, so it stays valid for other sessions. The argument relies on the card: it must
//!   not give the number of a queue pair to another session while the old sender may still send, because UCX begins each queue pair at packet
//!   number 0.
//!
//! These transports are not examined, and count as lanes that need proof:
//!
//! - **DC** (`dc_mlx5`): any sender may write to a target whose number it knows. The access key is the same constant in all processes
//!   (`UCT_IB_KEY`), the target keeps no state of a connection, and the memory key is the same for all sessions. So a sender that was stopped
//!   before it posted a write may write later, if the card has given the target's number to another session.
//! - **UD**: the receiver's worker copies the bytes, but to the address that the packet names. The access key (`UCT_IB_KEY`) and the first packet
//!   number are constants, and endpoints are numbered from 0. So a late packet may be accepted, as for DC.
//! - **`srd`, `gga_mlx5`, `rc_gda` and others**.
//!
//! `cuda_ipc`, `cma` and shared memory write without the receiver. For all lanes that need proof, only the sender or the end of its process
//! proves that nothing can land any more.

/// The transports of UCX whose receiving end belongs to the worker.
const OF_WORKER: [&str; 3] = ["tcp", "rc_verbs", "rc_mlx5"];
/// Names in `UCX_TLS` that stand for several of [`OF_WORKER`]. UCX adds UD to them, but only to set up connections.
const ALIASES: [&str; 3] = ["rc", "rc_v", "rc_x"];
/// The transports of UCX that copy only within one process.
const WITHIN_PROCESS: [&str; 3] = ["self", "cuda_copy", "gdr_copy"];

/// Whether every transport of a connected lane, for example `rc_mlx5/mlx5_0:1,tcp/eth0`, ends with the receiver's worker.
///
/// ```
/// use connector::transport::lane::ends_with_worker;
///
/// assert!(ends_with_worker("rc_mlx5/mlx5_0:1,tcp/eth0"));
/// assert!(!ends_with_worker("cuda_ipc/cuda,tcp/lo"));
/// ```
pub fn ends_with_worker(lane: &str) -> bool {
    lane.split(',').all(|part| part.split_once('/').is_some_and(|(name, _device)| OF_WORKER.contains(&name)))
}

/// Whether every lane that this list of transports (`UCX_TLS`) allows ends with the receiver's worker.
pub(crate) fn all_end_with_worker(tls: &str) -> bool {
    let mut names = tls.split(',');
    names.all(|name| [&OF_WORKER[..], &ALIASES, &WITHIN_PROCESS].iter().any(|known| known.contains(&name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_ends_with_the_worker_only_if_all_of_its_transports_do() {
        for lane in
            ["tcp/lo", "rc_mlx5/mlx5_0:1", "rc_verbs/mlx5_0:1,tcp/eth0", "rc_mlx5/mlx5_0:1,rc_mlx5/mlx5_1:1"]
        {
            assert!(ends_with_worker(lane), "{lane}");
        }
        let others =
            ["", ",", "tcp", "/lo", "unknown", "loopback", "cuda_ipc/cuda", "tcp/lo,", "tcp /lo", "tcpx/lo"];
        let mixed =
            ["tcp/lo,cuda_ipc/cuda", "cma/memory,tcp/lo", "rc_mlx5/mlx5_0:1,posix/memory", "srd/rdmap0:1"];
        let unexamined = ["dc_mlx5/mlx5_0:1", "ud_mlx5/mlx5_0:1", "rc_mlx5/mlx5_0:1,ud_verbs/mlx5_0:1"];
        for lane in others.into_iter().chain(mixed).chain(unexamined) {
            assert!(!ends_with_worker(lane), "{lane}");
        }
    }

    #[test]
    fn a_list_of_transports_counts_only_if_it_names_no_other() {
        for tls in ["tcp", "rc,tcp", "rc_x,cuda_copy,tcp", "self,tcp", "rc_v,gdr_copy,cuda_copy", "rc_verbs"]
        {
            assert!(all_end_with_worker(tls), "{tls}");
        }
        for tls in [
            "",
            "all",
            "ib",
            "dc",
            "dc_x,tcp",
            "dc_mlx5",
            "rc,ud,tcp",
            "ud_verbs",
            "^cuda_ipc",
            "cuda_ipc,cuda_copy,tcp",
            "cuda,tcp",
            "posix,cma,tcp",
            "sm,tcp",
            "tcp,",
        ] {
            assert!(!all_end_with_worker(tls), "{tls}");
        }
    }
}

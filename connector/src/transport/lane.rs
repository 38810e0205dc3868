//! Which lanes can write no more pages after the receiver has destroyed the session's worker.
//!
//! A lane ends with the worker if its receiving end belongs to the worker, and so to this session alone:
//!
//! - **TCP**: the receiver's worker copies the bytes from its own socket.
//! - **RDMA** (RC, DC): the sender's network card writes, but the receiver's card accepts a write only for a queue pair that exists. UCX makes
//!   the queue pairs (and the targets of DC) for each interface, and the interfaces for each worker. `ucp_worker_destroy` destroys them before
//!   it returns. The registration of the memory belongs to the context, so it stays valid for other sessions.
//! - **UD**: it has no remote writes; the receiver's worker copies.
//!
//! All other transports write without the receiver (`cuda_ipc`, `cma`, shared memory) or are not known well enough (`srd`, `gga_mlx5`).
//! For these, only the sender or the end of its process proves that nothing can land any more.

/// The transports of UCX whose receiving end belongs to the worker.
const OF_WORKER: [&str; 6] = ["tcp", "rc_verbs", "rc_mlx5", "dc_mlx5", "ud_verbs", "ud_mlx5"];
/// Names in `UCX_TLS` that stand for several of [`OF_WORKER`].
const ALIASES: [&str; 8] = ["rc", "rc_v", "rc_x", "dc", "dc_x", "ud", "ud_v", "ud_x"];
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
            ["tcp/lo", "rc_mlx5/mlx5_0:1", "rc_verbs/mlx5_0:1,tcp/eth0", "dc_mlx5/mlx5_2:1,ud_mlx5/mlx5_2:1"]
        {
            assert!(ends_with_worker(lane), "{lane}");
        }
        let others =
            ["", ",", "tcp", "/lo", "unknown", "loopback", "cuda_ipc/cuda", "tcp/lo,", "tcp /lo", "tcpx/lo"];
        let mixed =
            ["tcp/lo,cuda_ipc/cuda", "cma/memory,tcp/lo", "rc_mlx5/mlx5_0:1,posix/memory", "srd/rdmap0:1"];
        for lane in others.into_iter().chain(mixed) {
            assert!(!ends_with_worker(lane), "{lane}");
        }
    }

    #[test]
    fn a_list_of_transports_counts_only_if_it_names_no_other() {
        for tls in ["tcp", "rc,tcp", "rc_x,cuda_copy,tcp", "self,tcp", "dc_x,gdr_copy,cuda_copy", "ud_verbs"]
        {
            assert!(all_end_with_worker(tls), "{tls}");
        }
        for tls in [
            "",
            "all",
            "ib",
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

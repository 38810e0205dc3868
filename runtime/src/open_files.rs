//! The limit of open files, and the number of HTTP connections that it allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files reserved for the process itself: listening sockets, event queues, the log, and the GPU driver.
const PER_PROCESS: u64 = 64;

/// Files reserved for each session with a peer: its link socket, and the sockets and event queues of its UCX worker.
const PER_SESSION: u64 = 7;

/// Files of one HTTP connection: its socket.
const PER_CONNECTION: u64 = 1;

/// Raises the soft limit of this process to the hard limit. Returns the limit in effect.
pub fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    let holds = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { limit };
    // `None` means unlimited.
    holds.current.unwrap_or(u64::MAX)
}

/// Files that HTTP connections may not use, in a process with up to `sessions` sessions and `subscribers` connections for KV events, each of which
/// is one file.
pub fn reserved(sessions: u32, subscribers: usize) -> u64 {
    PER_PROCESS + u64::from(sessions) * PER_SESSION + subscribers as u64
}

/// Connections that each of `ports` HTTP ports may accept if `limit` files may be open, beside the `reserved` ones: at most `wanted`, at least one.
pub fn connections(limit: u64, wanted: usize, ports: usize, reserved: u64) -> usize {
    let allowed = limit.saturating_sub(reserved) / PER_CONNECTION / ports.max(1) as u64;
    usize::try_from(allowed).unwrap_or(usize::MAX).clamp(1, wanted.max(1))
}

/// Limit of open files that allows `wanted` connections on each of `ports` HTTP ports, beside the `reserved` files.
pub fn needed(wanted: usize, ports: usize, reserved: u64) -> u64 {
    reserved + (wanted * ports) as u64 * PER_CONNECTION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_reserved_files_free() {
        let check = |limit, wanted, ports, expect| {
            let reserved = reserved(64, 0);
            assert_eq!(connections(limit, wanted, ports, reserved), expect, "{limit} files, {ports} ports");
        };
        check(u64::MAX, 4288, 2, 4288);
        check(1024, 4288, 1, 512);
        check(1024, 4288, 2, 256);
        check(100, 4288, 2, 1);
        check(needed(4288, 2, reserved(64, 0)), 4288, 2, 4288);
        check(needed(4288, 2, reserved(64, 0)) - 2, 4288, 2, 4287);
        let more = connections(1024, 4288, 1, reserved(128, 0));
        assert_eq!(more, 64, "more sessions leave fewer connections");
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_limit() {
        let hard = getrlimit(Resource::Nofile).maximum;
        assert_eq!(raise(), hard.unwrap_or(u64::MAX));
        assert_eq!(getrlimit(Resource::Nofile).current, hard);
    }
}

//! Open files: the limit, and how many HTTP connections it allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that HTTP connections leave to the rest of the process: sessions with peers (each has a socket of the link and several of
/// UCX), listening sockets, event queues, the log, a GPU's driver.
const RESERVED: u64 = 512;

/// Files of an HTTP connection: its socket, and the duplicate with which its watcher ends it.
const PER_CONNECTION: u64 = 2;

/// Raises this process's soft limit to the hard one. Returns the limit that holds now.
pub fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    let holds = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { limit };
    // None is no limit.
    holds.current.unwrap_or(u64::MAX)
}

/// How many connections each of `ports` HTTP ports may take, `wanted` at most, if this many files may be open; at least one.
pub fn connections(limit: u64, wanted: usize, ports: usize) -> usize {
    let allowed = limit.saturating_sub(RESERVED) / PER_CONNECTION / ports.max(1) as u64;
    usize::try_from(allowed).unwrap_or(usize::MAX).clamp(1, wanted.max(1))
}

/// How many files may have to be open for `wanted` connections on each of `ports` HTTP ports.
pub fn needed(wanted: usize, ports: usize) -> u64 {
    RESERVED + (wanted * ports) as u64 * PER_CONNECTION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_to_the_rest() {
        let check = |limit, wanted, ports, expect| {
            assert_eq!(connections(limit, wanted, ports), expect, "{limit} files, {ports} ports");
        };
        check(u64::MAX, 4288, 2, 4288);
        check(1024, 4288, 1, 256);
        check(1024, 4288, 2, 128);
        check(100, 4288, 2, 1);
        check(needed(4288, 2), 4288, 2, 4288);
        check(needed(4288, 2) - 4, 4288, 2, 4287);
    }

    #[test]
    fn the_limit_is_raised_to_the_hard_one() {
        let hard = getrlimit(Resource::Nofile).maximum;
        assert_eq!(raise(), hard.unwrap_or(u64::MAX));
        assert_eq!(getrlimit(Resource::Nofile).current, hard);
    }
}

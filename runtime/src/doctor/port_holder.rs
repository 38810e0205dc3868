//! Finds the process that listens on a port.

use std::fs;
use std::path::{Path, PathBuf};

/// State of a socket that listens, in `/proc/net/tcp`.
const LISTENS: &str = "0A";

/// The process that listens on a TCP port of this network namespace, as `process 123 (runtime)`. `None` if it belongs to another user or to
/// another PID namespace.
pub(super) fn holder(port: u16) -> Option<String> {
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let sockets: Vec<String> = tables.iter().flat_map(|table| listening(table, port)).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    // `/proc/self` and `/proc/thread-self` are this process too.
    let numbered = |process: &PathBuf| {
        process.file_name().is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok())
    };
    let mut holders = processes.filter(numbered).filter(|process| holds(process, &sockets));
    let process = holders.next()?;
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    Some(format!("process {} ({})", process.file_name()?.to_string_lossy(), name.trim()))
}

/// The links in `/proc/PID/fd` of the sockets that listen on the port.
fn listening(table: &str, port: u16) -> Vec<String> {
    let of_port = format!(":{port:04X}");
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1)?.ends_with(&of_port) && *fields.get(3)? == LISTENS;
        is_it.then_some(format!("socket:[{}]", fields.get(9)?))
    };
    table.lines().skip(1).filter_map(socket).collect()
}

fn holds(process: &Path, sockets: &[String]) -> bool {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let mut links = files.filter_map(|file| fs::read_link(file.path()).ok());
    links.any(|link| sockets.iter().any(|socket| link.as_os_str() == socket.as_str()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn this_process_holds_its_port() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let found = holder(port).unwrap();
        assert!(found.starts_with(&format!("process {} (", std::process::id())), "{found}");
        drop(socket);
        assert_eq!(listening("", port), Vec::<String>::new());
    }
}

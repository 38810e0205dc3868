//! The check of main memory: what a start takes, and what the machine and the control groups leave.

use std::fs;
use std::path::Path;

use super::Subject;
use super::report::{Finding, bytes_text};
use crate::config::{DeviceSetting, Role};
use crate::roles::plan;

/// Memory of a process beside weights, pages and requests: code, tables, the tokenizer, and on a GPU the driver.
const OTHERS: u64 = 300_000_000;

/// What a start takes, and what is there. All in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryFacts {
    /// Weights in main memory; `None` if the model cannot be read.
    pub(super) weights: Option<u64>,
    /// Pages in main memory.
    pub(super) pages: u64,
    /// `request.input_bytes`.
    pub(super) requests: u64,
    /// What the system can give without swapping (`MemAvailable`).
    pub(super) available: Option<u64>,
    /// What the control groups of this process leave.
    pub(super) group: Option<u64>,
}

pub(super) fn check(subject: &Subject) -> Vec<Finding> {
    let config = &subject.config;
    let is_on_cpu = config.engine.device == DeviceSetting::Cpu && config.role != Role::Proxy;
    let size = |path: &std::path::PathBuf| fs::metadata(path).map_or(0, |file| file.len());
    let weights = match is_on_cpu {
        true => subject
            .model()
            .and_then(|model| model.as_ref().as_ref().ok().map(|model| model.files().iter().map(size).sum())),
        false => Some(0),
    };
    vec![judge(MemoryFacts {
        weights,
        pages: if is_on_cpu { plan::engine(config).kv_bytes } else { 0 },
        requests: config.request.input_bytes.0,
        available: fs::read_to_string("/proc/meminfo").ok().and_then(|text| field(&text, "MemAvailable:")),
        group: group_left(),
    })]
}

pub(super) fn judge(facts: MemoryFacts) -> Finding {
    const CHECK: &str = "memory";
    let MemoryFacts { weights, pages, requests, available, group } = facts;
    let Some(left) = available.into_iter().chain(group).min() else {
        return Finding::warning(CHECK, "/proc/meminfo cannot be read", "mount /proc");
    };
    let needed = weights.unwrap_or(0).saturating_add(pages).saturating_add(requests).saturating_add(OTHERS);
    let by = if group == Some(left) { "the control group (container) leaves" } else { "the machine has" };
    let weights =
        weights.map_or("an unknown model".to_owned(), |bytes| format!("weights {}", bytes_text(bytes)));
    let what = format!(
        "a start takes up to {} ({weights}, pages {}, requests {}), and {by} {}",
        bytes_text(needed),
        bytes_text(pages),
        bytes_text(requests),
        bytes_text(left)
    );
    let remedy = "lower engine.kv_bytes or request.input_bytes, end other processes, or raise the limit of the container";
    match needed {
        needed if needed > left => Finding::fault(CHECK, what, remedy),
        needed if needed > left / 10 * 9 => {
            Finding::warning(CHECK, format!("{what}, which is tight"), remedy)
        }
        _ => Finding::ok(CHECK, what),
    }
}

/// The bytes of a line such as `MemAvailable:   1024 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// The memory that the control groups of this process leave; `None` without a limit.
fn group_left() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let unified = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let older = groups.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path));
    let v2 = unified
        .and_then(|path| least_left(Path::new("/sys/fs/cgroup"), path, "memory.max", "memory.current"));
    let v1 = older.and_then(|path| {
        let root = Path::new("/sys/fs/cgroup/memory");
        least_left(root, path, "memory.limit_in_bytes", "memory.usage_in_bytes")
    });
    v2.into_iter().chain(v1).min()
}

/// The least memory that a group on the way from `path` to the root leaves. File pages that were not used lately count as free.
fn least_left(root: &Path, path: &str, limit: &str, used: &str) -> Option<u64> {
    let number = |file: &Path| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let inside = root.join(path.trim_start_matches('/'));
    let groups = inside.ancestors().filter(|group| group.starts_with(root));
    let left = |group: &Path| {
        let (limit, used) = (number(&group.join(limit))?, number(&group.join(used))?);
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let idle = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse().ok());
        Some(limit.saturating_sub(used.saturating_sub(idle.unwrap_or(0))))
    };
    groups.filter_map(left).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_group_counts() {
        let root = std::env::temp_dir().join(format!("baton-groups-{}", std::process::id()));
        let inner = root.join("a/b");
        fs::create_dir_all(&inner).unwrap();
        let put = |folder: &Path, limit: &str, used: &str| {
            fs::write(folder.join("memory.max"), limit).unwrap();
            fs::write(folder.join("memory.current"), used).unwrap();
        };
        put(&inner, "max\n", "500\n");
        put(&root.join("a"), "1000\n", "600\n");
        fs::write(root.join("a/memory.stat"), "anon 1\ninactive_file 100\n").unwrap();
        assert_eq!(least_left(&root, "/a/b", "memory.max", "memory.current"), Some(500));
        put(&inner, "700\n", "500\n");
        assert_eq!(least_left(&root, "/a/b", "memory.max", "memory.current"), Some(200));
        assert_eq!(least_left(&root, "/", "memory.max", "memory.current"), None);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn memory_is_read_in_kibibytes() {
        let text = "MemTotal:  10 kB\nMemAvailable:    7 kB\n";
        assert_eq!((field(text, "MemAvailable:"), field(text, "Swap:")), (Some(7168), None));
    }
}

//! The list of files and sizes in every wheel, and whether a folder has these files.

use std::fs;
use std::path::Path;

use super::Wheel;

/// Whether the unpacked wheel in `folder` has all listed files that `kept` selects, each with its listed size.
pub(super) fn is_whole(folder: &Path, wheel: &Wheel, kept: impl Fn(&str) -> bool) -> bool {
    let list = folder.join(format!("{}-{}.dist-info/RECORD", wheel.package, wheel.version));
    let Ok(record) = fs::read_to_string(list) else { return false };
    let mut files = sizes(&record).filter(|(name, _)| kept(name)).peekable();
    files.peek().is_some()
        && files.all(|(name, size)| fs::metadata(folder.join(name)).is_ok_and(|meta| meta.len() == size))
}

/// Paths and sizes of a RECORD, whose lines are `path,sha256=…,size`. Its line about itself has no size.
fn sizes(record: &str) -> impl Iterator<Item = (&str, u64)> {
    record.lines().filter_map(|line| {
        let (rest, size) = line.rsplit_once(',')?;
        let (name, _hash) = rest.rsplit_once(',')?;
        Some((name, size.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_sizes_of_a_record_are_read() {
        let record = "libucx/GIT_COMMIT,sha256=7W,41\n\"odd, name\",sha256=a,2\nx.dist-info/RECORD,,\n";
        assert_eq!(sizes(record).collect::<Vec<_>>(), [("libucx/GIT_COMMIT", 41), ("\"odd, name\"", 2)]);
    }
}

//! The list of files and sizes that every wheel carries, and whether a folder still holds them.

use std::fs;
use std::path::Path;

use super::Wheel;

/// Whether the unpacked wheel in `folder` has every file of its list that `kept` wants, in its size.
pub(super) fn is_whole(folder: &Path, wheel: &Wheel, kept: impl Fn(&str) -> bool) -> bool {
    let list = folder.join(format!("{}-{}.dist-info/RECORD", wheel.package, wheel.version));
    let Ok(record) = fs::read_to_string(list) else { return false };
    let mut files = sizes(&record).filter(|(name, _)| kept(name)).peekable();
    files.peek().is_some()
        && files.all(|(name, size)| fs::metadata(folder.join(name)).is_ok_and(|meta| meta.len() == size))
}

/// The lines `path,sha256=…,size` of a RECORD; its line about itself has no size.
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
    fn a_record_is_read() {
        let record = "libucx/GIT_COMMIT,sha256=7W,41\n\"odd, name\",sha256=a,2\nx.dist-info/RECORD,,\n";
        assert_eq!(sizes(record).collect::<Vec<_>>(), [("libucx/GIT_COMMIT", 41), ("\"odd, name\"", 2)]);
    }
}

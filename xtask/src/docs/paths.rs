//! Paths of files in the repository or the site, relative to its root, with `/` between the parts.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The path to which `link` leads from the file `from`. None if it leads out of the root or is absolute.
pub(super) fn resolve(from: &str, link: &str) -> Option<String> {
    if link.starts_with('/') {
        return None;
    }
    let folder = from.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            _ => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The link that leads from the file `from` to the path `to`.
pub(super) fn relative(from: &str, to: &str) -> String {
    let from: Vec<&str> = from.split('/').collect();
    let to: Vec<&str> = to.split('/').collect();
    let folders = &from[..from.len() - 1];
    let shared = folders.iter().zip(&to[..to.len() - 1]).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n("..", folders.len() - shared);
    up.chain(to[shared..].iter().copied()).collect::<Vec<_>>().join("/")
}

/// The paths of all files below `folder`, in order. Hidden files are left out.
pub(super) fn files(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    collect(folder, "", &mut found).with_context(|| format!("cannot read {}", folder.display()))?;
    found.sort();
    Ok(found)
}

fn collect(folder: &Path, prefix: &str, found: &mut Vec<String>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        if name.starts_with('.') {
            continue;
        } else if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{path}/"), found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved() {
        for (from, link, expect) in [
            ("README.md", "docs/tls.md", Some("docs/tls.md")),
            ("docs/tls.md", "fleets.md", Some("docs/fleets.md")),
            ("docs/lab/gpus.md", "../../ARCHITECTURE.md", Some("ARCHITECTURE.md")),
            ("docs/tls.md", "./plots/../tls.md", Some("docs/tls.md")),
            ("docs/tls.md", "../configs/", Some("configs")),
            ("docs/tls.md", "..", Some("")),
            ("docs/tls.md", "../../other", None),
            ("docs/tls.md", "/etc/passwd", None),
        ] {
            assert_eq!(resolve(from, link).as_deref(), expect, "{from}: {link}");
        }
    }

    #[test]
    fn a_relative_link_leads_back() {
        let paths = ["README.md", "docs/tls.md", "docs/lab/gpus.md", "docs/lab/a.md", "files/docs/lab/x.txt"];
        for from in paths {
            for to in paths {
                assert_eq!(resolve(from, &relative(from, to)).as_deref(), Some(to), "{from} to {to}");
            }
        }
        assert_eq!(relative("docs/lab/gpus.md", "docs/tls.md"), "../tls.md");
        assert_eq!(relative("docs/tls.md", "docs/tls.md"), "tls.md");
    }
}

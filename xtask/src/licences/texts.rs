//! The text with all licences: a list of the parts, and each distinct licence text once.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::parts::ShippedPart;

/// How the names of files with licences begin.
const NAMES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// Licences of which there is a standard text, for parts without a file. The first one that a part offers is taken.
const STANDARD: [(&str, &str); 2] =
    [("Apache-2.0", include_str!("../../../LICENSE")), ("MIT", include_str!("MIT.txt"))];

/// Writes the list and the texts.
///
/// # Errors
/// A part has neither a file with its licence nor a licence with a standard text.
pub(super) fn render(parts: &[ShippedPart]) -> Result<String> {
    let others = || parts.iter().filter(|part| !part.is_ours);
    let mut text = String::from(
        "Baton is licensed under Apache-2.0; see the file LICENSE. It contains the following parts of others.\n\n",
    );
    for ShippedPart { name, version, licence, repository, .. } in others() {
        let source = repository.as_deref().unwrap_or_default();
        let line = format!("  {:<34} {licence:<40} {source}", format!("{name} {version}"));
        writeln!(text, "{}", line.trim_end())?;
    }
    // Most crates have the same texts.
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for part in others() {
        for text in texts_of(part)? {
            texts.entry(text).or_default().push(format!("{} {}", part.name, part.version));
        }
    }
    let mut texts: Vec<(String, Vec<String>)> = texts.into_iter().collect();
    texts.sort_by(|a, b| a.1.cmp(&b.1));
    for (licence, mut users) in texts {
        users.dedup();
        write!(text, "\n{}\n{}:\n\n{licence}\n", "=".repeat(100), users.join(", "))?;
    }
    Ok(text)
}

/// The texts that belong to a part, without spaces at the ends of lines.
fn texts_of(part: &ShippedPart) -> Result<Vec<String>> {
    let files = part.folder.as_deref().map(files).transpose()?.unwrap_or_default();
    let mut texts: Vec<String> = part.text.iter().map(|text| tidy(text)).collect();
    for file in files {
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        texts.push(tidy(&String::from_utf8_lossy(&bytes)));
    }
    if texts.is_empty() {
        texts.push(standard(part)?);
    }
    Ok(texts)
}

fn tidy(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n").trim_matches('\n').to_owned()
}

/// The files with licences in a folder, and below its folders of such a name.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let is_all = folder.ends_with("licenses");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if !is_all && !NAMES.iter().any(|start| name.starts_with(start)) {
            continue;
        }
        if path.is_file() {
            found.push(path);
        } else if is_all {
            found.extend(files(&path)?);
        }
    }
    found.sort();
    Ok(found)
}

fn standard(part: &ShippedPart) -> Result<String> {
    let ShippedPart { name, version, licence, authors, .. } = part;
    let offers = |id: &str| licence.split([' ', '(', ')']).any(|word| word == id);
    // `AND` and `WITH` need more than one text.
    let found = STANDARD.iter().find(|(id, _)| offers(id) && !offers("AND") && !offers("WITH"));
    let Some((_, text)) = found else {
        bail!(
            "{name} {version} has no file with its licence ({licence}); add the text to xtask/src/licences/texts.rs"
        );
    };
    Ok(format!("Copyright (c) {}\n\n{}", authors.join(", "), tidy(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::tests::Folder;

    fn part(name: &str, licence: &str, folder: Option<PathBuf>) -> ShippedPart {
        ShippedPart {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            licence: licence.to_owned(),
            authors: vec!["An Author".to_owned()],
            folder,
            ..ShippedPart::default()
        }
    }

    #[test]
    fn equal_texts_appear_once_with_all_their_parts() {
        let folder = Folder::new();
        let with_file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.join("src")).unwrap();
            fs::write(path.join("LICENSE-MIT"), text).unwrap();
            fs::write(path.join("README.md"), "no licence").unwrap();
            part(name, "MIT", Some(path))
        };
        let ours = ShippedPart { is_ours: true, ..part("ours", "Apache-2.0", None) };
        let (a, b) = (with_file("a", "the text  \r\n"), with_file("b", "\nthe text\n"));
        let text = render(&[ours, a, b, with_file("c", "another text")]).unwrap();
        assert_eq!(text.matches("the text").count(), 1, "{text}");
        assert!(text.contains("a 1.0.0, b 1.0.0:\n\nthe text\n") && text.contains("another text"), "{text}");
        assert!(!text.contains("no licence") && !text.contains("ours"), "{text}");
    }

    #[test]
    fn a_part_may_bring_its_text() {
        let text = Some("the notice".to_owned());
        let text = render(&[ShippedPart { text, ..part("a", "BSD-3-Clause", None) }]).unwrap();
        assert!(text.contains("a 1.0.0:\n\nthe notice\n"), "{text}");
    }

    #[test]
    fn a_part_without_a_file_gets_the_standard_text() {
        let text = render(&[part("a", "MIT OR Apache-2.0", None), part("b", "MIT", None)]).unwrap();
        assert!(text.contains("Copyright (c) An Author\n\nPermission is hereby granted"), "{text}");
        assert!(text.contains("TERMS AND CONDITIONS FOR USE"), "{text}");
        for unknown in ["ISC", "MIT AND ISC", "Apache-2.0 WITH LLVM-exception", ""] {
            let error = render(&[part("odd", unknown, None)]).unwrap_err().to_string();
            assert!(error.contains("odd 1.0.0"), "{error}");
        }
    }
}

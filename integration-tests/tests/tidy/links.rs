//! The links of the documentation: no dead one, and each page is in the table of contents.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::{files, root};

/// The table of contents of the site that `cargo xtask docs` makes.
const SUMMARY: &str = "docs/SUMMARY.md";

/// A Markdown page.
#[derive(Debug, Default)]
struct MarkdownPage {
    /// The anchors of its headings, by the rule of code hosts.
    anchors: BTreeSet<String>,
    /// The targets of its links and images.
    targets: Vec<String>,
}

impl MarkdownPage {
    fn read(text: &str) -> Self {
        let mut page = Self::default();
        let mut heading: Option<String> = None;
        let mut times: BTreeMap<String, usize> = BTreeMap::new();
        let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_FOOTNOTES;
        for event in Parser::new_ext(text, options) {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let anchor = anchor(&heading.take().unwrap_or_default());
                    let time = times.entry(anchor.clone()).or_default();
                    page.anchors.insert(if *time == 0 { anchor } else { format!("{anchor}-{time}") });
                    *time += 1;
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.targets.push(dest_url.into_string());
                }
                Event::Text(part) | Event::Code(part) => {
                    heading.iter_mut().for_each(|heading| heading.push_str(&part));
                }
                _ => {}
            }
        }
        page
    }
}

/// The anchor of a heading: lower-case letters and digits; spaces become hyphens; of the other characters only `-` and `_` stay.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// The path to which a link of the page `from` leads, both below the root. None if it leads out of it.
fn resolve(from: &Path, link: &str) -> Option<PathBuf> {
    let mut path = from.parent()?.to_owned();
    for part in Path::new(link).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

/// All Markdown pages by their paths below the root.
fn pages() -> Result<BTreeMap<PathBuf, MarkdownPage>> {
    let root = root();
    let page = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok((path.strip_prefix(&root)?.to_owned(), MarkdownPage::read(&text)))
    };
    files(&root, ".md")?.into_iter().map(page).collect()
}

/// The paths to which the relative links of a page lead, with their anchors. Faults go to `faults`.
fn leads_to(path: &Path, page: &MarkdownPage, faults: &mut Vec<String>) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for target in &page.targets {
        if ["https://", "http://", "mailto:"].iter().any(|scheme| target.starts_with(scheme)) {
            continue;
        }
        let (link, anchor) = target.split_once('#').unwrap_or((target, ""));
        let to = if link.is_empty() { Some(path.to_owned()) } else { resolve(path, link) };
        match to {
            Some(to) if root().join(&to).exists() => found.push((to, anchor.to_owned())),
            _ => faults.push(format!("{}: {target} leads to no file of the repository", path.display())),
        }
    }
    found
}

#[test]
fn anchors_are_those_of_code_hosts() {
    for (heading, expect) in [
        ("Beside llama.cpp", "beside-llamacpp"),
        ("The link: page puts over UCX, TCP", "the-link-page-puts-over-ucx-tcp"),
        ("`GET /node` & co_op", "get-node--co_op"),
        ("/v1/completions", "v1completions"),
        ("Größe", "größe"),
    ] {
        let page = MarkdownPage::read(&format!("# {heading}\n\n## {heading}\n"));
        assert_eq!(page.anchors, [expect.to_owned(), format!("{expect}-1")].into(), "{heading}");
    }
}

#[test]
fn links_are_found_outside_of_code() {
    let text = "[a](b.md#c) ![d](e.svg) `[f](g.md)`\n\n| [h](../i) |\n|---|\n\n```\n[j](k.md)\n```\n[l]\n\n[l]: m.md\n";
    assert_eq!(MarkdownPage::read(text).targets, ["b.md#c", "e.svg", "../i", "m.md"]);
    let mut faults = Vec::new();
    let page =
        MarkdownPage::read("[a](../README.md) [b](nowhere.md) [c](../../out.md) [d](https://example.org)");
    let found = leads_to(Path::new("docs/page.md"), &page, &mut faults);
    assert_eq!(found, [(PathBuf::from("README.md"), String::new())]);
    assert!(faults.len() == 2 && faults[0].contains("docs/page.md: nowhere.md"), "{faults:?}");
}

#[test]
fn no_link_is_dead() -> Result<()> {
    let pages = pages()?;
    let (mut faults, mut links) = (Vec::new(), 0);
    for (path, page) in &pages {
        for (to, anchor) in leads_to(path, page, &mut faults) {
            links += 1;
            let is_there =
                anchor.is_empty() || pages.get(&to).is_some_and(|page| page.anchors.contains(&anchor));
            if !is_there {
                faults.push(format!("{}: {} has no heading #{anchor}", path.display(), to.display()));
            }
        }
    }
    assert_eq!(faults, [""; 0]);
    assert!(links > 200, "only {links} links are found: the search is broken");
    Ok(())
}

#[test]
fn each_page_is_in_the_table_of_contents_and_linked_from_another_page() -> Result<()> {
    let pages = pages()?;
    let summary = Path::new(SUMMARY);
    let targets = |path: &Path| -> Vec<PathBuf> {
        let targets = leads_to(path, &pages[path], &mut Vec::new()).into_iter().map(|(to, _)| to);
        // A code host shows the README of a folder.
        targets.map(|to| if root().join(&to).is_dir() { to.join("README.md") } else { to }).collect()
    };
    let listed = targets(summary);
    let all: BTreeSet<PathBuf> = pages.keys().filter(|path| *path != summary).cloned().collect();
    let unlisted: Vec<&PathBuf> = all.iter().filter(|path| !listed.contains(path)).collect();
    assert!(unlisted.is_empty(), "add a line to {SUMMARY} for each of {unlisted:?}");
    assert_eq!(listed.len(), all.len(), "{SUMMARY} lists a page twice");

    let mut reached = BTreeSet::from([PathBuf::from("README.md")]);
    let mut next: Vec<PathBuf> = reached.iter().cloned().collect();
    while let Some(path) = next.pop() {
        for to in targets(&path) {
            if to != summary && pages.contains_key(&to) && reached.insert(to.clone()) {
                next.push(to);
            }
        }
    }
    let unreached: Vec<&PathBuf> = all.difference(&reached).collect();
    assert!(unreached.is_empty(), "no chain of links leads from README.md to {unreached:?}");
    Ok(())
}

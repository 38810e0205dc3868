//! The pages that mdBook reads: those of `docs/SUMMARY.md`, with links that work in the site.
//!
//! | a link leads to | in the site |
//! |---|---|
//! | a page of the site | that page. `README.md` is `index.md` there |
//! | a folder with such a README | that README |
//! | a picture | a copy at the same path |
//! | another file, such as source code | a copy below `files`, as text that each browser shows |
//! | another folder | a list of its files, which are copied |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::{links, paths};

const SUMMARY: &str = "docs/SUMMARY.md";

/// Names of pictures end in these.
const PICTURES: [&str; 2] = [".png", ".svg"];

/// What links of the pages lead to besides pages.
#[derive(Debug, Default, PartialEq, Eq)]
struct Copies {
    /// Paths of pictures.
    pictures: BTreeSet<String>,
    /// Paths of other files.
    texts: BTreeSet<String>,
    /// Folders, with the paths of their files.
    folders: BTreeMap<String, Vec<String>>,
}

/// Writes the folder that mdBook builds: `book.toml`, the style sheet and the pages.
///
/// # Errors
/// A link leads nowhere, or a file cannot be read or written.
pub(super) fn write(root: &Path, into: &Path) -> Result<()> {
    for name in ["book.toml", "site.css"] {
        put(&into.join(name), &read(&root.join("docs"), name)?)?;
    }
    let summary = read(root, SUMMARY)?;
    let pages = listed(&summary)?;
    let into = into.join("pages");
    let mut copies = Copies::default();
    let summary = change(root, &pages, SUMMARY, "SUMMARY.md", &summary, &mut copies)?;
    put(&into.join("SUMMARY.md"), &summary)?;
    for page in &pages {
        let at = place_of(page);
        put(&into.join(&at), &change(root, &pages, page, &at, &read(root, page)?, &mut copies)?)?;
    }
    for picture in &copies.pictures {
        copy(&root.join(picture), &into.join(picture))?;
    }
    for (folder, files) in &copies.folders {
        put(&into.join(list_of(folder)), &list(folder, files))?;
    }
    for text in copies.folders.values().flatten().chain(&copies.texts) {
        copy(&root.join(text), &into.join(copy_of(text)))?;
    }
    Ok(())
}

/// The paths of the pages in a summary.
fn listed(summary: &str) -> Result<BTreeSet<String>> {
    let mut pages = BTreeSet::new();
    for (_, target) in links::targets(summary)? {
        let path = paths::resolve(SUMMARY, &target).with_context(|| format!("{SUMMARY}: {target}"))?;
        ensure!(pages.insert(path), "{SUMMARY} lists {target} twice; remove one of the lines");
    }
    Ok(pages)
}

/// The text of the page `from` when it is at the path `at` of the site.
fn change(
    root: &Path,
    pages: &BTreeSet<String>,
    from: &str,
    at: &str,
    text: &str,
    copies: &mut Copies,
) -> Result<String> {
    let changed = links::rewrite(text, |target| {
        let (path, anchor) =
            target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
        if path.is_empty() {
            return Ok(target.to_owned());
        }
        let Some(path) = paths::resolve(from, path) else {
            bail!("the link `{target}` leads out of the repository; correct it");
        };
        let to = destination(root, pages, &path, copies)
            .with_context(|| format!("the link `{target}` leads to no file; correct it"))?;
        let anchor = anchor.map(|anchor| format!("#{anchor}")).unwrap_or_default();
        Ok(paths::relative(at, &to) + &anchor)
    });
    changed.with_context(|| from.to_owned())
}

/// Where a link to `path` leads in the site. Adds what has to be copied for it. None if there is no such file.
fn destination(root: &Path, pages: &BTreeSet<String>, path: &str, copies: &mut Copies) -> Option<String> {
    if pages.contains(path) {
        return Some(place_of(path));
    }
    let file = root.join(path);
    let readme = format!("{path}/README.md");
    if pages.contains(&readme) {
        Some(place_of(&readme))
    } else if file.is_dir() {
        let files = paths::files(&file).ok()?.iter().map(|name| format!("{path}/{name}")).collect();
        copies.folders.insert(path.to_owned(), files);
        Some(list_of(path))
    } else if !file.is_file() {
        None
    } else if PICTURES.iter().any(|end| path.ends_with(end)) {
        copies.pictures.insert(path.to_owned());
        Some(path.to_owned())
    } else {
        copies.texts.insert(path.to_owned());
        Some(copy_of(path))
    }
}

/// The path of a page in the site's sources.
fn place_of(page: &str) -> String {
    match page.strip_suffix("README.md") {
        Some(folder) => format!("{folder}index.md"),
        None => page.to_owned(),
    }
}

/// The path of the copy of a file. mdBook takes `.md` in the middle of a link for a page, so the copy has no such name.
fn copy_of(file: &str) -> String {
    format!("files/{}.txt", file.replace(".md", "-md"))
}

/// The path of the list of a folder's files.
fn list_of(folder: &str) -> String {
    format!("files/{folder}/index.html")
}

/// The list of a folder's files.
fn list(folder: &str, files: &[String]) -> String {
    let mut page = format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>{folder}</title>\n<h1>{folder}</h1>\n<ul>\n"
    );
    for file in files {
        let link = paths::relative(&list_of(folder), &copy_of(file));
        // Writing to a string cannot fail.
        let _ = writeln!(page, "<li><a href=\"{link}\">{file}</a></li>");
    }
    page + "</ul>\n"
}

fn read(root: &Path, path: &str) -> Result<String> {
    fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))
}

fn put(path: &Path, text: &str) -> Result<()> {
    create_parent(path)?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    create_parent(to)?;
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {}", from.display()))
}

fn create_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place;

    fn pages() -> BTreeSet<String> {
        ["README.md", "docs/tls.md", "docs/lab/README.md"].map(str::to_owned).into()
    }

    #[test]
    fn links_lead_to_the_site() {
        let root = place::root();
        let mut copies = Copies::default();
        let text = "[a](docs/tls.md#the-link) [b](docs/lab) [c](docs/lab/README.md) [d](#here) [e](docs/plots/serve.svg) \
                    [f](xtask/src/main.rs) [g](configs/models) [h](https://example.org)";
        let expect = "[a](docs/tls.md#the-link) [b](docs/lab/index.md) [c](docs/lab/index.md) [d](#here) \
                      [e](docs/plots/serve.svg) [f](files/xtask/src/main.rs.txt) [g](files/configs/models/index.html) \
                      [h](https://example.org)";
        let changed =
            change(&root, &pages(), "README.md", "index.md", text, &mut copies).expect("all files exist");
        assert_eq!(changed, expect);
        assert_eq!(copies.pictures, ["docs/plots/serve.svg".to_owned()].into());
        assert_eq!(copies.texts, ["xtask/src/main.rs".to_owned()].into());
        let files = &copies.folders["configs/models"];
        assert!(files.contains(&"configs/models/qwen3-8b/config.json".to_owned()), "{files:?}");
        let list = list("configs/models", files);
        assert!(list.contains("href=\"qwen3-8b/config.json.txt\""), "{list}");
    }

    #[test]
    fn a_link_that_leads_nowhere_names_its_page() {
        let change = |link: &str| {
            let text = format!("[a]({link})");
            let error =
                change(&place::root(), &pages(), "docs/tls.md", "docs/tls.md", &text, &mut Copies::default());
            format!("{:#}", error.expect_err("there is no such file"))
        };
        assert_eq!(change("nowhere.md"), "docs/tls.md: the link `nowhere.md` leads to no file; correct it");
        assert!(change("../../x").contains("leads out of the repository"));
    }

    #[test]
    fn a_page_is_listed_once() {
        let pages = listed("[Baton](../README.md)\n\n# Part\n\n- [TLS](tls.md)\n").expect("right");
        assert_eq!(pages, ["README.md", "docs/tls.md"].map(str::to_owned).into());
        assert!(listed("- [a](tls.md)\n- [b](./tls.md)\n").expect_err("twice").to_string().contains("twice"));
    }

    #[test]
    fn copies_of_pages_are_not_taken_for_pages() {
        assert_eq!(copy_of("examples/notes.md"), "files/examples/notes-md.txt");
        assert_eq!(place_of("README.md"), "index.md");
        assert_eq!(place_of("docs/lab/README.md"), "docs/lab/index.md");
    }
}

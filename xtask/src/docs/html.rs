//! The links of a made site.

use std::collections::{BTreeMap, BTreeSet};

use super::{links, paths};

/// Attributes that name another file.
const LINKS: [&str; 3] = ["href", "src", "srcset"];

/// The files of a site, with the links and ids of its pages.
#[derive(Debug, Default)]
pub(super) struct Site {
    files: BTreeMap<String, SiteFile>,
}

/// The parts of a file that matter for links. Files that are neither pages nor style sheets have none.
#[derive(Debug, Default, PartialEq, Eq)]
struct SiteFile {
    ids: BTreeSet<String>,
    /// Tag and target of each link.
    links: Vec<(String, String)>,
    /// Faults that do not depend on other files.
    faults: Vec<String>,
}

impl Site {
    /// Adds a file. Only the text of pages and style sheets matters.
    pub(super) fn add(&mut self, path: String, text: &str) {
        let file = if path.ends_with(".html") {
            page(text)
        } else if path.ends_with(".css") {
            style_sheet(text)
        } else {
            SiteFile::default()
        };
        self.files.insert(path, file);
    }

    /// Number of pages.
    pub(super) fn pages(&self) -> usize {
        self.files.keys().filter(|path| path.ends_with(".html")).count()
    }

    /// What is wrong, one sentence each.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (path, file) in &self.files {
            let own = file.faults.iter().cloned();
            let links = file.links.iter().filter_map(|(tag, target)| self.fault(path, tag, target));
            faults.extend(own.chain(links).map(|fault| format!("{path}: {fault}")));
        }
        faults
    }

    /// What is wrong with the link `target` of the page `from`.
    fn fault(&self, from: &str, tag: &str, target: &str) -> Option<String> {
        if links::has_scheme(target) || target.starts_with("//") {
            let is_inside = target.starts_with("data:");
            return (tag != "a" && !is_inside).then(|| format!("<{tag}> loads {target} from another site"));
        }
        let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
        let path = if path.is_empty() { Some(from.to_owned()) } else { paths::resolve(from, path) };
        match path.and_then(|path| self.files.get(&path)) {
            None => Some(format!("there is no file {target}")),
            Some(file) => {
                let is_there = anchor.is_empty() || file.ids.contains(anchor);
                (!is_there).then(|| format!("there is no heading {target}"))
            }
        }
    }
}

/// Reads a page. Quoted attributes only, as mdBook writes them.
fn page(text: &str) -> SiteFile {
    let mut file = SiteFile::default();
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix("!--") {
            rest = after.split_once("-->").map_or("", |(_, after)| after);
            continue;
        }
        let name_end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).unwrap_or(rest.len());
        let name = rest[..name_end].to_ascii_lowercase();
        rest = attributes(&rest[name_end..], |attribute, value| {
            if attribute == "id" {
                file.ids.insert(value);
            } else if LINKS.contains(&attribute) {
                file.links.push((name.clone(), value));
            } else if attribute == "class" && value.split_whitespace().any(|class| class == "playground") {
                file.faults.push("an example would be sent to Rust's playground".to_owned());
            }
        });
        if ["script", "style"].contains(&&*name) {
            rest = rest.split_once(&format!("</{name}")).map_or("", |(_, after)| after);
        }
    }
    file
}

/// Calls `take` with each attribute of a tag, without escapes. Returns the text behind the tag.
fn attributes(tag: &str, mut take: impl FnMut(&str, String)) -> &str {
    let mut rest = tag;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '/');
        let end = rest.find(|c: char| c.is_whitespace() || "=>/".contains(c)).unwrap_or(rest.len());
        let name = &rest[..end];
        rest = &rest[end..];
        if let Some(value) = rest.strip_prefix("=\"") {
            let (value, after) = value.split_once('"').unwrap_or((value, ""));
            take(name, unescape(value));
            rest = after;
        } else if rest.starts_with('=') {
            rest = &rest[1..];
        } else if name.is_empty() {
            return rest.strip_prefix('>').unwrap_or(rest);
        }
    }
}

fn unescape(value: &str) -> String {
    [("&quot;", "\""), ("&#39;", "'"), ("&#x27;", "'"), ("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")]
        .iter()
        .fold(value.to_owned(), |value, (escape, character)| value.replace(escape, character))
}

/// Reads a style sheet: it may load nothing from another site.
fn style_sheet(text: &str) -> SiteFile {
    let mut file = SiteFile::default();
    let urls = text.split("url(").skip(1).map(|rest| rest.trim_start_matches(['\'', '"', ' ']));
    for url in urls {
        let url = &url[..url.find(['\'', '"', ')']).unwrap_or(url.len())];
        file.links.push(("url".to_owned(), url.to_owned()));
    }
    if text.contains("@import") {
        file.faults.push("it imports a style sheet; name it in docs/book.toml".to_owned());
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(files: &[(&str, &str)]) -> Vec<String> {
        let mut site = Site::default();
        files.iter().for_each(|(path, text)| site.add((*path).to_owned(), text));
        site.faults()
    }

    #[test]
    fn links_and_ids_are_found() {
        let found = page(
            "<!-- <a href=\"no\"> --><h2 id=\"a&amp;b\">x</h2><script>if (a<b) {\"<a href='no'>\"}</script>\n<a class=x href=\"c.html\"\n \
             hidden>d</a><img alt=\"1 > 0\" src=\"e.png\"/>",
        );
        assert_eq!(found.ids, ["a&b".to_owned()].into());
        let links = [("a", "c.html"), ("img", "e.png")].map(|(tag, link)| (tag.to_owned(), link.to_owned()));
        assert_eq!(found.links, links);
        assert_eq!(found.faults, [""; 0]);
    }

    #[test]
    fn a_whole_site_has_no_faults() {
        let files = [
            (
                "index.html",
                "<a href=\"docs/a.html#b\">a</a><a href=\"https://example.org\">b</a><a href=\"#c\"><p id=\"c\">",
            ),
            ("docs/a.html", "<h1 id=\"b\"></h1><img src=\"../x.png\"><link href=\"a.css\">"),
            ("docs/a.css", "p { background: url('data:image/png;a#b') }"),
            ("x.png", ""),
        ];
        assert_eq!(faults(&files), [""; 0]);
    }

    #[test]
    fn faults_are_named() {
        for (page, expect) in [
            ("<a href=\"b.html\">", "a.html: there is no file b.html"),
            ("<a href=\"../a.html\">", "a.html: there is no file ../a.html"),
            ("<a href=\"a.html#b\">", "a.html: there is no heading a.html#b"),
            ("<a href=\"#b\">", "a.html: there is no heading #b"),
            ("<img src=\"https://x.org/y\">", "a.html: <img> loads https://x.org/y from another site"),
            ("<script src=\"//x.org/y\"></script>", "a.html: <script> loads //x.org/y from another site"),
            ("<pre class=\"a playground\">", "a.html: an example would be sent to Rust's playground"),
        ] {
            assert_eq!(faults(&[("a.html", page)]), [expect]);
        }
        let sheet = "@font-face { src: url(\"https://x.org/y\") }\n@import 'b.css';";
        assert_eq!(
            faults(&[("a.css", sheet)]),
            [
                "a.css: it imports a style sheet; name it in docs/book.toml",
                "a.css: <url> loads https://x.org/y from another site"
            ]
        );
    }
}

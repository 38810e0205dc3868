//! The links of a Markdown page: finding and changing their targets.

use std::ops::Range;

use anyhow::{Result, bail};
use pulldown_cmark::{Event, LinkType, Options, Parser, Tag};

/// The target of a link or an image: where it stands in the text, and the target itself.
type Target = (Range<usize>, String);

/// The targets of a page that lead to files or headings of this project, in order.
///
/// # Errors
/// A target is not written inside the link.
pub(super) fn targets(page: &str) -> Result<Vec<Target>> {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_FOOTNOTES;
    let mut found = Vec::new();
    for (event, range) in Parser::new_ext(page, options).into_offset_iter() {
        let Event::Start(Tag::Link { link_type, dest_url, .. } | Tag::Image { link_type, dest_url, .. }) =
            event
        else {
            continue;
        };
        if has_scheme(&dest_url) || link_type == LinkType::Email {
            continue;
        }
        // An image inside the link's text has a target too, so the last one is that of the link.
        let at = page[range.clone()].rfind("](").map(|at| range.start + at + 2);
        match at.filter(|at| page[*at..].starts_with(&*dest_url)) {
            Some(at) if link_type == LinkType::Inline => {
                found.push((at..at + dest_url.len(), dest_url.into_string()));
            }
            _ => bail!("the target of the link `{}` must stand in it, as [text](target)", &page[range]),
        }
    }
    found.sort_by_key(|(range, _)| range.start);
    Ok(found)
}

/// Whether a target begins with a scheme such as `https:`.
pub(super) fn has_scheme(target: &str) -> bool {
    let is_scheme =
        |scheme: &str| !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
    target.split_once(':').is_some_and(|(scheme, _)| is_scheme(scheme))
}

/// The page with targets replaced by what `change` makes of them.
///
/// # Errors
/// See [`targets`], and those of `change`.
pub(super) fn rewrite(page: &str, mut change: impl FnMut(&str) -> Result<String>) -> Result<String> {
    let mut text = String::with_capacity(page.len());
    let mut done = 0;
    for (range, target) in targets(page)? {
        text.push_str(&page[done..range.start]);
        text.push_str(&change(&target)?);
        done = range.end;
    }
    text.push_str(&page[done..]);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_of_links_and_images_are_changed() {
        for (page, expect) in [
            ("see [a](b.md).", "see [a](<b.md>)."),
            ("[a](b.md#c \"title\") [d](#e)", "[a](<b.md#c> \"title\") [d](<#e>)"),
            ("![a](b.svg)", "![a](<b.svg>)"),
            ("[![a](b.svg)](c.md)", "[![a](<b.svg>)](<c.md>)"),
            ("| [a](b.md) |\n|---|\n| [`c`](d.rs) |\n", "| [a](<b.md>) |\n|---|\n| [`c`](<d.rs>) |\n"),
            ("`[a](b.md)`", "`[a](b.md)`"),
            ("```sh\n[a](b.md)\n```\n", "```sh\n[a](b.md)\n```\n"),
            (
                "[a](https://example.org/b.md) <https://example.org>",
                "[a](https://example.org/b.md) <https://example.org>",
            ),
            ("[a\nb](c.md)", "[a\nb](<c.md>)"),
        ] {
            let changed = rewrite(page, |target| Ok(format!("<{target}>"))).expect(page);
            assert_eq!(changed, expect);
        }
    }

    #[test]
    fn a_target_that_stands_elsewhere_is_refused() {
        let error = targets("[a][b]\n\n[b]: c.md\n").expect_err("a reference").to_string();
        assert!(error.contains("[a][b]"), "{error}");
    }
}

//! The name of a model on the hub: `org/name`, optionally with `@revision` and `:file.gguf`.

use std::fmt;

/// The revision if the name has none.
pub(super) const MAIN: &str = "main";

/// A model on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    /// The id, `org/name`.
    pub repo: String,
    /// The branch, tag or commit.
    pub revision: Option<String>,
    /// The GGUF file in the repository.
    pub file: Option<String>,
}

impl HubName {
    /// Reads a name; `None` if the text cannot be one. An id needs its organisation, so that a lone word stays the name of a file.
    pub fn parse(text: &str) -> Option<Self> {
        let (head, file) = match text.split_once(':') {
            Some((head, file)) => (head, Some(file)),
            None => (text, None),
        };
        let (repo, revision) = match head.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (head, None),
        };
        let (organisation, name) = repo.split_once('/')?;
        let is_id = is_part(organisation) && is_part(name) && repo.len() <= 96 && !is_file_name(name);
        let is_right = is_id
            && revision.is_none_or(is_revision)
            && file.is_none_or(|file| is_relative(file) && is_gguf(file));
        is_right.then(|| Self {
            repo: repo.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }

    /// The branch, tag or commit; `main` if the name has none.
    pub(super) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

/// The rules of the hub for the organisation and for the name.
fn is_part(part: &str) -> bool {
    let is_end = |c: char| c.is_ascii_alphanumeric() || c == '_';
    part.starts_with(is_end)
        && part.ends_with(is_end)
        && part.chars().all(|c| is_end(c) || ".-".contains(c))
        && !part.contains("--")
        && !part.contains("..")
}

/// A name that is rather that of a file in a folder. The hub does not allow `.git`.
fn is_file_name(name: &str) -> bool {
    let ends = [".git", ".gguf", ".safetensors", ".json", ".bin"];
    ends.iter().any(|end| name.to_ascii_lowercase().ends_with(end))
}

fn is_revision(revision: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/+".contains(c);
    is_relative(revision)
        && revision.len() <= 200
        && !revision.starts_with('-')
        && revision.chars().all(is_plain)
}

/// Whether the path has no part that leads elsewhere, and no control characters.
pub(super) fn is_relative(path: &str) -> bool {
    let is_plain = |part: &str| !["", ".", ".."].contains(&part);
    path.split('/').all(is_plain) && !path.contains(|c: char| c == '\\' || c.is_control())
}

/// Whether the path is that of a GGUF file.
pub(super) fn is_gguf(path: &str) -> bool {
    path.to_ascii_lowercase().ends_with(".gguf")
}

/// Whether the revision is a commit, whose files never change.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_an_id_a_revision_and_a_file() {
        fn check(text: &str, repo: &str, revision: Option<&str>, file: Option<&str>) {
            let name = HubName::parse(text).unwrap();
            assert_eq!((&*name.repo, name.revision.as_deref(), name.file.as_deref()), (repo, revision, file));
            assert_eq!(name.to_string(), text);
        }
        check("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct", None, None);
        check("a/b@v1.0", "a/b", Some("v1.0"), None);
        check("a/b@refs/pr/1:q/m.Q4_0.gguf", "a/b", Some("refs/pr/1"), Some("q/m.Q4_0.gguf"));
        check("TheOrg/x-GGUF:m@2.GGUF", "TheOrg/x-GGUF", None, Some("m@2.GGUF"));
        check("_a/b_", "_a/b_", None, None);
    }

    #[test]
    fn paths_are_no_names() {
        let long = format!("a/{}", "b".repeat(95));
        let paths = [
            "",
            "model",
            "model.gguf",
            "./a/b",
            "../a",
            "/a/b",
            "a/b/c",
            "a/b/",
            "~/m",
            "models/x.gguf",
            "models/x.json",
            "a/b.git",
            "a--b/c",
            "a/b..c",
            "-a/b",
            "a/b-",
            "a b/c",
            "a/b@",
            "a/b@../x",
            "a/b@-x",
            "a/b@x y",
            "a/b:",
            "a/b:x.bin",
            "a/b:../x.gguf",
            "a/b:/x.gguf",
            "a/b:x\\y.gguf",
            "a/b:x\n.gguf",
            "C:\\m",
            "é/b",
            &long,
        ];
        for path in paths {
            assert_eq!(HubName::parse(path), None, "{path:?}");
        }
    }

    #[test]
    fn a_commit_has_forty_digits() {
        assert!(is_commit("0123456789abcdef0123456789abcdef01234567"));
        for other in ["main", "0123456", "0123456789ABCDEF0123456789abcdef01234567"] {
            assert!(!is_commit(other), "{other}");
        }
    }
}

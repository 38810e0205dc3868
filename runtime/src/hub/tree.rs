//! The list of a repository's files at one commit, with sizes and checksums if they are known. A commit's list never changes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::checksum::ChecksumKind;
use super::name::is_relative;

/// The version of the format that Python's `huggingface_hub` keeps lists in.
const FORMAT: u64 = 1;

/// The list of a repository's files at one commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tree(BTreeMap<String, Option<TreeEntry>>);

/// One file, in the format of Python's `huggingface_hub`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TreeEntry {
    size: u64,
    blob_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lfs_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lfs_size: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct TreeFile {
    format_version: u64,
    files: BTreeMap<String, TreeEntry>,
}

impl Tree {
    /// A list of names only.
    pub(super) fn of_names(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().map(|name| (name, None)).collect())
    }

    /// The files in the field `siblings` of the hub's answer about a model; `None` if the answer is of another form. A list with a path that
    /// leads out of the folder of a commit is refused as a whole.
    pub(super) fn of_siblings(siblings: &Value) -> Option<Self> {
        let entry = |one: &Value| {
            let lfs = &one["lfs"];
            Some(TreeEntry {
                size: one["size"].as_u64()?,
                blob_id: one["blobId"].as_str()?.to_owned(),
                lfs_sha256: lfs["sha256"].as_str().map(str::to_owned),
                lfs_size: lfs["size"].as_u64(),
            })
        };
        let file = |one: &Value| {
            let path = one["rfilename"].as_str().filter(|path| is_relative(path))?;
            Some((path.to_owned(), entry(one)))
        };
        Some(Self(siblings.as_array()?.iter().map(file).collect::<Option<_>>()?))
    }

    /// Reads a recorded list; `None` if it has another format, or a path that leads elsewhere.
    pub(super) fn parse(json: &[u8]) -> Option<Self> {
        let file: TreeFile = serde_json::from_slice(json).ok()?;
        let is_right = file.format_version == FORMAT && file.files.keys().all(|path| is_relative(path));
        is_right.then(|| Self(file.files.into_iter().map(|(name, entry)| (name, Some(entry))).collect()))
    }

    /// The list to record; `None` if it lacks the size or the checksum of a file.
    pub(super) fn to_json(&self) -> Option<String> {
        let files = self.0.iter().map(|(name, entry)| Some((name.clone(), entry.clone()?)));
        let files: BTreeMap<String, TreeEntry> = files.collect::<Option<_>>()?;
        serde_json::to_string_pretty(&TreeFile { format_version: FORMAT, files }).ok()
    }

    /// The paths of all files.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// The size of a file, if it is known.
    pub(super) fn bytes(&self, path: &str) -> Option<u64> {
        let entry = self.0.get(path)?.as_ref()?;
        Some(entry.lfs_size.unwrap_or(entry.size))
    }

    /// The checksum of a file, if it is known.
    pub(super) fn checksum(&self, path: &str) -> Option<&str> {
        let entry = self.0.get(path)?.as_ref()?;
        let is_large = entry.lfs_size.is_some() || entry.lfs_sha256.is_some();
        let checksum = if is_large { entry.lfs_sha256.as_deref()? } else { &entry.blob_id };
        ChecksumKind::of(checksum).map(|_| checksum)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_recorded_in_the_format_of_python() {
        let siblings = json!([
            {"rfilename": "config.json", "size": 5, "blobId": "b1"},
            {"rfilename": "m.safetensors", "size": 7, "blobId": "b2", "lfs": {"sha256": "s", "size": 7, "pointerSize": 134}},
        ]);
        let tree = Tree::of_siblings(&siblings).unwrap();
        assert_eq!(tree.names(), ["config.json", "m.safetensors"]);
        assert_eq!((tree.bytes("m.safetensors"), tree.bytes("other")), (Some(7), None));
        let text = tree.to_json().unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value,
            json!({"format_version": 1, "files": {
                "config.json": {"size": 5, "blob_id": "b1"},
                "m.safetensors": {"size": 7, "blob_id": "b2", "lfs_sha256": "s", "lfs_size": 7},
            }})
        );
        assert_eq!(Tree::parse(text.as_bytes()), Some(tree));
    }

    #[test]
    fn a_list_has_the_checksums_of_the_files() {
        let (git, sha256) = ("1".repeat(40), "2".repeat(64));
        let siblings = json!([
            {"rfilename": "small", "size": 5, "blobId": git},
            {"rfilename": "large", "size": 7, "blobId": git, "lfs": {"sha256": sha256, "size": 7}},
            {"rfilename": "unknown", "size": 7, "blobId": git, "lfs": {"size": 7}},
            {"rfilename": "other", "size": 7, "blobId": "b"},
        ]);
        let tree = Tree::of_siblings(&siblings).unwrap();
        assert_eq!((tree.checksum("small"), tree.checksum("large")), (Some(&*git), Some(&*sha256)));
        assert_eq!(
            (tree.checksum("unknown"), tree.checksum("other"), tree.checksum("absent")),
            (None, None, None)
        );
    }

    /// The paths become paths of the cache.
    #[test]
    fn a_list_with_a_path_that_leads_elsewhere_is_refused() {
        for path in [
            "../../x.gguf",
            "/x.gguf",
            "a/../x.gguf",
            "a//x.gguf",
            "a\\x.gguf",
            "a\n.gguf",
            "\u{1b}[2J.gguf",
            "",
        ] {
            let siblings = json!([{"rfilename": "config.json"}, {"rfilename": path}]);
            assert_eq!(Tree::of_siblings(&siblings), None, "{path:?}");
            let recorded = json!({"format_version": 1, "files": {path: {"size": 1, "blob_id": "b"}}});
            assert_eq!(Tree::parse(recorded.to_string().as_bytes()), None, "{path:?}");
        }
    }

    /// A mirror may send names only. Such a list serves the download and is not recorded.
    #[test]
    fn a_list_of_names_is_not_recorded() {
        let tree = Tree::of_siblings(&json!([{"rfilename": "config.json"}])).unwrap();
        assert_eq!((tree.names().len(), tree.bytes("config.json"), tree.to_json()), (1, None, None));
        assert_eq!(Tree::of_siblings(&json!({})), None);
        assert_eq!(Tree::of_siblings(&json!([{"size": 1}])), None);
        for other in [&b"{"[..], br#"{"format_version": 2, "files": {}}"#, br#"{"files": {}}"#] {
            assert_eq!(Tree::parse(other), None);
        }
    }
}

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A cache folder of one test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("baton-cache-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn repo(&self) -> RepoCache {
        RepoCache::new(&self.0, "org/name")
    }

    fn put(&self, path: &str, etag: &str, bytes: &[u8]) {
        let repo = self.repo();
        fs::create_dir_all(repo.folder.join("blobs")).unwrap();
        fs::write(repo.blob(etag), bytes).unwrap();
        repo.link(COMMIT, path, etag).unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_layout_is_that_of_python() {
    let place = Place::new("layout");
    let repo = place.repo();
    assert_eq!(repo.folder, place.0.join("models--org--name"));
    place.put("config.json", "aa", b"1");
    place.put("additional_chat_templates/tool_use.jinja", "bb", b"22");
    let link = |path: &str| fs::read_link(repo.snapshot(COMMIT).join(path)).unwrap();
    assert_eq!(link("config.json"), Path::new("../../blobs/aa"));
    assert_eq!(link("additional_chat_templates/tool_use.jinja"), Path::new("../../../blobs/bb"));
    assert!(repo.has(COMMIT, "config.json", None) && repo.has(COMMIT, "config.json", Some(1)));
    assert!(!repo.has(COMMIT, "config.json", Some(2)), "a file of another size is damaged");
    fs::remove_file(repo.blob("aa")).unwrap();
    assert!(!repo.has(COMMIT, "config.json", None), "the link leads nowhere");
    repo.link(COMMIT, "config.json", "bb").unwrap();
    assert_eq!(link("config.json"), Path::new("../../blobs/bb"));
    for path in ["../x", "/tmp/x", "a/../../x"] {
        assert_eq!(repo.link(COMMIT, path, "bb").unwrap_err().kind(), "cache", "{path}");
    }
    assert_eq!(
        files_below(&repo.snapshot(COMMIT)),
        ["additional_chat_templates/tool_use.jinja", "config.json"]
    );
}

#[test]
fn revisions_lead_to_commits() {
    let place = Place::new("refs");
    let repo = place.repo();
    assert_eq!(repo.commit_of("main"), None);
    assert_eq!(repo.commit_of(COMMIT).as_deref(), Some(COMMIT));
    for revision in ["main", "refs/pr/1"] {
        repo.set_commit(revision, COMMIT).unwrap();
        assert_eq!(repo.commit_of(revision).as_deref(), Some(COMMIT));
        assert_eq!(fs::read_to_string(repo.folder.join("refs").join(revision)).unwrap(), COMMIT);
    }
    repo.set_commit(COMMIT, COMMIT).unwrap();
    assert_eq!(files_below(&repo.folder.join("refs")), ["main", "refs/pr/1"]);
    fs::write(repo.folder.join("refs/main"), "../../elsewhere").unwrap();
    assert_eq!(repo.commit_of("main"), None);
}

/// Without a list of the repository, what the index names counts.
#[test]
fn missing_files_are_found() {
    let place = Place::new("check");
    let repo = place.repo();
    let missing = || repo.check(COMMIT, None, ModelParts::All).map(|(_, missing)| missing);
    assert!(missing().is_err());
    place.put("config.json", "aa", b"{}");
    assert!(missing().is_err(), "nothing says where the weights are");
    place.put(INDEX, "bb", br#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}"#);
    assert_eq!(missing().unwrap(), ["a.safetensors", "b.safetensors", TOKENIZER]);
    place.put("a.safetensors", "cc", b"weights");
    assert_eq!(missing().unwrap(), ["b.safetensors", TOKENIZER]);
    place.put("b.safetensors", "dd", b"weights");
    assert_eq!(missing().unwrap(), [TOKENIZER]);
    place.put(TOKENIZER, "ee", b"tokens");
    assert_eq!(missing().unwrap(), [""; 0]);
    // With a list, sizes and texts count too.
    let sibling = |path: &str, size: u64| serde_json::json!({"rfilename": path, "size": size, "blobId": "b"});
    let siblings = [
        sibling("config.json", 2),
        sibling(TOKENIZER, 9),
        sibling(INDEX, 61),
        sibling("a.safetensors", 7),
        sibling("b.safetensors", 8),
    ];
    repo.set_tree(COMMIT, &Tree::of_siblings(&serde_json::Value::from(siblings.to_vec())).unwrap()).unwrap();
    assert_eq!(missing().unwrap(), [TOKENIZER, INDEX, "b.safetensors"]);
    let texts = repo.check(COMMIT, None, ModelParts::WithoutWeights).unwrap();
    assert_eq!(texts.1, [TOKENIZER]);
}

#[test]
fn an_index_without_files_is_no_model() {
    let place = Place::new("index");
    place.put("config.json", "aa", b"{}");
    place.put(TOKENIZER, "bb", b"{}");
    for (etag, index) in [("cc", &b"{}"[..]), ("dd", br#"{"weight_map": {}}"#)] {
        place.put(INDEX, etag, index);
        let error = place.repo().check(COMMIT, None, ModelParts::All).unwrap_err();
        assert!(error.ends_with("names no file"), "{error}");
    }
}

/// The lock excludes other holders, and a lock whose file was removed excludes nobody, so it is not taken.
#[test]
fn one_process_has_a_lock() {
    let place = Place::new("locks");
    let path = place.0.join("a.lock");
    let held = try_lock(&path).unwrap().unwrap();
    assert!(try_lock(&path).unwrap().is_none());
    assert_eq!(held.metadata().unwrap().mode() & 0o777, 0o664, "users may share a cache");
    drop(held);
    let held = try_lock(&path).unwrap().unwrap();
    fs::remove_file(&path).unwrap();
    assert!(try_lock(&path).unwrap().is_some());
    drop(held);
    let repo = place.repo();
    assert!(repo.hold().is_some());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let lock = runtime.block_on(repo.lock("aa", "config.json", || ())).unwrap();
    assert!(repo.hold().is_none());
    assert_eq!(repo.incomplete("aa", &lock), repo.blob("aa.incomplete"));
    let unlocked = || repo.incomplete("aa", &BlobLock { file: None }).display().to_string();
    assert_ne!(unlocked(), unlocked());
    assert!(unlocked().ends_with(".incomplete") && unlocked().contains("/blobs/aa."), "{}", unlocked());
    drop(lock);
    let removing = repo.hold().unwrap();
    let file = place.0.join(".locks/models--org--name/aa.lock");
    assert!(try_lock(&file).unwrap().is_none(), "no download begins during a removal");
    drop(removing);
    assert!(try_lock(&file).unwrap().is_some());
}

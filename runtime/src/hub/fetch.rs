//! Finds a model in the cache, or downloads the files that are missing.

use std::fs;
use std::path::PathBuf;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::time::sleep;

use super::cache::RepoCache;
use super::checksum::ChecksumKind;
use super::client::{Failure, FileHead, HubClient};
use super::download::{Download, RemoteFile, available, has_blob};
use super::error::{HubError, size_text};
use super::name::{HubName, is_commit};
use super::progress::Progress;
use super::retry::Retries;
use super::select::{INDEX, ModelParts, Selection, select, shards};
use super::tree::Tree;
use crate::config::HubSettings;

/// Files that are downloaded at a time.
const AT_A_TIME: usize = 4;

/// A search for one model.
pub(super) struct Fetch<'a> {
    settings: &'a HubSettings,
    name: &'a HubName,
    parts: ModelParts,
    cache: RepoCache,
}

/// The model in the cache.
struct Cached {
    commit: String,
    selection: Selection,
    missing: Vec<String>,
    /// Whether the list of the repository's files is recorded. Without it, small files may be missing.
    is_listed: bool,
}

impl<'a> Fetch<'a> {
    /// A search for the parts of a model.
    pub(super) fn new(settings: &'a HubSettings, name: &'a HubName, parts: ModelParts) -> Self {
        Self { settings, name, parts, cache: RepoCache::new(&settings.cache, &name.repo) }
    }

    /// The folder or the GGUF file of the model.
    pub(super) async fn run(&self) -> Result<PathBuf, HubError> {
        let cached = self.cached();
        let whole = cached.as_ref().filter(|cached| cached.missing.is_empty());
        if self.settings.offline {
            return match whole {
                Some(whole) => Ok(self.place(whole)),
                None => Err(self.offline(cached.as_ref())),
            };
        }
        // A commit never changes, so the hub is not asked.
        if let Some(whole) = whole.filter(|whole| whole.is_listed && is_commit(self.name.revision())) {
            return Ok(self.place(whole));
        }
        let client = HubClient::new(self.settings)?;
        // With a whole model in the cache, the hub only says whether there is a newer one.
        let retries = if whole.is_some() { Retries::none() } else { Retries::default() };
        let url = client.model_url(&self.name.repo, self.name.revision());
        let answer = match (self.asked(retries, || client.json(&url)).await, whole) {
            (Ok(answer), _) => answer,
            (Err(failure), whole) => {
                let error = client.error(failure, &self.name.repo, self.name.revision());
                let Some(whole) = whole.filter(|_| error.leaves_the_cache()) else { return Err(error) };
                tracing::warn!(
                    model = %self.name,
                    commit = whole.commit,
                    "the hub cannot say whether there is a newer revision, so the one in the cache is used: {error}"
                );
                return Ok(self.place(whole));
            }
        };
        let wrong = || HubError::Unexpected {
            url: url.clone(),
            what: "without a commit and a list of files with relative paths".to_owned(),
        };
        let commit = answer["sha"].as_str().filter(|commit| is_commit(commit)).ok_or_else(wrong)?;
        if is_commit(self.name.revision()) && commit != self.name.revision() {
            let what = format!("the commit {commit} when it was asked for another one");
            return Err(HubError::Unexpected { url: url.clone(), what });
        }
        let tree = Tree::of_siblings(&answer["siblings"]).ok_or_else(wrong)?;
        self.complete(&client, commit, &tree).await
    }

    /// What the cache has of the revision.
    fn cached(&self) -> Option<Cached> {
        let commit = self.cache.commit_of(self.name.revision())?;
        let (selection, missing) = self.cache.check(&commit, self.name.file.as_deref(), self.parts).ok()?;
        let is_listed = self.cache.tree(&commit).is_some();
        Some(Cached { commit, selection, missing, is_listed })
    }

    fn place(&self, cached: &Cached) -> PathBuf {
        if !cached.is_listed {
            tracing::warn!(
                model = %self.name,
                commit = cached.commit,
                "the cache has no list of the model's files, so small files such as the chat template may be missing"
            );
        }
        self.path(&cached.commit, &cached.selection)
    }

    fn path(&self, commit: &str, selection: &Selection) -> PathBuf {
        let folder = self.cache.snapshot(commit);
        match &selection.gguf {
            Some(file) => folder.join(file),
            None => folder,
        }
    }

    fn offline(&self, cached: Option<&Cached>) -> HubError {
        let what = match cached.and_then(|cached| cached.missing.first()) {
            Some(file) => format!("{file} of {}", self.name),
            None => self.name.to_string(),
        };
        HubError::Offline { cache: self.settings.cache.clone(), what }
    }

    /// Asks until there is an answer, or no attempt is left.
    async fn asked<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        mut retries: Retries,
        ask: impl Fn() -> F,
    ) -> Result<T, Failure> {
        loop {
            let failure = match ask().await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let Some(pause) = failure.may_pass().and_then(|asked| retries.next(asked)) else {
                return Err(failure);
            };
            tracing::info!(
                model = %self.name,
                reason = failure.reason(),
                "the hub is asked again in {:.1} s",
                pause.as_secs_f64()
            );
            sleep(pause).await;
        }
    }

    /// Downloads what is missing of a commit.
    async fn complete(&self, client: &HubClient, commit: &str, tree: &Tree) -> Result<PathBuf, HubError> {
        let unsuitable = |reason| HubError::Unsuitable { repo: self.name.repo.clone(), reason };
        let names = tree.names();
        let mut selection = select(&names, self.name.file.as_deref(), self.parts).map_err(unsuitable)?;
        // With the list, a start without the hub knows whether anything is missing.
        self.note(self.cache.set_tree(commit, tree));
        self.fetch(client, commit, tree, &selection.texts).await?;
        if selection.has_index {
            let path = self.cache.snapshot(commit).join(INDEX);
            let index = fs::read(&path).map_err(HubError::cache("read", &path))?;
            selection.weights = shards(&index, &names).map_err(unsuitable)?;
        }
        self.fetch(client, commit, tree, &selection.weights).await?;
        let mut files = selection.texts.iter().chain(&selection.weights);
        if files.any(|file| !self.cache.has(commit, file, tree.bytes(file))) {
            return Err(unsuitable(
                "was removed from the cache while it was downloaded; start again".to_owned(),
            ));
        }
        // The revision leads to the commit once all files are there. Until then it leads to the last one, which may be whole.
        self.note(self.cache.set_commit(self.name.revision(), commit));
        Ok(self.path(commit, &selection))
    }

    /// A record for later starts is not needed now. A cache that cannot be written serves as long as no file is missing.
    fn note(&self, recorded: Result<(), HubError>) {
        if let Err(error) = recorded {
            tracing::warn!(model = %self.name, "a start without the hub may not find the model: {error}");
        }
    }

    /// Downloads those of the files that the commit lacks.
    async fn fetch(
        &self,
        client: &HubClient,
        commit: &str,
        tree: &Tree,
        paths: &[String],
    ) -> Result<(), HubError> {
        let missing = paths.iter().filter(|path| !self.cache.has(commit, path, tree.bytes(path)));
        let heads = stream::iter(missing.map(|path| self.describe(client, commit, tree, path)));
        let described: Vec<Result<RemoteFile, HubError>> = heads.buffered(AT_A_TIME).collect().await;
        let files: Vec<RemoteFile> = described.into_iter().collect::<Result<_, _>>()?;
        let lacking = files.iter().filter(|file| !has_blob(&self.cache.blob(&file.etag), file.bytes));
        let total = lacking.clone().filter_map(|file| file.bytes).fold(0, u64::saturating_add);
        self.check_room(lacking)?;
        let progress = Progress::new(&self.name.to_string(), total);
        let download = Download { client, cache: &self.cache, name: self.name, progress: &progress };
        let runs = files.iter().map(|file| async {
            if !has_blob(&self.cache.blob(&file.etag), file.bytes) {
                download.run(file).await?;
            }
            self.cache.link(commit, &file.path, &file.etag)
        });
        let mut runs = stream::iter(runs).buffer_unordered(AT_A_TIME);
        while let Some(result) = runs.next().await {
            result?;
        }
        Ok(())
    }

    /// Asks for the checksum and the size of a file, and compares the checksum with that in the list.
    async fn describe(
        &self,
        client: &HubClient,
        commit: &str,
        tree: &Tree,
        path: &str,
    ) -> Result<RemoteFile, HubError> {
        let url = client.file_url(&self.name.repo, commit, path);
        let answer = self.asked(Retries::default(), || client.head(&url)).await;
        let answer = answer.map_err(|failure| client.error(failure, &self.name.repo, self.name.revision()));
        let FileHead { etag, bytes } = answer?;
        let Some(kind) = ChecksumKind::of(&etag) else {
            let what = format!("the tag {etag:?} for a file, which is no checksum");
            return Err(HubError::Unexpected { url, what });
        };
        if let Some(listed) = tree.checksum(path).filter(|listed| *listed != etag) {
            let what = format!("the checksum {etag} for a file that its list has with {listed}");
            return Err(HubError::Unexpected { url, what });
        }
        let bytes = bytes.or_else(|| tree.bytes(path));
        if kind == ChecksumKind::Git && bytes.is_none() {
            return Err(HubError::Unexpected { url, what: "without the size of the file".to_owned() });
        }
        Ok(RemoteFile { path: path.to_owned(), url, etag, kind, bytes })
    }

    /// Refuses to begin a download that does not fit.
    fn check_room<'f>(&self, files: impl Iterator<Item = &'f RemoteFile>) -> Result<(), HubError> {
        let left = |file: &RemoteFile| {
            let partial = self.cache.blob(&format!("{}.incomplete", file.etag));
            let done = fs::metadata(partial).map_or(0, |found| found.len());
            file.bytes.unwrap_or(0).saturating_sub(done)
        };
        let needed = files.map(left).fold(0, u64::saturating_add);
        if needed == 0 {
            return Ok(());
        }
        fs::create_dir_all(&self.cache.folder).map_err(HubError::cache("create", &self.cache.folder))?;
        match available(&self.cache.folder) {
            Some(available) if available < needed => Err(HubError::DiskFull {
                folder: self.cache.folder.clone(),
                needed: size_text(needed),
                available: size_text(available),
            }),
            _ => Ok(()),
        }
    }
}

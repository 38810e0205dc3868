//! An empty cache folder for the models of a hub, and the commands that use it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs};

use anyhow::Result;

use super::{FakeHub, RepoFiles};
use crate::folders::Folder;
use crate::process::{Process, binary};

/// A folder in place of `~/.cache/huggingface`, and the hub whose models it has.
pub struct HubHome {
    folder: Arc<Folder>,
    url: String,
    variables: Vec<(String, String)>,
}

impl HubHome {
    /// An empty folder for the models of `hub`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new(hub: &FakeHub) -> Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("baton-hub-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = Folder(env::temp_dir().join(name));
        fs::create_dir_all(&folder.0)?;
        Ok(Self { folder: Arc::new(folder), url: hub.url(), variables: Vec::new() })
    }

    /// The folder of `other` with another hub.
    #[must_use]
    pub fn of(other: &Self, hub: &FakeHub) -> Self {
        Self { folder: Arc::clone(&other.folder), url: hub.url(), variables: Vec::new() }
    }

    /// The same with another variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The cache folder.
    pub fn cache(&self) -> PathBuf {
        self.folder.path().join("hub")
    }

    /// The folder of a model.
    pub fn repo(&self, repo: &str) -> PathBuf {
        self.cache().join(format!("models--{}", repo.replace('/', "--")))
    }

    /// The variables that lead a process here. Those of the user are overridden.
    pub fn variables(&self) -> Vec<(&str, &str)> {
        let fixed = [
            ("HF_ENDPOINT", &*self.url),
            ("HF_HOME", self.folder.path().to_str().unwrap_or_default()),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "1"),
        ];
        let unset = [
            "HF_HUB_CACHE",
            "HF_TOKEN",
            "HF_TOKEN_PATH",
            "HF_HUB_OFFLINE",
            "HTTPS_PROXY",
            "https_proxy",
            "SSL_CERT_FILE",
        ];
        let own = self.variables.iter().map(|(name, value)| (&**name, &**value));
        unset.map(|name| (name, "")).into_iter().chain(fixed).chain(own).collect()
    }

    /// A command of `runtime`, such as `pull`, that has not been started.
    ///
    /// # Errors
    /// There is no binary.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.args(arguments).envs(self.variables());
        Ok(command)
    }

    /// Runs a command of `runtime` to its end.
    ///
    /// # Errors
    /// There is no binary.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.command(arguments)?.output()?)
    }

    /// Starts a process that serves.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn start(&self, arguments: &[&str]) -> Result<Process> {
        Process::start(arguments, &self.variables())
    }

    /// Compares every file of every snapshot of a model, and every whole blob, with the files of the repository. Returns how many files the
    /// snapshots have.
    ///
    /// # Panics
    /// If a file differs.
    pub fn check(&self, repo: &str, files: &RepoFiles) -> usize {
        let blobs = self.repo(repo).join("blobs");
        for blob in below(&blobs).into_iter().filter(|blob| !blob.to_string_lossy().ends_with(".incomplete"))
        {
            let bytes = fs::read(&blob).expect("a blob can be read");
            assert!(
                files.values().any(|file| *file == bytes),
                "{} is no file of the repository",
                blob.display()
            );
        }
        let snapshots = self.repo(repo).join("snapshots");
        let found = below(&snapshots);
        for path in found.iter().filter(|path| !path.to_string_lossy().ends_with(".tmp")) {
            let inside = path.strip_prefix(&snapshots).expect("it lies below");
            let name: PathBuf = inside.components().skip(1).collect();
            let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(files.get(name.to_str().expect("a name")) == Some(&bytes), "{} differs", path.display());
        }
        found.len()
    }
}

/// All files below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let inside = |path: PathBuf| {
        let is_folder = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
        if is_folder { below(&path) } else { vec![path] }
    };
    entries.flat_map(|entry| inside(entry.path())).collect()
}

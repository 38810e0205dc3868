//! A model on disk, in GGUF or Hugging Face format: its specification, and the contents of its tensors.
//!
//! The files store the rows of queries and keys in different orders ([`RowOrder`]). This module returns adjacent pairs for
//! all files, so there is one RoPE implementation and one order in KV pages.

mod digests;
mod files;
mod folder;
mod folder_tensors;
mod fp8;
mod header;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::Progress;
use crate::error::OpenError;
use crate::families::{self, RowOrder};
use crate::gguf::{Gguf, TensorType};
use crate::model::spec::ModelSpec;
use crate::model::tensors::TensorRow;
use crate::model::{EngineConfig, LoadFormat, ModelInfo};
use folder_tensors::FolderTensors;

/// An open checkpoint.
pub(crate) struct Checkpoint {
    files: CheckpointFiles,
    order: RowOrder,
    info: ModelInfo,
    /// The files that the fingerprint covers.
    hashed: Vec<PathBuf>,
    pub(crate) spec: ModelSpec,
    /// The tensor table of the model.
    pub(crate) tensors: Vec<TensorRow>,
}

/// The open files of a checkpoint.
enum CheckpointFiles {
    Gguf(Gguf),
    Folder(FolderTensors),
    /// Only a folder's `config.json`: sizes without weights.
    ConfigOnly,
}

impl Checkpoint {
    /// Opens a GGUF file, or a folder with `config.json` and, unless the weights are random, safetensors. Checks that the model
    /// is supported.
    pub(crate) fn open(config: &EngineConfig, progress: Progress<'_>) -> Result<Self, OpenError> {
        let mut checkpoint = Self::open_headers(&config.model, config.load_format)?;
        let files = checkpoint.fingerprint(config.digests.as_deref(), &|| progress(0, 1))?;
        let keeps_codes = checkpoint.keeps_codes(config.quantization);
        checkpoint.info.fingerprint = config.fingerprint(files, keeps_codes);
        checkpoint.log_fp8(config);
        Ok(checkpoint)
    }

    /// Does the same as [`open`](Self::open), but reads no weights: the fingerprint is zero, and a checksum is not compared.
    pub(crate) fn open_headers(path: &Path, format: LoadFormat) -> Result<Self, OpenError> {
        if format == LoadFormat::Auto && !path.is_dir() {
            return Self::open_gguf(path);
        }
        Self::open_folder(path, format)
    }

    fn open_gguf(path: &Path) -> Result<Self, OpenError> {
        let gguf = files::open_gguf(path)?;
        let architecture = gguf.str("general.architecture").unwrap_or("none");
        let family = families::of_architecture(architecture);
        let family = family.ok_or_else(|| no_family(path, architecture))?;
        let unsupported = |what| OpenError::UnsupportedModel { path: path.to_owned(), what };
        let spec = header::spec(&gguf, architecture, family).map_err(unsupported)?;
        check_names(&spec, |row| &row.gguf, gguf.tensors().keys(), |name| name == header::ROPE_FACTORS)
            .map_err(unsupported)?;
        let stem =
            path.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy().into_owned());
        let name = gguf.str("general.name").map_or(stem, str::to_owned);
        let info = info(&spec, name, path, header::eos_tokens(&gguf, spec.vocabulary));
        let (order, tensors, hashed) = (family.gguf_order, spec.tensors(), vec![path.to_owned()]);
        Ok(Self { files: CheckpointFiles::Gguf(gguf), order, info, hashed, spec, tensors })
    }

    fn open_folder(path: &Path, format: LoadFormat) -> Result<Self, OpenError> {
        let config = folder::Config::read(path)?;
        let family = families::of_model_type(config.model_type());
        let family = family.ok_or_else(|| no_family(path, config.model_type()))?;
        let unsupported = |what| OpenError::UnsupportedModel { path: path.to_owned(), what };
        let spec = config.spec(family).map_err(unsupported)?;
        let mut hashed = vec![path.join("config.json")];
        let files = if format == LoadFormat::Auto {
            let tensors = FolderTensors::open(path, config.quantization())?;
            // Old files also store RoPE's frequencies, which are computed from the configuration.
            let ignored = |name: &str| name.ends_with("rotary_emb.inv_freq");
            check_names(&spec, |row| &row.hugging_face, tensors.names(), ignored).map_err(unsupported)?;
            hashed.extend(tensors.paths());
            CheckpointFiles::Folder(tensors)
        } else {
            CheckpointFiles::ConfigOnly
        };
        let name =
            path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        let info = info(&spec, name, path, config.eos_tokens(spec.vocabulary));
        let tensors = spec.tensors();
        Ok(Self { files, order: RowOrder::Halves, info, hashed, spec, tensors })
    }

    /// The SHA-256 of the model's only file, or of the digests of its files. Reads those whose digests `store` does not have, and calls `read` now and
    /// then. Fails if a GGUF file has another checksum than its `.sha256` file.
    pub(crate) fn fingerprint(
        &self,
        store: Option<&Path>,
        read: &(dyn Fn() + Sync),
    ) -> Result<[u8; 32], OpenError> {
        let digests = digests::of_files(&self.hashed, store, read);
        let digests = digests.map_err(|(path, error)| OpenError::Read { path, error })?;
        if let CheckpointFiles::Gguf(_) = self.files {
            files::compare_checksum(&self.info.path, &digests[0])?;
        }
        Ok(if let [only] = digests[..] { only } else { Sha256::digest(digests.concat()).into() })
    }

    /// The files that the fingerprint covers.
    pub(crate) fn hashed(&self) -> &[PathBuf] {
        &self.hashed
    }

    /// The description of the model.
    pub(crate) fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The type in which [`read`](Self::read) returns a tensor. Fails if the tensor is missing, has other dimensions or has an unsupported type.
    pub(crate) fn require(&self, row: &TensorRow) -> Result<TensorType, OpenError> {
        let (name, stored) = match &self.files {
            CheckpointFiles::Gguf(gguf) => {
                let tensor = gguf.tensors().get(&row.gguf);
                (&row.gguf, tensor.map(|tensor| (Ok(tensor.kind), tensor.dimensions.clone())))
            }
            CheckpointFiles::Folder(tensors) => {
                let dimensions = tensors.dimensions(row);
                (&row.hugging_face, dimensions.map(|dimensions| (tensors.kind(row), dimensions)))
            }
            CheckpointFiles::ConfigOnly => (&row.hugging_face, None),
        };
        let unsupported = |what| OpenError::UnsupportedModel { path: self.info.path.clone(), what };
        let (kind, dimensions) = stored.ok_or_else(|| unsupported(format!("tensor {name} is missing")))?;
        if !dimensions.iter().copied().eq(row.dimensions.iter().map(|&size| size as u64)) {
            let expected = &row.dimensions;
            return Err(unsupported(format!(
                "tensor {name} has dimensions {dimensions:?}, expected {expected:?}"
            )));
        }
        match kind.map_err(unsupported)? {
            kind @ TensorType::Other(_) => Err(OpenError::UnsupportedTensorType {
                path: self.info.path.clone(),
                tensor: name.clone(),
                found: kind.to_string(),
            }),
            // `read` may reorder the numbers of a vector one by one, so they cannot be in blocks.
            kind if dimensions.len() == 1 && kind.block().is_some_and(|(numbers, _)| numbers > 1) => {
                Err(unsupported(format!(
                    "tensor {name} is a vector in {kind}, but vectors must be in F32, F16 or BF16"
                )))
            }
            kind => Ok(kind),
        }
    }

    /// The bytes of a tensor in row-major order. Rows that RoPE rotates together are adjacent.
    pub(crate) fn read(&self, row: &TensorRow) -> Result<Vec<u8>, OpenError> {
        let path = || self.info.path.clone();
        let bytes = match &self.files {
            CheckpointFiles::Gguf(gguf) => {
                gguf.read(&row.gguf).map_err(|error| OpenError::Gguf { path: path(), error })?
            }
            CheckpointFiles::Folder(tensors) => tensors.read(row)?,
            CheckpointFiles::ConfigOnly => {
                return Err(OpenError::UnsupportedModel {
                    path: path(),
                    what: format!("it has no weights, so it has no tensor {}", row.hugging_face),
                });
            }
        };
        Ok(self.in_pairs(row, bytes))
    }

    /// The bytes of a tensor, of which each of its rows has as many, with rows that RoPE rotates together adjacent.
    fn in_pairs(&self, row: &TensorRow, bytes: Vec<u8>) -> Vec<u8> {
        let rows = row.dimensions.last().copied().unwrap_or_default();
        match self.order {
            RowOrder::Halves if row.rotated => interleave(&bytes, rows, self.spec.attention.head_dim),
            _ => bytes,
        }
    }
}

fn info(spec: &ModelSpec, name: String, path: &Path, eos_tokens: Vec<u32>) -> ModelInfo {
    ModelInfo {
        name,
        path: path.to_owned(),
        fingerprint: [0; 32],
        context_tokens: spec.context_tokens,
        vocabulary: spec.vocabulary as u32,
        eos_tokens,
        parameters: spec.parameters(),
    }
}

fn no_family(path: &Path, architecture: &str) -> OpenError {
    OpenError::UnsupportedArchitecture {
        path: PathBuf::from(path),
        architecture: architecture.to_owned(),
        families: families::names(),
    }
}

/// Refuses a tensor that the forward pass does not use. A file with a tied output may still have the output's tensor.
fn check_names<S: AsRef<str>>(
    spec: &ModelSpec,
    name_of: fn(&TensorRow) -> &String,
    names: impl Iterator<Item = S>,
    ignored: fn(&str) -> bool,
) -> Result<(), String> {
    let rows = ModelSpec { tied: false, ..spec.clone() }.tensors();
    let known: HashSet<&str> = rows.iter().map(|row| name_of(row).as_str()).collect();
    let mut unknown = names.filter(|name| !known.contains(name.as_ref()) && !ignored(name.as_ref()));
    match unknown.next() {
        Some(name) => Err(format!("it has a tensor {}, which the forward pass does not use", name.as_ref())),
        None => Ok(()),
    }
}

/// Reorders `rows` rows of heads from [`RowOrder::Halves`] to [`RowOrder::Pairs`].
fn interleave(bytes: &[u8], rows: usize, head_dim: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / rows.max(1);
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let (head, place) = (row / head_dim, row % head_dim);
        let from = head * head_dim + place % 2 * (head_dim / 2) + place / 2;
        out.extend_from_slice(&bytes[from * row_bytes..][..row_bytes]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Tiny;

    #[test]
    fn a_gpu_refuses_sizes_that_only_the_cpu_computes() {
        let check = |hidden, feed, expect: Result<(), &str>| {
            let (file, _) = Tiny { kind: 0, hidden, feed, ..Tiny::USUAL }.file();
            let spec = Checkpoint::open_headers(file.path(), LoadFormat::Auto).unwrap().spec;
            match (spec.check_multiples(32), expect) {
                (Ok(()), Ok(())) => {}
                (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
                (found, expect) => panic!("{hidden} {feed}: {found:?}, not {expect:?}"),
            }
        };
        check(64, 96, Ok(()));
        check(48, 96, Err("hidden size is 48"));
        check(64, 176, Err("feed-forward size is 176"));
    }

    /// The counts are those that the authors of the models publish.
    #[test]
    fn the_shapes_of_published_models_have_their_parameters() {
        let check = |name: &str, parameters: u64| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models").join(name);
            let checkpoint = Checkpoint::open_headers(&path, LoadFormat::Dummy { seed: 0 }).unwrap();
            assert_eq!(checkpoint.info().parameters, parameters, "{name}");
        };
        check("llama-3.1-8b", 8_030_261_248);
        check("qwen2.5-7b", 7_615_616_512);
        check("qwen3-8b", 8_190_735_360);
    }

    #[test]
    fn rows_of_halves_become_pairs() {
        let halves = [0, 1, 2, 3, 10, 11, 12, 13];
        assert_eq!(interleave(&halves, 8, 4), [0, 2, 1, 3, 10, 12, 11, 13]);
        let two_bytes = [0, 0, 1, 1, 2, 2, 3, 3];
        assert_eq!(interleave(&two_bytes, 4, 4), [0, 0, 2, 2, 1, 1, 3, 3]);
    }
}

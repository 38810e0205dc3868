//! The environment of a process: cache folder, cores, environment variables.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::cache_folder;
use engine::{CudaError, GpuSurvey, KERNELS_FOR};

use super::{HubSettings, Role};

/// The prefix of the environment variables that set keys.
pub(super) const PREFIX: &str = "BATON_";

/// The default model file. `cargo xtask demo` downloads it.
const DEFAULT_MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// How long the driver may take to list the GPUs.
const DRIVER_WITHIN: Duration = Duration::from_secs(10);

/// Whether the kernels run on the first GPU that the process sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstGpu {
    /// They do not, or there is no GPU.
    Unusable,
    /// They do.
    Usable,
    /// The driver is asked when a configuration needs the answer.
    Unasked,
}

/// The environment of a process when it started.
#[derive(Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// Folder of downloaded models and libraries: `$XDG_CACHE_HOME/baton`, else `$HOME/.cache/baton`.
    pub cache: PathBuf,
    /// Folder of the unpacked release archive, which has the program in its `bin`.
    pub archive: Option<PathBuf>,
    /// Folders with the Python packages of the environment into which pip installed the program.
    pub packages: Vec<PathBuf>,
    /// Number of cores that this process may use.
    pub cores: usize,
    /// The first GPU.
    pub gpu: FirstGpu,
    /// The `UCX_` variables that the operator set. UCX reads them itself; Baton does not override them.
    pub(super) ucx_variables: BTreeMap<String, String>,
    /// The file in `LMCACHE_CONFIG_FILE`. It is read if `--config` is not given.
    pub lmcache_file: Option<PathBuf>,
    /// The hub of models and the cache that Python's tools share.
    pub hub: HubSettings,
    /// The variables that start with `BATON_`, by name.
    pub(super) variables: BTreeMap<String, String>,
}

impl Surroundings {
    /// The environment of this process.
    pub fn of_process() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let archive = std::env::current_exe().ok().and_then(|program| archive_of(&program));
        let packages = archive.as_deref().map(packages_of).unwrap_or_default();
        let gpu = FirstGpu::Unasked;
        Self { archive, packages, gpu, ..Self::from_variables(std::env::vars_os(), cores) }
    }

    /// The environment of a process with these variables and cores, without a GPU and a release archive.
    pub fn from_variables(variables: impl IntoIterator<Item = (OsString, OsString)>, cores: usize) -> Self {
        let all: BTreeMap<OsString, OsString> = variables.into_iter().collect();
        let folder =
            |name: &str| all.get(&OsString::from(name)).filter(|value| !value.is_empty()).map(PathBuf::from);
        let variable = |name: &str| all.get(OsStr::new(name)).cloned();
        let cache = cache_folder::locate(variable).unwrap_or_else(|_| PathBuf::from(".cache/baton"));
        let named = |prefix: &'static str| {
            all.iter()
                .map(|(name, value)| {
                    (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
                })
                .filter(move |(name, _)| name.starts_with(prefix))
        };
        let ucx_variables = named("UCX_").collect();
        let lmcache_file = folder("LMCACHE_CONFIG_FILE");
        let variables = named(PREFIX).collect();
        let hub = HubSettings::from_variables(|name| variable(name)?.into_string().ok());
        let (archive, packages, gpu) = (None, Vec::new(), FirstGpu::Unusable);
        Self { ucx_variables, variables, lmcache_file, cache, archive, packages, cores, gpu, hub }
    }

    /// The default of `engine.device`. A proxy has no engine.
    pub(super) fn device(&self, role: Role) -> &'static str {
        let is_usable = match self.gpu {
            _ if role == Role::Proxy => false,
            FirstGpu::Usable => true,
            FirstGpu::Unusable => false,
            FirstGpu::Unasked => driver_shows_a_usable_gpu(),
        };
        if is_usable { "cuda" } else { "cpu" }
    }

    /// The API key in `OPENAI_API_KEY`, which OpenAI's clients send.
    pub fn openai_key() -> Option<String> {
        std::env::var("OPENAI_API_KEY").ok().filter(|key| !key.is_empty())
    }

    /// The token in `HF_TOKEN`, with which models are downloaded from Hugging Face.
    pub fn hugging_face_token() -> Option<String> {
        std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty())
    }

    /// The GPUs that this process may use: `CUDA_VISIBLE_DEVICES`.
    pub fn visible_gpus() -> Option<String> {
        std::env::var("CUDA_VISIBLE_DEVICES").ok()
    }

    /// Whether a service manager such as systemd wants reports: it sets `NOTIFY_SOCKET`.
    pub fn has_service_manager() -> bool {
        std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty())
    }

    /// `value`, unless the operator set the UCX variable `name`.
    pub fn ucx_default(&self, name: &str, value: &str) -> Option<String> {
        (!self.ucx_variables.contains_key(name)).then(|| value.to_owned())
    }

    /// The value of the UCX variable `name`, if the operator set it.
    pub fn ucx_variable(&self, name: &str) -> Option<String> {
        self.ucx_variables.get(name).cloned()
    }

    /// The model that is served if the key `model` is not set.
    pub fn default_model(&self) -> PathBuf {
        self.cache.join("models").join(DEFAULT_MODEL)
    }
}

/// Asks the driver whether the default device is a GPU. A driver that does not answer counts as a GPU with a fault.
fn driver_shows_a_usable_gpu() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let (answer, asked) = mpsc::channel();
        thread::spawn(move || answer.send(engine::gpu_survey(false)));
        match asked.recv_timeout(DRIVER_WITHIN) {
            Ok(survey) => is_usable(survey),
            Err(_) => true,
        }
    })
}

/// Whether the default device is a GPU: the kernels run on the first one, or it has a fault, which the start or `doctor` names. The version of the driver
/// is not judged here: the start names one that is too old.
pub(super) fn is_usable(survey: Result<Option<GpuSurvey>, CudaError>) -> bool {
    match survey {
        Ok(survey) => {
            survey.is_some_and(|survey| survey.gpus.first().is_some_and(|gpu| gpu.capability == KERNELS_FOR))
        }
        Err(error) => !error.is_no_gpu(),
    }
}

/// The folder that contains this program in its `bin`.
pub(super) fn archive_of(program: &Path) -> Option<PathBuf> {
    let bin = program.parent().filter(|folder| folder.ends_with("bin"))?;
    Some(bin.parent()?.to_owned())
}

/// The folders of Python packages with Baton in an environment such as a virtual one or `/usr/local`, and `environment` itself for
/// `pip install --target`. Only a folder with Baton's wheel is one that Baton may load libraries from: others may write to a folder beside any `bin`.
fn packages_of(environment: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for library in ["lib", "lib64"] {
        let Ok(entries) = environment.join(library).read_dir() else { continue };
        let versions = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let is_python = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"))
        };
        let packages = |path: PathBuf| ["site-packages", "dist-packages"].map(|name| path.join(name));
        folders.extend(versions.filter(is_python).flat_map(packages));
    }
    folders.sort();
    folders.push(environment.to_owned());
    folders.retain(|folder| has_wheel(folder));
    folders
}

/// Whether Baton's wheel is installed in a folder of Python packages.
fn has_wheel(folder: &Path) -> bool {
    let Ok(entries) = folder.read_dir() else { return false };
    let is_ours = |name: &str| name.starts_with("baton_serve-") && name.ends_with(".dist-info");
    entries.filter_map(Result::ok).any(|entry| is_ours(&entry.file_name().to_string_lossy()))
}

/// Shows the names of variables and not their values, which may be secrets.
impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings")
            .field("cache", &self.cache)
            .field("archive", &self.archive)
            .field("packages", &self.packages)
            .field("cores", &self.cores)
            .field("lmcache_file", &self.lmcache_file)
            .field("hub", &self.hub)
            .field("ucx_variables", &self.ucx_variables.keys())
            .field("variables", &self.variables.keys())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn python_packages_are_found_beside_the_program() {
        let environment = std::env::temp_dir().join(format!("baton-packages-{}", std::process::id()));
        let folders = [
            "lib/python3.12/dist-packages",
            "lib/python3.11/site-packages",
            "lib64/python3.11/site-packages",
        ];
        for folder in
            folders.iter().chain(&["lib/python2.7/site-packages", "lib/python3.13/lib-dynload", "lib/ucx"])
        {
            fs::create_dir_all(environment.join(folder)).unwrap();
        }
        assert_eq!(packages_of(&environment), [] as [PathBuf; 0], "Baton's wheel is in none of them");
        for folder in [folders[1], folders[2], ""] {
            fs::create_dir(environment.join(folder).join("baton_serve-0.1.0.dist-info")).unwrap();
        }
        let found = packages_of(&environment);
        fs::remove_dir_all(&environment).unwrap();
        let expect = [folders[1], folders[2], ""].map(|folder| environment.join(folder));
        assert_eq!(found, expect);
    }
}

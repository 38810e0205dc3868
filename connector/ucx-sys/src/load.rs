//! Finds `libucp.so.0`, checks its version and resolves its functions.

use crate::raw::Functions;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::c_uint;
use std::fmt;
use std::path::{Path, PathBuf};

/// The library's name for the loader's own search.
const SONAME: &str = "libucp.so.0";

/// A loaded UCX, never unloaded: its worker threads, signal handlers and memory hooks outlive every handle.
pub struct Ucx {
    /// The resolved functions, as in C.
    pub raw: Functions,
    path: PathBuf,
    version: Version,
}

/// A version of UCX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub release: u32,
}

impl Version {
    /// The oldest version accepted: in older ones the flush of `cuda_ipc` returns before the bytes have arrived
    /// (`cuda_ipc_iface.c`, `uct_base_ep_flush`).
    pub const OLDEST: Self = Self { major: 1, minor: 21, release: 0 };
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.release)
    }
}

/// UCX could not be loaded; the text says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// No candidate exists and the loader's search found nothing.
    #[error(
        "{SONAME} was not found (looked in: {looked_in}); run `cargo xtask demo` once to fetch UCX, or install UCX \
         1.21 or newer and set transport.ucx_library"
    )]
    Absent {
        /// The places tried, as text.
        looked_in: String,
    },
    /// The file exists but the loader refuses it.
    #[error("{} exists but cannot be loaded ({reason}); set transport.ucx_library to a working UCX", path.display())]
    Unloadable {
        /// The file.
        path: PathBuf,
        /// The loader's text.
        reason: String,
    },
    /// The library is older than [`Version::OLDEST`].
    #[error(
        "UCX {version} at {} is older than 1.21, whose flush is the first that is safe on GPUs; run `cargo xtask \
         demo` once to fetch a newer one, or set transport.ucx_library", path.display()
    )]
    TooOld {
        /// The version found.
        version: Version,
        /// The file.
        path: PathBuf,
    },
    /// The file is not UCX, or not one that these bindings know.
    #[error("{} lacks {symbol}, so it is not a usable UCX; set transport.ucx_library to UCX 1.21 or newer", path.display())]
    Symbol {
        /// The file.
        path: PathBuf,
        /// The function that is missing.
        symbol: &'static str,
    },
}

impl LoadError {
    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Absent { .. } => "absent",
            Self::Unloadable { .. } => "unloadable",
            Self::TooOld { .. } => "too_old",
            Self::Symbol { .. } => "symbol",
        }
    }
}

impl Ucx {
    /// Loads the first of `candidates` that exists, else what the loader finds under the name `libucp.so.0`.
    ///
    /// The first library found decides: one that is broken or too old is an error, not a reason to look further.
    /// Its companions (`libuct`, `libucs`, `libucm`) are found beside it through its own rpath, transport modules
    /// in `ucx/` beside it.
    pub fn load(candidates: &[PathBuf]) -> Result<&'static Self, LoadError> {
        for path in candidates {
            if path.exists() {
                return Self::open(path);
            }
        }
        match dlopen(Path::new(SONAME)) {
            Ok(library) => Self::adopt(library, Path::new(SONAME)),
            Err(error) => {
                let mut places: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
                places.push(format!("the loader's search path: {error}"));
                Err(LoadError::Absent { looked_in: places.join(", ") })
            }
        }
    }

    /// Loads exactly this file, which the operator named.
    pub fn open(path: &Path) -> Result<&'static Self, LoadError> {
        if !path.exists() {
            return Err(LoadError::Absent { looked_in: path.display().to_string() });
        }
        let library = dlopen(path)
            .map_err(|error| LoadError::Unloadable { path: path.to_owned(), reason: error.to_string() })?;
        Self::adopt(library, path)
    }

    fn adopt(library: Library, path: &Path) -> Result<&'static Self, LoadError> {
        // Leaked before anything else: even a library that is refused may have started threads.
        let library: &'static Library = Box::leak(Box::new(library));
        let missing = |symbol| LoadError::Symbol { path: path.to_owned(), symbol };
        type GetVersion = unsafe extern "C" fn(*mut c_uint, *mut c_uint, *mut c_uint);
        // SAFETY: `ucp_get_version` has had this signature in every release of UCX.
        let get_version = unsafe { library.get::<GetVersion>("ucp_get_version") }
            .map_err(|_| missing("ucp_get_version"))?;
        let mut version = Version { major: 0, minor: 0, release: 0 };
        // SAFETY: three valid pointers to integers, which the function fills.
        unsafe { get_version(&mut version.major, &mut version.minor, &mut version.release) };
        if version < Version::OLDEST {
            return Err(LoadError::TooOld { version, path: path.to_owned() });
        }
        // SAFETY: the version says that the names have the types of the bindings; the library is leaked above.
        let raw = unsafe { Functions::resolve(library) }.map_err(missing)?;
        Ok(Box::leak(Box::new(Self { raw, path: path.to_owned(), version })))
    }

    /// The file it was loaded from, or the bare name that the loader's search resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The library's version.
    pub fn version(&self) -> Version {
        self.version
    }
}

impl fmt::Debug for Ucx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ucx")
            .field("path", &self.path)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

fn dlopen(path: &Path) -> Result<Library, libloading::Error> {
    // SAFETY: running a library's initialisers is what loading UCX means; the operator chose the file.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
}

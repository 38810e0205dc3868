//! Finds `libucp.so.0`, checks its version and resolves its functions.

use crate::raw::Functions;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::c_uint;
use std::fmt;
use std::path::{Path, PathBuf};

/// The library's name for the dynamic loader's search.
const SONAME: &str = "libucp.so.0";

/// A loaded UCX library. It is never unloaded, because its threads, signal handlers and memory hooks outlive all handles.
pub struct Ucx {
    /// The library's functions.
    pub raw: Functions,
    path: PathBuf,
    version: Version,
}

/// A version of UCX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number.
    pub release: u32,
}

impl Version {
    /// The oldest supported version. In older ones a flush over `cuda_ipc` completes before the bytes have arrived
    /// (`cuda_ipc_iface.c`, `uct_base_ep_flush`).
    pub const OLDEST: Self = Self { major: 1, minor: 21, release: 0 };
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.release)
    }
}

/// UCX could not be loaded. The text says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// No candidate exists, and the loader's search found nothing.
    #[error(
        "{SONAME} was not found (looked in: {looked_in}); run `cargo xtask demo` once to fetch UCX, or install UCX \
         1.21 or newer and set transport.ucx_library"
    )]
    Absent {
        /// The paths that were tried, as text.
        looked_in: String,
    },
    /// The file exists, but the loader cannot load it.
    #[error("{} exists but cannot be loaded ({reason}); set transport.ucx_library to a working UCX", path.display())]
    Unloadable {
        /// The file.
        path: PathBuf,
        /// The loader's message.
        reason: String,
    },
    /// The library is older than [`Version::OLDEST`].
    #[error(
        "UCX {version} at {} is older than 1.21, and its flush is not safe on GPUs; run `cargo xtask demo` once to \
         fetch a newer one, or set transport.ucx_library", path.display()
    )]
    TooOld {
        /// The version found.
        version: Version,
        /// The file.
        path: PathBuf,
    },
    /// The file is not UCX, or lacks a function that these bindings need.
    #[error("{} lacks {symbol}, so it is not a usable UCX; set transport.ucx_library to UCX 1.21 or newer", path.display())]
    Symbol {
        /// The file.
        path: PathBuf,
        /// The missing function.
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
    /// Loads the first of `candidates` that exists, or else the `libucp.so.0` that the dynamic loader finds.
    ///
    /// Only the first library found is tried. The library's rpath tells the loader to look for `libuct`, `libucs` and `libucm` in the
    /// library's own folder. UCX looks for its transport modules in `ucx/` in the same folder.
    ///
    /// # Errors
    /// [`LoadError`].
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

    /// Loads the library at `path`.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn open(path: &Path) -> Result<&'static Self, LoadError> {
        if !path.exists() {
            return Err(LoadError::Absent { looked_in: path.display().to_string() });
        }
        let library = dlopen(path)
            .map_err(|error| LoadError::Unloadable { path: path.to_owned(), reason: error.to_string() })?;
        Self::adopt(library, path)
    }

    fn adopt(library: Library, path: &Path) -> Result<&'static Self, LoadError> {
        // Leaked before the checks, because a library that is rejected may have started threads too.
        let library: &'static Library = Box::leak(Box::new(library));
        let missing = |symbol| LoadError::Symbol { path: path.to_owned(), symbol };
        type GetVersion = unsafe extern "C" fn(*mut c_uint, *mut c_uint, *mut c_uint);
        // SAFETY: `ucp_get_version` has this signature in all releases of UCX.
        let get_version = unsafe { library.get::<GetVersion>("ucp_get_version") }
            .map_err(|_| missing("ucp_get_version"))?;
        let mut version = Version { major: 0, minor: 0, release: 0 };
        // SAFETY: the three pointers refer to integers on our stack, which the function sets.
        unsafe { get_version(&mut version.major, &mut version.minor, &mut version.release) };
        if version < Version::OLDEST {
            return Err(LoadError::TooOld { version, path: path.to_owned() });
        }
        // SAFETY: the version is at least `OLDEST`. The bindings have the function types of `OLDEST` and of all later versions of this API.
        // The library was leaked above, so it is never unloaded.
        let raw = unsafe { Functions::resolve(library) }.map_err(missing)?;
        Ok(Box::leak(Box::new(Self { raw, path: path.to_owned(), version })))
    }

    /// The file that was loaded, or `libucp.so.0` if the dynamic loader found it.
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
    // SAFETY: loading runs the library's initialisers. The operator chose the file and is responsible for it.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
}

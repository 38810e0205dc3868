//! Compiles the CUDA kernels in `kernels/` and links them into the crate. Does nothing without the feature `cuda`.
//!
//! The cache folder keeps the object files. The name of an object is a hash of all its inputs, so other profiles, other
//! clones and clippy reuse it. The CUDA runtime is linked statically and loads the driver at its first call. So the
//! binary also starts on a machine without a driver or a GPU, and reports that.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    if let Err(sentence) = cuda::build() {
        println!("cargo::error={sentence}");
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::env;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::{self, Command};
    use std::sync::{Mutex, PoisonError};
    use std::thread;

    use sha2::{Digest, Sha256};

    type Result<T> = std::result::Result<T, String>;

    /// One object file: its source, its flags beyond [`FLAGS`], and the headers of `kernels/` that it includes.
    struct Unit {
        source: &'static str,
        flags: &'static [&'static str],
        headers: &'static [&'static str],
    }

    const FLASH_64: &[&str] = &["-use_fast_math", "-DBATON_HEAD_DIM=64"];
    const FLASH_128: &[&str] = &["-use_fast_math", "-DBATON_HEAD_DIM=128"];

    /// Slowest first. Only the FlashInfer units use `-use_fast_math`, which FlashInfer is tuned with. Our own kernels
    /// need exact rounding, and name each function that approximates.
    const UNITS: [Unit; 12] = [
        Unit { source: "fa3.cu", flags: FLASH_128, headers: &["attention.cuh"] },
        Unit { source: "fa3.cu", flags: FLASH_64, headers: &["attention.cuh"] },
        Unit {
            source: "decode.cu",
            flags: &[],
            headers: &[
                "decode_tiles.cuh",
                "launch.cuh",
                "rounding.cuh",
                "stages.cuh",
                "vectors.cuh",
                "wgmma.cuh",
            ],
        },
        Unit {
            source: "glue.cu",
            flags: &[],
            headers: &["kv.cuh", "launch.cuh", "rounding.cuh", "vectors.cuh"],
        },
        Unit {
            source: "row_products.cu",
            flags: &[],
            headers: &["fp8.cuh", "launch.cuh", "stages.cuh", "vectors.cuh"],
        },
        Unit {
            source: "fp8_products.cu",
            flags: &[],
            headers: &["launch.cuh", "rounding.cuh", "stages.cuh", "vectors.cuh", "wgmma.cuh"],
        },
        Unit { source: "fp8.cu", flags: &[], headers: &["fp8.cuh", "launch.cuh"] },
        Unit { source: "kv.cu", flags: &[], headers: &["kv.cuh"] },
        Unit { source: "sample.cu", flags: &[], headers: &["counts.cuh", "launch.cuh", "rank.cuh"] },
        Unit { source: "counts.cu", flags: &[], headers: &["counts.cuh", "launch.cuh"] },
        Unit { source: "score.cu", flags: &[], headers: &["launch.cuh", "rank.cuh"] },
        Unit { source: "page_hash.cu", flags: &[], headers: &[] },
    ];

    /// `sm_90a`: machine code for Hopper only, including its architecture-specific instructions. No PTX is included, so
    /// nothing is compiled at run time.
    const FLAGS: [&str; 9] = [
        "-std=c++17",
        "-O3",
        "-gencode",
        "arch=compute_90a,code=sm_90a",
        "--expt-relaxed-constexpr",
        "-Xcompiler",
        "-fPIC",
        "-DNDEBUG",
        "-DFLASHINFER_ENABLE_BF16",
    ];

    /// Include folders within FlashInfer's folder, in this order. FlashInfer's CCCL must precede the toolkit's, which
    /// lacks headers that FlashInfer uses.
    const INCLUDES: [&str; 5] =
        ["cccl/libcudacxx/include", "cccl/cub", "cccl/thrust", "include", "cutlass/include"];

    /// The name that stands for the folder of the headers in messages of FlashInfer, so that the program does not name a folder of
    /// the machine that built it.
    const HEADERS_NAME: &str = "flashinfer";

    /// Compilers that run in parallel. Each takes up to a gigabyte of memory.
    const COMPILERS: usize = 2;

    pub(super) fn build() -> Result<()> {
        for name in ["CUDA_HOME", "XDG_CACHE_HOME", "HOME"] {
            println!("cargo::rerun-if-env-changed={name}");
        }
        let cache = common::cache_folder::locate(|name| env::var_os(name))?;
        let tools = Tools::find(&cache)?;
        let kernels = folder("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?.join("kernels");
        for unit in &UNITS {
            for file in unit.headers.iter().chain([&unit.source]) {
                println!("cargo::rerun-if-changed={}", kernels.join(file).display());
            }
        }
        let objects = compile_all(&tools, &kernels, &cache.join("kernels"))?;
        let out = folder("OUT_DIR").ok_or("OUT_DIR is not set")?;
        archive(&objects, &out.join("libbaton_kernels.a"))?;

        println!("cargo::rustc-link-search=native={}", out.display());
        println!("cargo::rustc-link-search=native={}", tools.libraries.display());
        println!("cargo::rustc-link-lib=static=baton_kernels");
        println!("cargo::rustc-link-lib=static=cudart_static");
        for library in ["stdc++", "dl", "rt", "pthread"] {
            println!("cargo::rustc-link-lib=dylib={library}");
        }
        Ok(())
    }

    /// The folder in an environment variable.
    fn folder(name: &str) -> Option<PathBuf> {
        env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    /// The compiler and the libraries to link.
    struct Tools {
        nvcc: PathBuf,
        libraries: PathBuf,
        /// FlashInfer's headers and those of the libraries it uses.
        headers: PathBuf,
        /// The versions of the compiler and the headers.
        version: String,
    }

    impl Tools {
        /// Finds the toolkit in `CUDA_HOME`, or the fetched toolkit if `CUDA_HOME` is not set. FlashInfer is always the
        /// fetched one.
        fn find(cache: &Path) -> Result<Self> {
            let fetched = cache.join("cuda-13.0");
            let stamp = fetched.join("stamp");
            println!("cargo::rerun-if-changed={}", stamp.display());
            let stamp = fs::read_to_string(&stamp).map_err(|_| {
                format!(
                    "the feature `cuda` needs FlashInfer, which is not in {}: run `cargo xtask cuda`",
                    fetched.display()
                )
            })?;
            let own = folder("CUDA_HOME");
            let home = own.clone().unwrap_or_else(|| fetched.join("nvidia/cu13"));
            let advice = match own {
                Some(_) => "set CUDA_HOME to the folder of a CUDA 13 toolkit, or unset it",
                None => "run `cargo xtask cuda`, or set CUDA_HOME to the folder of a CUDA 13 toolkit",
            };
            let nvcc = home.join("bin/nvcc");
            let release = Command::new(&nvcc).arg("--version").output();
            let release = match release {
                Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
                _ => return Err(format!("{} does not run: {advice}", nvcc.display())),
            };
            if !release.contains("release 13.") {
                return Err(format!("{} is not from CUDA 13: {advice}", nvcc.display()));
            }
            let mut folders = ["lib64", "lib"].into_iter().map(|name| home.join(name));
            let libraries = folders
                .find(|folder| folder.join("libcudart_static.a").is_file())
                .ok_or_else(|| format!("{}/lib64 has no libcudart_static.a: {advice}", home.display()))?;
            let headers = fetched.join("flashinfer/data");
            Ok(Self { nvcc, libraries, headers, version: format!("{release}{stamp}") })
        }
    }

    /// Returns the objects of all units. Compiles those that the cache lacks.
    fn compile_all(tools: &Tools, kernels: &Path, cache: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(cache).map_err(|error| format!("cannot create {}: {error}", cache.display()))?;
        let waiting = Mutex::new(UNITS.iter());
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            let mut objects = Vec::new();
            while let Some(unit) = next() {
                objects.push(compile(unit, tools, kernels, cache)?);
            }
            Ok(objects)
        };
        let results: Vec<Result<Vec<PathBuf>>> = thread::scope(|scope| {
            let compilers: Vec<_> = (0..COMPILERS).map(|_| scope.spawn(work)).collect();
            let panicked = || Err("a compiler thread panicked".to_owned());
            compilers.into_iter().map(|compiler| compiler.join().unwrap_or_else(|_| panicked())).collect()
        });
        let mut objects = results.into_iter().collect::<Result<Vec<_>>>()?.concat();
        // Threads finish in any order; sorting makes the archive reproducible.
        objects.sort();
        Ok(objects)
    }

    fn compile(unit: &Unit, tools: &Tools, kernels: &Path, cache: &Path) -> Result<PathBuf> {
        let source = kernels.join(unit.source);
        let name = content_name(unit, &tools.version, kernels)?;
        let object = cache.join(format!("{name}.o"));
        if object.is_file() {
            return Ok(object);
        }
        let part = cache.join(format!("{name}-{}.part", process::id()));
        let output = Command::new(&tools.nvcc)
            .args(FLAGS)
            .args(unit.flags)
            .args(INCLUDES.iter().map(|include| format!("-I{}", tools.headers.join(include).display())))
            .arg("-Xcompiler")
            .arg(format!("-fmacro-prefix-map={}={HEADERS_NAME}", tools.headers.display()))
            .arg("-c")
            .arg(&source)
            .arg("-o")
            .arg(&part)
            .output()
            .map_err(|error| format!("cannot run {}: {error}", tools.nvcc.display()))?;
        if !output.status.success() {
            let _ = fs::remove_file(&part);
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            let line = said.lines().find(|line| line.contains("error")).or(said.lines().next());
            let line = line.unwrap_or("no reason given");
            return Err(format!("nvcc cannot compile {}: {line}", source.display()));
        }
        fs::rename(&part, &object).map_err(|error| format!("cannot write {}: {error}", object.display()))?;
        Ok(object)
    }

    /// The sha256 of all inputs of an object, in hex.
    fn content_name(unit: &Unit, version: &str, kernels: &Path) -> Result<String> {
        let mut hasher = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        add(version.as_bytes());
        add(HEADERS_NAME.as_bytes());
        FLAGS.iter().chain(unit.flags).chain(&INCLUDES).for_each(|flag| add(flag.as_bytes()));
        for file in unit.headers.iter().chain([&unit.source]) {
            let path = kernels.join(file);
            add(&fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?);
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn archive(objects: &[PathBuf], archive: &Path) -> Result<()> {
        // `ar` would add to an existing archive.
        let _ = fs::remove_file(archive);
        let output = Command::new("ar")
            .arg("crs")
            .arg(archive)
            .args(objects)
            .output()
            .map_err(|error| format!("cannot run ar, which comes with the linker: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("cannot write {}: {}", archive.display(), said.trim().replace('\n', "; ")));
        }
        Ok(())
    }
}

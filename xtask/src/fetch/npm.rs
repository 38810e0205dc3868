//! npm packages that tests run or read: OpenAI's client for Node.js, the JSON Schema Test Suite, TypeScript with Grafana's types, and axe-core. None
//! needs its dependencies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{FetchedPart, checksum};

/// OpenAI's client for Node.js: the folder of the package.
pub(crate) const OPENAI: FetchedPart = FetchedPart {
    path: |cache| OPENAI_CLIENT.path(cache),
    is_ready: |cache| OPENAI_CLIENT.path(cache).is_dir(),
    fetch: |cache, work| OPENAI_CLIENT.fetch(cache, work),
};

/// The JSON Schema Test Suite: the folder of the package.
pub(crate) const SCHEMAS: FetchedPart = FetchedPart {
    path: |cache| SCHEMA_SUITE.path(cache),
    is_ready: |cache| SCHEMA_SUITE.path(cache).is_dir(),
    fetch: |cache, work| SCHEMA_SUITE.fetch(cache, work),
};

/// The types of Grafana's dashboards: the folder of the package.
pub(crate) const GRAFANA_SCHEMA: FetchedPart = FetchedPart {
    path: |cache| GRAFANA_TYPES.path(cache),
    is_ready: |cache| GRAFANA_TYPES.path(cache).is_dir(),
    fetch: |cache, work| GRAFANA_TYPES.fetch(cache, work),
};

/// TypeScript's compiler: the folder of the package.
pub(crate) const TYPESCRIPT: FetchedPart = FetchedPart {
    path: |cache| TYPESCRIPT_COMPILER.path(cache),
    is_ready: |cache| TYPESCRIPT_COMPILER.path(cache).is_dir(),
    fetch: |cache, work| TYPESCRIPT_COMPILER.fetch(cache, work),
};

/// The script that checks the accessibility of a page: the folder of the package.
pub(crate) const AXE: FetchedPart = FetchedPart {
    path: |cache| AXE_CORE.path(cache),
    is_ready: |cache| AXE_CORE.path(cache).is_dir(),
    fetch: |cache, work| AXE_CORE.fetch(cache, work),
};

const OPENAI_CLIENT: Package = Package {
    name: "openai",
    version: "7.59.0",
    sha256: "7f1deacae8d17efc9c02622b032851c7e28e148b62b1da7747eb8b426ea4dba9",
};

const SCHEMA_SUITE: Package = Package {
    name: "json-schema-test-suite",
    version: "0.0.10",
    sha256: "0b54234c9ae1c164deefae9f45c1491f18852b6d5748c093279597b7ae0e328c",
};

const GRAFANA_TYPES: Package = Package {
    name: "@grafana/schema",
    version: "13.2.3",
    sha256: "f492f0ec5b0212cbf7f098d5d54b4a540371c262c6b78e9016ee2d26add9e559",
};

const TYPESCRIPT_COMPILER: Package = Package {
    name: "typescript",
    version: "5.9.3",
    sha256: "10e108c9cf7d5f2879053dff18515fb405abf2ccef63eaaf017d9c571687a1d3",
};

const AXE_CORE: Package = Package {
    name: "axe-core",
    version: "4.14.1",
    sha256: "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745",
};

/// A package of the npm registry.
struct Package {
    name: &'static str,
    version: &'static str,
    /// The checksum of the file that `npm pack` downloads.
    sha256: &'static str,
}

impl Package {
    fn path(&self, cache: &Path) -> PathBuf {
        cache.join(format!("npm-{}-{}", self.file_name(), self.version))
    }

    /// The name in file names: `@grafana/schema` becomes `grafana-schema`.
    fn file_name(&self) -> String {
        self.name.trim_start_matches('@').replace('/', "-")
    }

    /// Downloads, checks and unpacks the package, and moves it into place. No script of the package runs.
    fn fetch(&self, cache: &Path, work: &Path) -> Result<()> {
        let requirement = format!("{}@{}", self.name, self.version);
        println!("fetching {requirement} from npm");
        run(Command::new("npm")
            .args(["pack", "--silent", "--ignore-scripts", &requirement])
            .current_dir(work))
        .with_context(|| format!("cannot download {requirement}"))?;
        let file = work.join(format!("{}-{}.tgz", self.file_name(), self.version));
        checksum::verify(&file, self.sha256)?;
        run(Command::new("tar").arg("-xzf").arg(&file).arg("-C").arg(work))
            .with_context(|| format!("cannot unpack {}", file.display()))?;
        let path = self.path(cache);
        // All files of the archive are in a folder with this name.
        fs::rename(work.join("package"), &path).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Runs a program. The error has the last line that it printed.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}", stderr.trim().lines().next_back().unwrap_or("no reason given"));
    }
    Ok(())
}

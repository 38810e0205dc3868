//! `cargo xtask upgrade`: runs another build of the runtime and this one together.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::binary::{self, Program};
use crate::fetch;

const EXAMPLE: Program = Program::example("upgrade");

/// Options of `cargo xtask upgrade`.
#[derive(Args, Debug)]
pub(crate) struct Upgrade {
    /// The `runtime` of the other build, for example of the last release's archive (`bin/runtime`)
    #[arg(long, value_name = "RUNTIME")]
    with: PathBuf,
    /// Requests of each phase
    #[arg(long, default_value_t = 200)]
    requests: usize,
}

/// Builds this tree's runtime and runs it together with another one.
///
/// # Errors
/// There is no other runtime at the path, the fetch or the build fails, or the builds do not work together.
pub(crate) fn run(options: &Upgrade) -> Result<()> {
    let old = other(&options.with)?;
    fetch::run([fetch::UCX, fetch::MODEL])?;
    let [new, upgrade] = binary::build([binary::RUNTIME, EXAMPLE], &[])?;
    let mut command = Command::new(upgrade);
    command.args([&old, &new]).arg(options.requests.to_string());
    let status = command.status().context("cannot start the example `upgrade`")?;
    ensure!(status.success(), "the two builds do not work together; see the output above");
    Ok(())
}

/// The absolute path of the other runtime.
fn other(path: &Path) -> Result<PathBuf> {
    let path = path.canonicalize().with_context(|| format!("--with {}", path.display()))?;
    ensure!(path.is_file(), "--with {}: this is a folder; name the program in it", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_runtime_must_be_a_file() {
        let error = other(Path::new("/nowhere/runtime")).expect_err("it does not exist");
        assert!(format!("{error:#}").contains("--with /nowhere/runtime: No such file"), "{error:#}");
        let error = other(Path::new("/")).expect_err("it is a folder").to_string();
        assert!(error.contains("name the program in it"), "{error}");
    }
}

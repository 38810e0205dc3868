//! `cargo xtask gpu-suite`: builds the programs of the GPU suite and runs every check and measurement on two GPUs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{binary, fetch, place};

const SCRIPT: &str = "integration-tests/gpu/suite.py";

/// The UCP library in the folder of UCX.
const UCP: &str = "libucx/lib/libucp.so.0";
/// The configuration with the shape of the large model.
const SHAPE: &str = "configs/models/llama-3.1-8b";

/// Builds the programs of the suite and runs it.
///
/// # Errors
/// There are fewer than two GPUs, the fetch or the build fails (see [`fetch::run`] and [`binary::build`]), or the suite fails.
pub(crate) fn run() -> Result<()> {
    require_two(gpus().as_deref())?;
    let [ucx, model, _] = fetch::run([fetch::UCX, fetch::MODEL, fetch::CUDA])?;
    let [runtime, gpu_engine] = binary::build([binary::RUNTIME, binary::GPU_ENGINE], &["cuda"])?;
    let status =
        suite([&runtime, &gpu_engine, &ucx.join(UCP)], &model).status().context("cannot start python3")?;
    ensure!(status.success(), "the suite ended with {status}; see its output above");
    Ok(())
}

/// The output of `nvidia-smi -L`, if it works.
fn gpus() -> Option<String> {
    let output = Command::new("nvidia-smi").arg("-L").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Fails with fewer than two GPUs. An indented line is a part of a GPU and does not count.
fn require_two(listed: Option<&str>) -> Result<()> {
    let listed = listed
        .context("gpu-suite needs two GPUs, but `nvidia-smi -L`, which lists them, does not work here")?;
    let count = listed.lines().filter(|line| line.starts_with("GPU ")).count();
    ensure!(count >= 2, "gpu-suite needs two GPUs, but `nvidia-smi -L` lists {count}");
    Ok(())
}

/// The command that runs the script of the suite with the runtime, `gpu_engine` and UCX. Answers under load are checked with `model`.
fn suite(programs_and_ucx: [&Path; 3], model: &Path) -> Command {
    let root = place::root();
    let mut python = Command::new("python3");
    python.arg(root.join(SCRIPT)).args(programs_and_ucx).arg(root.join(SHAPE));
    python.arg("--out").arg(place::target().join("gpu-suite")).arg("--model").arg(model);
    python
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_than_two_gpus_are_refused() {
        let gpu = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\n";
        let part = "  MIG 1g.10gb     Device  0: (UUID: MIG-1)\n";
        for (listed, expect) in [
            (None, Some("does not work here")),
            (Some(String::new()), Some("lists 0")),
            (Some("No devices found.\n".to_owned()), Some("lists 0")),
            (Some(gpu.to_owned() + part + part), Some("lists 1")),
            (Some(gpu.repeat(2)), None),
            (Some(gpu.repeat(8)), None),
        ] {
            let error = require_two(listed.as_deref()).err().map(|error| error.to_string());
            match (&error, expect) {
                (Some(error), Some(expect)) => assert!(error.contains(expect), "{error}"),
                (error, expect) => assert_eq!(error.as_deref(), expect, "{listed:?}"),
            }
        }
    }

    #[test]
    fn the_script_gets_its_arguments_in_order() {
        let command = suite(["/r", "/g", "/l"].map(Path::new), Path::new("m.gguf"));
        let arguments: Vec<&Path> = command.get_args().map(Path::new).collect();
        let [script, runtime, gpu_engine, libucp, folder, rest @ ..] = &arguments[..] else {
            panic!("{command:?}")
        };
        assert!(script.is_file() && folder.join("config.json").is_file(), "{command:?}");
        assert_eq!([runtime, gpu_engine, libucp], [&Path::new("/r"), &Path::new("/g"), &Path::new("/l")]);
        let out = place::target().join("gpu-suite");
        assert_eq!(rest, [Path::new("--out"), &out, "--model".as_ref(), "m.gguf".as_ref()]);
    }
}

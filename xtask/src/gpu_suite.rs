//! `cargo xtask gpu-suite`: every check and figure that two GPUs are to show, from a clone.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{binary, fetch, place};

const SCRIPT: &str = "integration-tests/gpu/suite.py";

/// UCX's library within its folder.
const UCP: &str = "libucx/lib/libucp.so.0";
/// The shape of the large model.
const SHAPE: &str = "configs/models/llama-3.1-8b";

/// Builds what the suite runs, and runs it.
///
/// # Errors
/// Fewer than two GPUs, as [`fetch::run`] and [`binary::build`], or that the suite failed.
pub(crate) fn run() -> Result<()> {
    require_two(gpus().as_deref())?;
    let [ucx, model, _] = fetch::run([fetch::UCX, fetch::MODEL, fetch::CUDA])?;
    let [runtime, gpu_engine] = binary::build([binary::RUNTIME, binary::GPU_ENGINE], &["cuda"])?;
    let status =
        suite([&runtime, &gpu_engine, &ucx.join(UCP)], &model).status().context("cannot start python3")?;
    ensure!(status.success(), "the suite ended with {status}; it says above what is not as it should be");
    Ok(())
}

/// What `nvidia-smi -L` says, where there is one that works.
fn gpus() -> Option<String> {
    let output = Command::new("nvidia-smi").arg("-L").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Refuses machines with fewer than two GPUs. A part of a GPU has an indented line of its own and is none.
fn require_two(listed: Option<&str>) -> Result<()> {
    let listed = listed
        .context("gpu-suite needs two GPUs, and `nvidia-smi -L`, which lists them, does not work here")?;
    let count = listed.lines().filter(|line| line.starts_with("GPU ")).count();
    ensure!(count >= 2, "gpu-suite needs two GPUs, and `nvidia-smi -L` lists {count}");
    Ok(())
}

/// The suite's script over the runtime, `gpu_engine` and UCX; the words of `model` are judged under load.
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
    fn the_script_gets_its_arguments_in_their_order() {
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

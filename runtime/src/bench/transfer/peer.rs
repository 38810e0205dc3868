//! The bandwidth of the lane alone. Over TCP, `ucx_perftest` puts blocks of the size of a page, with the same settings and error
//! handling. Between GPUs, as many contiguous bytes are copied from one GPU to the other.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{PATIENCE, TransferOptions};
use crate::config::{Config, DeviceSetting};

/// Bytes put in a measurement, and in the warm-up before it.
const MEASURED_BYTES: u64 = 3 << 30;
const WARM_UP_BYTES: u64 = 256 << 20;
/// Number of copies between GPUs.
#[cfg(feature = "cuda")]
const COPIES: usize = 20;

/// A process that is killed when this value is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes per second of the lane; `None` if `ucx_perftest` is not installed.
///
/// # Errors
/// The measurement fails.
pub(super) fn bandwidth(options: &TransferOptions, config: &Config) -> Result<Option<f64>> {
    let page_bytes = options.page_bytes(config);
    if config.engine.device == DeviceSetting::Cpu {
        return put_bandwidth(config, page_bytes);
    }
    // The copy runs in another process, because this one must not use the second GPU.
    let output = Command::new(std::env::current_exe()?)
        .args(["bench", "transfer", "--peer-copy", "--pages", &options.pages.to_string()])
        .args(["--page-kib", &(page_bytes >> 10).to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim()
        .parse()
        .map(Some)
        .with_context(|| format!("the copy from GPU to GPU failed: {}", output.status))
}

/// Copies `bytes` bytes from GPU 0 to GPU 1 and prints the bytes per second.
#[cfg(feature = "cuda")]
pub(super) fn copy(bytes: u64) -> Result<()> {
    let seconds = engine::peer_copy_seconds(bytes as usize, COPIES)?;
    println!("{}", bytes as f64 / common::statistics::median(seconds));
    Ok(())
}

#[cfg(not(feature = "cuda"))]
pub(super) fn copy(_: u64) -> Result<()> {
    bail!("this build has no GPU support; build it with `cargo xtask cuda`")
}

/// Bytes per second of `ucx_perftest -e -t ucp_put_bw`; `None` if the program is not beside the library.
///
/// # Errors
/// The program fails, or its output cannot be parsed.
fn put_bandwidth(config: &Config, block_bytes: u64) -> Result<Option<f64>> {
    let of_operator = config.transport.ucx_library.clone().into_iter();
    let library = of_operator.chain(config.ucx_search()).find(|path| path.exists());
    let Some(folder) = library.as_deref().and_then(|path| path.parent()) else { return Ok(None) };
    let program = folder.with_file_name("bin").join("ucx_perftest");
    if !program.exists() {
        return Ok(None);
    }
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let command = || {
        let mut command = Command::new(&program);
        command.env("LD_LIBRARY_PATH", folder).args(["-e", "-p", &port]).stderr(Stdio::null());
        for (name, value) in connector::ucx::defaults(false) {
            command.envs(config.surroundings.ucx_default(name, value).map(|value| (name, value)));
        }
        command
    };
    let server = command().stdout(Stdio::null()).spawn();
    let _server = Server(server.with_context(|| format!("cannot start {}", program.display()))?);
    let blocks = |bytes: u64| (bytes / block_bytes).max(8).to_string();
    let began = Instant::now();
    loop {
        let output = command()
            .args(["-t", "ucp_put_bw", "-f", "-O", "8", "-s", &block_bytes.to_string()])
            .args(["-n", &blocks(MEASURED_BYTES), "-w", &blocks(WARM_UP_BYTES), "127.0.0.1"])
            .output()?;
        if output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            return overall(&text)
                .map(Some)
                .with_context(|| format!("cannot parse the output of ucx_perftest: {text:?}"));
        }
        if began.elapsed() > PATIENCE {
            bail!("ucx_perftest failed: {}", output.status);
        }
        // The server may not listen yet.
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Parses the overall bandwidth in the last line. Its columns are iterations, three overheads, two bandwidths in MiB/s, two rates.
fn overall(text: &str) -> Option<f64> {
    let mebibytes: f64 = text.lines().last()?.split_whitespace().nth(5)?.parse().ok()?;
    Some(mebibytes * f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overall_bandwidth_is_read() {
        let last =
            "        2000    236.742  1069.550   976.561      657.40     720.00         935        1024\n";
        assert_eq!(overall(last), Some(720.0 * 1048576.0));
        assert_eq!(overall(""), None);
        assert_eq!(overall("[1] failed"), None);
    }
}

//! A replay of vLLM's bench client and `runtime bench serve` measure the same counts.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration_tests::process::{Pair, binary};
use serde_json::{Value, json};

const INPUT: &str = "48";
const OUTPUT: &str = "12";
const COUNT: &str = "6";

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().context("cannot start it")?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    Ok(printed)
}

#[test]
fn bench_clients_count_the_same() -> Result<()> {
    let pair = Pair::start(&[])?;
    let base = format!("http://{}", pair.frontend);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/vllm_bench.py");
    let replay = run(Command::new("python3").arg(script).args([&*base, INPUT, OUTPUT, COUNT]))?;
    let replay: Value = serde_json::from_str(&replay)?;

    let folder = std::env::temp_dir();
    let file = format!("baton-bench-{}.json", std::process::id());
    let options = ["--num-prompts", COUNT, "--random-input-len", INPUT, "--random-output-len", OUTPUT];
    let bench = run(Command::new(binary()?)
        .args(["bench", "serve", "--base-url", &base, "--request-rate", "4", "--burstiness", "100"])
        .args(options)
        .args(["--save-detailed", "--result-filename", &file, "--result-dir"])
        .arg(&folder))?;
    let text = std::fs::read_to_string(folder.join(&file))?;
    std::fs::remove_file(folder.join(&file))?;
    let results: Value = serde_json::from_str(&text)?;
    let found = json!({
        "completed": results["completed"],
        "input_tokens": results["total_input_tokens"],
        "output_tokens": results["total_output_tokens"],
    });
    assert_eq!(found, replay, "{bench}");
    assert_eq!(results["failed"], 0, "{bench}");
    let itls = results["itls"].as_array().context("the results have no itls")?;
    assert!(itls.iter().all(|itls| itls.as_array().is_some_and(|itls| itls.len() == 11)), "{itls:?}");
    for line in [
        "Successful requests:                     6",
        "Total generated tokens:                  72",
        "P99 ITL (ms):",
    ] {
        assert!(bench.contains(line), "{line} is not in\n{bench}");
    }
    Ok(())
}

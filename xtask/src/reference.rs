//! `cargo xtask reference`: prints how the reference answers of the tests are made.

use anyhow::Result;

use crate::place;

/// Prints the commands. It does not run them, because they fetch gigabytes.
pub(crate) fn run() -> Result<()> {
    let fixtures = place::root().join("integration-tests/fixtures");
    println!(
        "\
The tests compare token ids with those of transformers in float32. These commands make the
reference answers again (about 3 GB of packages, then a few minutes):

  cargo xtask fetch
  python3 -m venv /tmp/reference
  /tmp/reference/bin/pip install -r {fixtures}/requirements.txt
  /tmp/reference/bin/python {fixtures}/make_reference.py
  /tmp/reference/bin/python {fixtures}/make_models.py
  /tmp/reference/bin/python {fixtures}/make_fp8.py
  /tmp/reference/bin/python {fixtures}/make_fp8_emulation.py

The prompts are in {fixtures}/prompts.json. The answers go to reference.json beside it. The second
program makes the answers of small random models, the third those of models in FP8, and the
fourth those of both with rounded weights, activations and KV pages.
make_reference.py --qwen makes reference-qwen.json, after `cargo xtask fetch --qwen`.",
        fixtures = fixtures.display()
    );
    Ok(())
}

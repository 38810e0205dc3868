//! `cargo xtask reference`: how the fixtures of the same-words tests are made.

use anyhow::Result;

use crate::place;

/// Prints the commands; they are not run here, since they fetch gigabytes.
pub(crate) fn run() -> Result<()> {
    let fixtures = place::root().join("integration-tests/fixtures");
    println!(
        "\
The tests compare token ids with those of transformers in float32. To make them anew
(about 3 GB of packages, then a few minutes):

  cargo xtask fetch
  python3 -m venv /tmp/reference
  /tmp/reference/bin/pip install -r {fixtures}/requirements.txt
  /tmp/reference/bin/python {fixtures}/make_reference.py

The prompts are in {fixtures}/prompts.json; what comes back is reference.json beside it.",
        fixtures = fixtures.display()
    );
    Ok(())
}

//! Runs two builds of `runtime` together, as during an upgrade, and prints a table. `cargo xtask upgrade --with OLD` starts it.
//!
//! ```text
//! cargo build --release -p runtime
//! cargo run --release -p integration-tests --example upgrade -- OLD NEW [REQUESTS]
//! ```
//! First a sender of one build prefills for a receiver of the other, both ways, with REQUESTS requests (200). Then four nodes of the old build
//! are replaced by the new build one after the other, with eight clients that ask without a pause, through a proxy of each build. The program
//! ends with an error if a request fails, if an answer does not have the tokens of the reference, or if a pair hands nothing over.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::statistics::{median, quantile};
use integration_tests::upgrade::{Phase, pair, rolling};

fn print(phase: &Phase) {
    let Phase { name, answered, handed_over, failed, versions, took } = phase;
    let ms = |took: &[Duration]| took.iter().map(|took| took.as_secs_f64() * 1e3).collect::<Vec<_>>();
    let times = match &ms(took)[..] {
        [] => "-".to_owned(),
        all => format!("{:.0} / {:.0}", median(all.iter().copied()), quantile(all.to_vec(), 1.0)),
    };
    let versions = versions.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    println!("{name:<28} {versions:>9} {answered:>9} {handed_over:>12} {:>7} {times:>16}", failed.len());
    failed.iter().take(5).for_each(|reason| println!("    {reason}"));
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut path = |name| arguments.next().map(PathBuf::from).with_context(|| format!("{name} is missing"));
    let (old, new) = (path("OLD")?, path("NEW")?);
    let requests =
        arguments.next().map_or(Ok(200), |text| text.parse()).context("REQUESTS is not a number")?;
    println!(
        "{:<28} {:>9} {:>9} {:>12} {:>7} {:>16}",
        "", "versions", "answered", "handed over", "failed", "median / max ms"
    );
    let mut failed = 0;
    let pairs = [
        ("old sender, new receiver", [&*old, &*new]),
        ("new sender, old receiver", [&*new, &*old]),
        ("new sender, new receiver", [&*new, &*new]),
    ];
    for (name, builds) in pairs {
        let phase = pair(name, builds, requests)?;
        print(&phase);
        ensure!(phase.handed_over == phase.answered, "{name}: not every prompt was handed over");
        failed += phase.failed.len();
    }
    for phase in rolling(4, &old, &new, requests)? {
        print(&phase);
        failed += phase.failed.len();
    }
    ensure!(failed == 0, "{failed} requests failed");
    Ok(())
}

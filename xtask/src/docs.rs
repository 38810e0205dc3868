//! `cargo xtask docs`: makes the documentation as a site in `target/site` with mdBook, and checks its links.
//!
//! mdBook reads one folder. So the pages in `docs/SUMMARY.md` are copied to their paths below `target/site-pages`, with links that lead there
//! ([`sources`]). A page has the same path in the site as in the repository: `docs/tls.md` becomes `docs/tls.html`.

mod html;
mod links;
mod paths;
mod sources;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{fetch, place};

/// Options of `cargo xtask docs`.
#[derive(Args, Debug)]
pub(crate) struct SiteOptions {
    /// Only check: makes the site in a folder that is removed afterwards
    #[arg(long)]
    check: bool,
}

/// Makes the site, checks it, and puts it into `target/site` unless the options say otherwise.
///
/// # Errors
/// mdBook cannot be fetched or fails, a page has a link that leads nowhere, a page of the site has one, or a page of the site loads
/// something from another site.
pub(crate) fn run(options: &SiteOptions) -> Result<()> {
    if options.check {
        return remove(&build()?);
    }
    println!("{}", make()?.join("index.html").display());
    Ok(())
}

/// Makes and checks the site. Returns its folder, `target/site`.
///
/// # Errors
/// See [`run`].
pub(crate) fn make() -> Result<PathBuf> {
    let (made, site) = (build()?, folder("site"));
    remove(&site)?;
    fs::rename(&made, &site).with_context(|| format!("cannot write {}", site.display()))?;
    Ok(site)
}

/// Makes the site in a folder of its own, checks it and returns the folder.
fn build() -> Result<PathBuf> {
    let [mdbook] = fetch::run([fetch::MDBOOK])?;
    let start = Instant::now();
    let (pages, made) = (folder("site-pages"), folder("site-made"));
    for old in [&pages, &made] {
        remove(old)?;
    }
    sources::write(&place::root(), &pages)?;
    let output = Command::new(mdbook.join("bin/mdbook"))
        .arg("build")
        .arg(&pages)
        .arg("--dest-dir")
        .arg(&made)
        .output()
        .with_context(|| format!("cannot run {}", mdbook.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "mdBook failed: {}", said.trim());
    let count = check(&made)?;
    println!("{count} pages in {:.1} s; all links lead somewhere", start.elapsed().as_secs_f64());
    Ok(made)
}

fn folder(name: &str) -> PathBuf {
    place::target().join(name)
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

/// Checks the links of the site in `folder`. Returns the number of its pages.
fn check(folder: &Path) -> Result<usize> {
    let mut site = html::Site::default();
    for path in paths::files(folder)? {
        let file = folder.join(&path);
        let is_text = [".html", ".css"].iter().any(|end| path.ends_with(end));
        let text = if is_text { fs::read_to_string(&file) } else { Ok(String::new()) };
        site.add(path, &text.with_context(|| format!("cannot read {}", file.display()))?);
    }
    let faults = site.faults();
    if !faults.is_empty() {
        bail!("the site has {} faults:\n  {}", faults.len(), faults.join("\n  "));
    }
    Ok(site.pages())
}

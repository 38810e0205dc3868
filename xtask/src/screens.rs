//! `cargo xtask screens`: opens the live page and the documentation's site in a browser, checks them, and makes pictures of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{binary, docs, fetch, place};

/// Debian's browser. Playwright's own would be another download.
const CHROMIUM: &str = "/usr/bin/chromium";

/// Options of `cargo xtask screens`.
#[derive(clap::Args, Debug)]
pub(crate) struct ScreenOptions {
    /// Start this binary instead of building one
    #[arg(long, value_name = "PATH")]
    runtime: Option<PathBuf>,
}

/// Checks both, replaces the pictures in `docs/screens`, and leaves all pictures in `target/screens`. The programs that it starts have ended
/// when it returns.
///
/// # Errors
/// The browser is missing, something cannot be fetched or built, or a page is not as it should be.
pub(crate) fn run(options: &ScreenOptions) -> Result<()> {
    ensure!(
        Path::new(CHROMIUM).is_file(),
        "{CHROMIUM} does not exist; install it with `apt-get install chromium`"
    );
    let [_, _, playwright, axe] = fetch::run([fetch::UCX, fetch::MODEL, fetch::PLAYWRIGHT, fetch::AXE])?;
    let runtime = match &options.runtime {
        Some(path) => path.canonicalize().with_context(|| format!("--runtime {}", path.display()))?,
        None => binary::build([binary::RUNTIME], &[])?[0].clone(),
    };
    let site = docs::make()?;
    let pictures = place::target().join("screens");
    fs::create_dir_all(&pictures).with_context(|| format!("cannot create {}", pictures.display()))?;
    let clients = place::root().join("integration-tests/clients");
    let python = |program: &str| {
        let mut python = Command::new("python3");
        python.arg(clients.join(program)).env("PYTHONPATH", &playwright);
        python
    };
    check(
        python("live_page.py")
            .arg(&runtime)
            .arg("--axe")
            .arg(axe.join("axe.min.js"))
            .arg("--screens")
            .arg(&pictures),
    )?;
    check(python("site_page.py").arg(&site).arg("--screens").arg(&pictures))?;
    let replaced = replace(&pictures, &place::root().join("docs/screens"))?;
    println!("replaced {replaced} pictures in docs/screens; all are in {}", pictures.display());
    Ok(())
}

fn check(command: &mut Command) -> Result<()> {
    let program = command.get_args().next().unwrap_or_default().to_string_lossy().into_owned();
    let status = command.status().context("cannot run python3")?;
    ensure!(status.success(), "{program} ended with {status}; see its output above");
    Ok(())
}

/// Replaces the pictures of the documentation with new ones of the same names. Returns their number.
fn replace(new: &Path, pictures: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(pictures).with_context(|| format!("cannot read {}", pictures.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        fs::copy(new.join(&name), entry.path())
            .with_context(|| format!("no new picture was made for {}", entry.path().display()))?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::tests::Folder;

    #[test]
    fn pictures_are_replaced_by_name() {
        let folder = Folder::new();
        let (new, old) = (folder.path().join("new"), folder.path().join("old"));
        for path in [&new, &old] {
            fs::create_dir_all(path).expect("the folder is writable");
        }
        for (path, text) in
            [(new.join("a.png"), "new"), (new.join("b.png"), "new"), (old.join("a.png"), "old")]
        {
            fs::write(path, text).expect("the folder is writable");
        }
        assert_eq!(replace(&new, &old).expect("there is one"), 1);
        assert_eq!(fs::read_to_string(old.join("a.png")).expect("it exists"), "new");
        assert!(!old.join("b.png").exists());
        fs::write(old.join("c.png"), "old").expect("the folder is writable");
        let error = replace(&new, &old).expect_err("no new one").to_string();
        assert!(error.contains("c.png"), "{error}");
    }
}

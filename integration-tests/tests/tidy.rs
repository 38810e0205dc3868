//! The rules of the tree that a program can check.

#[path = "tidy/functions.rs"]
mod functions;
#[path = "tidy/links.rs"]
mod links;
#[path = "tidy/modules.rs"]
mod modules;
#[path = "tidy/names.rs"]
mod names;
#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use runtime::config::{Config, Role, Surroundings};

/// Maximum number of lines of a source file.
const FILE_LINES_MAX: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

/// Every file below `folder` whose name ends in `end`, build output aside.
fn files(folder: &Path, end: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" && name != "carry" {
            found.extend(files(&path, end)?);
        } else if path.is_file() && name.ends_with(end) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn sources() -> Result<Vec<(String, String)>> {
    let root = root();
    files(&root, ".rs")?
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root)?.display().to_string();
            Ok((name, fs::read_to_string(&path)?))
        })
        .collect()
}

/// Names of a manifest's ordinary dependencies.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut section = "";
    let mut names = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        } else if section == "[dependencies]"
            && let Some((name, _)) = line.split_once(['.', ' ', '='])
            && !name.starts_with('#')
        {
            names.insert(name.to_owned());
        }
    }
    names
}

#[test]
fn crates_import_in_one_direction() -> Result<()> {
    let ours = ["runtime", "actors", "common", "connector", "engine", "ucx-sys"];
    let expect: [(&str, &[&str]); 6] = [
        ("runtime", &["actors", "common", "connector", "engine"]),
        ("actors", &["common", "connector", "engine"]),
        ("connector", &["common", "ucx-sys"]),
        ("engine", &["common"]),
        ("common", &[]),
        ("connector/ucx-sys", &[]),
    ];
    for (krate, allowed) in expect {
        let manifest = fs::read_to_string(root().join(krate).join("Cargo.toml"))?;
        let used: Vec<String> =
            dependencies(&manifest).into_iter().filter(|name| ours.contains(&name.as_str())).collect();
        assert_eq!(used, allowed, "{krate} may import these crates of ours and no other");
    }
    let names = |krate: &str| {
        Ok::<_, anyhow::Error>(dependencies(&fs::read_to_string(root().join(krate).join("Cargo.toml"))?))
    };
    for krate in ["connector", "engine"] {
        assert!(!names(krate)?.contains("actix"), "{krate} knows nothing of actors");
    }
    Ok(())
}

#[test]
fn every_file_says_what_it_is_about() -> Result<()> {
    for (name, text) in sources()? {
        let is_tests = name.ends_with("tests.rs");
        assert!(text.starts_with("//!") || is_tests, "{name} has no module doc");
        assert!(!name.ends_with("mod.rs"), "{name}: files are foo.rs + foo/");
        let lines = text.lines().count();
        assert!(lines <= FILE_LINES_MAX, "{name} has {lines} lines: make it two files");
    }
    Ok(())
}

#[test]
fn what_belongs_to_one_place_stays_there() -> Result<()> {
    let check = |needle: &str, allowed: &[&str]| -> Result<()> {
        for (name, text) in sources()? {
            let code = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .any(|line| line.contains(needle));
            let fine = allowed.iter().any(|place| name.starts_with(place))
                || name == "integration-tests/tests/tidy.rs";
            assert!(!code || fine, "{name} names {needle:?}, which belongs to {allowed:?}");
        }
        Ok(())
    };
    check("bincode::", &["connector/src/wire.rs"])?;
    // The program holds the frontend against a bare handler.
    let throughput = "integration-tests/examples/frontend_throughput/main.rs";
    check(
        "actix_web::",
        &["runtime/src/frontend", throughput, "integration-tests/tests/traces/collector.rs"],
    )?;
    check("unsafe {", &["connector/", "engine/", "xtask/"])?;
    // Tests, and what starts processes, look at their own surroundings.
    let programs = [
        "runtime/src/config/",
        "xtask/",
        "integration-tests/",
        "connector/tests/",
        "connector/examples/",
        "examples/",
        "engine/build.rs",
        "engine/examples/",
        "connector/src/process.rs",
        "connector/src/ucx/tests",
        "engine/src/testing.rs",
    ];
    check("env::var", &programs)?;
    let roots = [
        "runtime/src/lib.rs",
        "actors/src/lib.rs",
        "common/src/lib.rs",
        "integration-tests/src/lib.rs",
        "examples/two_actors.rs",
        "examples/ring_put/main.rs",
        "examples/embedded_engine.rs",
    ];
    for name in roots {
        let text = fs::read_to_string(root().join(name))?;
        assert!(text.contains("#![forbid(unsafe_code)]"), "{name} forbids unsafe code");
    }
    Ok(())
}

#[test]
fn words_that_mean_something_else_are_not_used() -> Result<()> {
    let words = ["slot", "scatter", "gather"];
    for (name, text) in sources()? {
        if name == "integration-tests/tests/tidy.rs" {
            continue;
        }
        let found = text
            .split(|c: char| !c.is_ascii_alphabetic())
            .find(|word| words.iter().any(|bad| word.to_ascii_lowercase().trim_end_matches('s') == *bad));
        assert_eq!(found, None, "{name}: say page, credit or put");
    }
    Ok(())
}

#[test]
fn every_config_file_loads_for_its_role() -> Result<()> {
    let surroundings = || Surroundings::from_variables([("HOME".into(), "/home/somebody".into())], 2);
    let files = files(&root().join("configs"), ".yaml")?;
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        // Manifests, which `kubernetes.rs` checks, and rules, which `metrics.rs` checks.
        if ["kubernetes", "prometheus"]
            .iter()
            .any(|folder| file.starts_with(root().join("configs").join(folder)))
        {
            continue;
        }
        let role = match file.file_stem().unwrap_or_default().to_str() {
            Some("receiver") => Role::Receiver,
            Some("sender") => Role::Sender,
            Some("node") => Role::Node,
            Some("local") => Role::Local,
            Some(lmcache) if lmcache.starts_with("lmcache-") => {
                Config::role_in(&file).context("the file has no valid nixl_role")?
            }
            other => panic!("{other:?} is the name of no role"),
        };
        if let Err(errors) = Config::load(role, Some(&file), &[], surroundings()) {
            panic!("{}: {:?}", file.display(), errors.0.iter().map(ToString::to_string).collect::<Vec<_>>());
        }
    }
    Ok(())
}

#[test]
fn every_key_is_documented() -> Result<()> {
    let page = fs::read_to_string(root().join("docs/configuration.md"))?;
    for key in runtime::config::keys() {
        assert!(
            page.contains(&format!("`{}`", key.name)),
            "docs/configuration.md does not explain {}",
            key.name
        );
    }
    Ok(())
}

/// Words in `text` of the form `section.name`, where `section` is one of `sections`. File names and longer paths are none.
fn keys_named<'a>(text: &'a str, sections: &BTreeSet<&str>) -> Vec<&'a str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || "._/".contains(c)))
        .map(|word| word.trim_end_matches(['.', '/']))
        .filter(|word| {
            word.split_once('.').is_some_and(|(section, name)| {
                sections.contains(section) && !name.contains(['.', '/']) && !["rs", "md"].contains(&name)
            })
        })
        .collect()
}

/// Every `section.key` in a string literal of the program (errors, log lines, help) and in the documentation exists.
#[test]
fn every_key_that_is_named_exists() -> Result<()> {
    let known: BTreeSet<&str> = runtime::config::keys().map(|key| key.name).collect();
    let sections: BTreeSet<&str> =
        known.iter().filter_map(|key| key.split_once('.').map(|(section, _)| section)).collect();
    assert_eq!(
        keys_named("set link.port, link.rs or src/link.rs; self.link.x = ring.y.", &sections),
        ["link.port", "ring.y"]
    );
    let mut named = 0;
    let mut check = |place: &str, text: &str| {
        for key in keys_named(text, &sections) {
            assert!(known.contains(key), "{place} names {key:?}, which is no key of the configuration");
            named += 1;
        }
    };
    for (name, text) in sources()? {
        // These name keys that do not exist, to have them refused, or hold pieces of source code.
        let exempt = [
            "runtime/src/config/renamed.rs",
            "runtime/src/config/tests.rs",
            "integration-tests/tests/refusals.rs",
            "integration-tests/tests/tidy",
            "xtask/src/simulate",
        ];
        if exempt.iter().any(|place| name.starts_with(place)) {
            continue;
        }
        source::split(&text).literals.iter().for_each(|literal| check(&name, literal));
    }
    let root = root();
    for page in files(&root, ".md")? {
        check(&page.strip_prefix(&root)?.display().to_string(), &fs::read_to_string(&page)?);
    }
    assert!(named > 100, "only {named} keys are named: the search finds nothing");
    Ok(())
}

/// Crates whose modules are checked for circles, by their folders.
const CRATES: [&str; 8] =
    ["actors", "common", "connector", "connector/ucx-sys", "engine", "integration-tests", "runtime", "xtask"];

/// Imports between modules that lie on a circle and are to go: without them there is none. A line whose import is gone, or on no
/// circle any more, has to go too.
const CIRCLES: &[&str] = &["runtime: frontend::sampling → frontend::openai"];

/// Inside each crate, modules import each other in one direction: see `tidy/modules.rs` for what counts.
#[test]
fn modules_import_in_one_direction() -> Result<()> {
    let sources = sources()?;
    let mut known: BTreeSet<&str> = CIRCLES.iter().copied().collect();
    let mut circles = Vec::new();
    for krate in CRATES {
        let folder = format!("{krate}/src/");
        let files = sources.iter().filter_map(|(name, text)| Some((name.strip_prefix(&folder)?, &**text)));
        let edges = modules::Crate::new(files).edges();
        assert!(!edges.is_empty() || krate == "common", "no import was found in {krate}");
        let exception =
            |edge: &modules::Edge| CIRCLES.iter().find(|known| **known == format!("{krate}: {edge}"));
        for edge in modules::on_a_circle(edges.keys()) {
            exception(edge).map(|edge| known.remove(edge));
        }
        let rest = edges.keys().filter(|edge| exception(edge).is_none());
        let found = modules::on_a_circle(rest).into_iter();
        circles.extend(found.map(|edge| format!("{krate}: {edge} (in {})", edges[edge])));
    }
    assert_eq!(circles, [""; 0], "these imports form circles");
    assert!(known.is_empty(), "on no circle any more, remove from CIRCLES: {known:?}");
    Ok(())
}

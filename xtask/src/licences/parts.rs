//! The parts of the program: crates from `cargo metadata`, the standard library, and wheels.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::DebianPackage;
use crate::place;

/// The only target that Baton is built for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The wheels whose files or code a package contains, as pip names their folders. Kernels contain functions of `nvidia_cuda_crt`'s headers and of
/// `nvidia_nvvm`'s libdevice.
const WHEELS: [&str; 6] = [
    "libucx_cu12",
    "nvidia_cuda_crt",
    "nvidia_cuda_runtime",
    "nvidia_nvvm",
    "flashinfer_python",
    "nvidia_cublas",
];

/// Something that the program contains.
#[derive(Clone, Debug, Default)]
pub(super) struct ShippedPart {
    pub(super) name: String,
    pub(super) version: String,
    /// Its name in SBOMs, such as `pkg:cargo/serde@1.0.0`.
    pub(super) purl: String,
    /// An expression of SPDX.
    pub(super) licence: String,
    pub(super) authors: Vec<String>,
    pub(super) repository: Option<String>,
    /// The folder with the files of its licence.
    pub(super) folder: Option<PathBuf>,
    /// Its licence with its notices, if they are in no file of their own.
    pub(super) text: Option<String>,
    /// The SHA-256 of its package.
    pub(super) sha256: Option<String>,
    /// The `purl` of each part that it uses.
    pub(super) uses: Vec<String>,
    /// Whether it belongs to Baton.
    pub(super) is_ours: bool,
}

/// The crates of `runtime` with its CUDA backend.
pub(super) fn crates() -> Result<Vec<ShippedPart>> {
    let output = place::cargo()
        .args(["metadata", "--format-version=1", "--locked", "--features=runtime/cuda"])
        .args(["--filter-platform", TARGET])
        .output()
        .context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
    let lock = place::root().join("Cargo.lock");
    let lock = fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    linked(&metadata, "runtime", &checksums(&lock))
}

/// The crates of `metadata` that are linked into `program`, by name and version.
fn linked(metadata: &Value, program: &str, checksums: &BTreeMap<String, String>) -> Result<Vec<ShippedPart>> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let by_id = |list: Vec<Value>| -> BTreeMap<String, Value> {
        list.into_iter().map(|one| (text(&one["id"]), one)).collect()
    };
    let packages = by_id(list(&metadata["packages"]));
    let nodes = by_id(list(&metadata["resolve"]["nodes"]));
    // A procedural macro runs during the build. So do the crates that it uses.
    let is_macro =
        |id: &str| list(&packages[id]["targets"]).iter().any(|target| target["kind"][0] == "proc-macro");
    let uses = |id: &str| -> Vec<String> {
        let normal = |one: &&Value| list(&one["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        let used = list(&nodes[id]["deps"]);
        used.iter().filter(normal).map(|one| text(&one["pkg"])).filter(|id| !is_macro(id)).collect()
    };
    let root = packages.iter().find(|(_, package)| package["name"] == program && package["source"].is_null());
    let mut open = vec![root.with_context(|| format!("the workspace has no crate {program}"))?.0.clone()];
    let mut found = BTreeSet::new();
    while let Some(id) = open.pop() {
        if found.insert(id.clone()) {
            open.extend(uses(&id));
        }
    }
    let mut parts: Vec<ShippedPart> = found
        .iter()
        .map(|id| {
            let uses = uses(id).iter().map(|id| purl(&packages[id])).collect();
            ShippedPart { uses, ..part(&packages[id], checksums) }
        })
        .collect();
    parts.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(parts)
}

fn part(package: &Value, checksums: &BTreeMap<String, String>) -> ShippedPart {
    let authors = package["authors"].as_array().into_iter().flatten();
    let manifest = PathBuf::from(text(&package["manifest_path"]));
    let purl = purl(package);
    ShippedPart {
        name: text(&package["name"]),
        version: text(&package["version"]),
        licence: expression(&text(&package["license"])),
        authors: authors.map(text).collect(),
        repository: package["repository"].as_str().map(str::to_owned),
        folder: manifest.parent().map(Path::to_owned),
        text: None,
        sha256: checksums.get(&purl).cloned(),
        uses: Vec::new(),
        is_ours: package["source"].is_null(),
        purl,
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn purl(package: &Value) -> String {
    format!("pkg:cargo/{}@{}", text(&package["name"]), text(&package["version"]))
}

/// A crate's licence as an expression of SPDX. Old crates have a slash between the licences that they offer.
fn expression(licence: &str) -> String {
    licence.split('/').map(str::trim).collect::<Vec<_>>().join(" OR ")
}

/// The checksums in a `Cargo.lock`, by the `purl` of their crates.
fn checksums(lock: &str) -> BTreeMap<String, String> {
    let value = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    let packages = lock.split("[[package]]").skip(1);
    let of_package = |package: &str| {
        let purl = format!("pkg:cargo/{}@{}", value(package, "name")?, value(package, "version")?);
        Some((purl, value(package, "checksum")?))
    };
    packages.filter_map(of_package).collect()
}

/// Rust's standard library, which is linked into every program.
pub(super) fn standard_library() -> Result<ShippedPart> {
    let output =
        Command::new("rustc").arg("-vV").current_dir(place::root()).output().context("cannot start rustc")?;
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = output.lines().find_map(|line| line.strip_prefix("release: "));
    let version = version.context("rustc -vV names no release")?.to_owned();
    Ok(ShippedPart {
        name: "rust-std".to_owned(),
        purl: format!("pkg:generic/rust-std@{version}"),
        version,
        licence: "MIT OR Apache-2.0".to_owned(),
        authors: vec!["The Rust Project Developers".to_owned()],
        repository: Some("https://github.com/rust-lang/rust".to_owned()),
        ..ShippedPart::default()
    })
}

/// A package of Debian.
pub(super) fn debian(package: &DebianPackage) -> ShippedPart {
    let DebianPackage { name, version, architecture, licence } = package;
    // A plus sign in a version of a `purl` is encoded, and so is the colon of an epoch.
    let encoded = |text: &str| text.replace('+', "%2B").replace(':', "%3A");
    ShippedPart {
        purl: format!("pkg:deb/debian/{}@{}?arch={architecture}", encoded(name), encoded(version)),
        name: name.clone(),
        version: version.clone(),
        licence: (*licence).to_owned(),
        ..ShippedPart::default()
    }
}

/// The shipped wheels among those that are unpacked in `folder`.
pub(super) fn wheels(folder: &Path) -> Result<Vec<ShippedPart>> {
    let mut parts = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let wheel = name.strip_suffix(".dist-info").and_then(|wheel| wheel.rsplit_once('-'));
        if wheel.is_some_and(|(package, _)| WHEELS.contains(&package)) {
            let metadata = path.join("METADATA");
            let metadata = fs::read_to_string(&metadata)
                .with_context(|| format!("cannot read {}", metadata.display()))?;
            parts.push(ShippedPart { folder: Some(path.join("licenses")), ..wheel_part(&metadata) });
        }
    }
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(parts)
}

/// A wheel with this METADATA.
fn wheel_part(metadata: &str) -> ShippedPart {
    let field = |name: &str| {
        let lines = metadata.lines().take_while(|line| !line.is_empty());
        lines
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
    };
    let (name, version) = (field("Name").unwrap_or_default(), field("Version").unwrap_or_default());
    let licence = field("License-Expression").or_else(|| field("License")).unwrap_or_default();
    ShippedPart {
        purl: format!("pkg:pypi/{name}@{version}"),
        name,
        version,
        licence,
        ..ShippedPart::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn crates_that_only_build_are_no_parts() {
        let package = |name: &str, kind: &str, source: Value| {
            json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0", "manifest_path": format!("/r/{name}/Cargo.toml"),
                   "authors": ["A"], "source": source, "targets": [{"kind": [kind]}]})
        };
        let uses = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [
                package("program", "bin", Value::Null), package("used", "lib", json!("r")), package("deep", "lib", json!("r")),
                package("builds", "lib", json!("r")), package("tests", "lib", json!("r")), package("derives", "proc-macro", json!("r")),
                package("parses", "lib", json!("r")),
            ],
            "resolve": {"nodes": [
                {"id": "program", "deps": [uses("used", Value::Null), uses("builds", json!("build")), uses("tests", json!("dev"))]},
                {"id": "used", "deps": [uses("deep", Value::Null), uses("derives", Value::Null)]},
                {"id": "derives", "deps": [uses("parses", Value::Null)]},
                {"id": "deep", "deps": []}, {"id": "builds", "deps": []}, {"id": "tests", "deps": []}, {"id": "parses", "deps": []},
            ]},
        });
        let checksums = checksums("[[package]]\nname = \"used\"\nversion = \"1.0.0\"\nchecksum = \"ab\"\n");
        let parts = linked(&metadata, "program", &checksums).unwrap();
        let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(names, ["deep", "program", "used"]);
        assert!(parts[1].is_ours && !parts[2].is_ours);
        assert_eq!(parts[1].uses, ["pkg:cargo/used@1.0.0"]);
        assert_eq!(parts[2].uses, ["pkg:cargo/deep@1.0.0"]);
        assert_eq!((parts[2].sha256.as_deref(), parts[0].sha256.as_deref()), (Some("ab"), None));
        assert_eq!(parts[2].licence, "MIT OR Apache-2.0");
        assert!(linked(&metadata, "absent", &checksums).is_err());
    }

    #[test]
    fn a_wheel_is_described_by_its_metadata() {
        let part = wheel_part(
            "Metadata-Version: 2.4\nName: libucx-cu12\nVersion: 1.22.0\nLicense: BSD\n\nName: body\n",
        );
        assert_eq!((part.purl.as_str(), part.licence.as_str()), ("pkg:pypi/libucx-cu12@1.22.0", "BSD"));
        let part = wheel_part("Name: a\nVersion: 1\nLicense: BSD\nLicense-Expression: BSD-3-Clause\n");
        assert_eq!(part.licence, "BSD-3-Clause");
    }
}

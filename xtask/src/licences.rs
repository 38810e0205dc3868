//! `cargo xtask licences`: the licences of the parts of the program, as a text for people and as an SBOM (CycloneDX 1.5) for tools.
//!
//! Parts are the crates that are linked into `runtime` with its CUDA backend, Rust's standard library, the wheels of which the archive
//! contains files or linked code, and the libraries of headers that the kernels include. Crates that only run during a build, such as procedural macros, are no parts. Equal sources give equal files.

mod headers;
mod parts;
mod sbom;
mod texts;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{fetch, place};
use parts::ShippedPart;

/// The name of the text.
pub(crate) const TEXT: &str = "THIRD-PARTY-LICENCES";

/// The name of the SBOM.
pub(crate) const SBOM: &str = "sbom.cdx.json";

/// Writes both files into `target/dist` and prints where they are.
///
/// # Errors
/// A wheel cannot be fetched, or as [`Licences::of`] and [`Licences::write`].
pub(crate) fn run() -> Result<()> {
    let [ucx, cuda] = fetch::run([fetch::UCX, fetch::CUDA])?;
    for file in Licences::of(&[&ucx, &cuda])?.write(&place::target().join("dist"))? {
        println!("{}", file.display());
    }
    Ok(())
}

/// A package of Debian in an image. Its licence is in the image where Debian has it, so the text does not repeat it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DebianPackage {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) architecture: String,
    /// An expression of SPDX.
    pub(crate) licence: &'static str,
}

/// The parts of a package and their licences.
pub(crate) struct Licences {
    parts: Vec<ShippedPart>,
    /// Those of the system in an image.
    system: Vec<ShippedPart>,
}

impl Licences {
    /// The parts of the program, and those that come from wheels. `wheels` are folders of unpacked wheels.
    ///
    /// # Errors
    /// Cargo or nvcc fails.
    pub(crate) fn of(wheels: &[&Path]) -> Result<Self> {
        let mut parts = parts::crates()?;
        parts.push(parts::standard_library()?);
        for wheel in wheels {
            parts.extend(parts::wheels(wheel)?);
            parts.extend(headers::parts(wheel)?);
        }
        Ok(Self { parts, system: Vec::new() })
    }

    /// The same with the packages of a system.
    pub(crate) fn with_system(self, packages: &[DebianPackage]) -> Self {
        Self { system: packages.iter().map(parts::debian).collect(), ..self }
    }

    /// Writes both files into `folder`.
    ///
    /// # Errors
    /// A crate has a licence whose text is unknown, or a file cannot be written.
    pub(crate) fn write(&self, folder: &Path) -> Result<[PathBuf; 2]> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let write = |name: &str, text: String| -> Result<PathBuf> {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        let all: Vec<ShippedPart> = self.parts.iter().chain(&self.system).cloned().collect();
        Ok([write(TEXT, texts::render(&self.parts)?)?, write(SBOM, format!("{:#}\n", sbom::document(&all)))?])
    }

    /// The licences of all parts as one expression of SPDX.
    pub(crate) fn expression(&self) -> String {
        let all = self.parts.iter().chain(&self.system).map(|part| part.licence.as_str());
        let one = |licence: &str| match licence.contains(" OR ") {
            true => format!("({licence})"),
            false => licence.to_owned(),
        };
        let distinct: BTreeSet<String> = all.map(one).collect();
        distinct.into_iter().collect::<Vec<_>>().join(" AND ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_lists_the_packages_of_its_system() {
        let part = |name: &str, licence: &str| ShippedPart {
            name: name.to_owned(),
            version: "1".to_owned(),
            purl: format!("pkg:cargo/{name}@1"),
            licence: licence.to_owned(),
            text: Some("the text".to_owned()),
            ..ShippedPart::default()
        };
        let parts =
            vec![part("runtime", "Apache-2.0"), part("a", "MIT OR Apache-2.0"), part("b", "Apache-2.0")];
        let libc = DebianPackage {
            name: "libc6".to_owned(),
            version: "2.36-9+deb12u10".to_owned(),
            architecture: "amd64".to_owned(),
            licence: "LGPL-2.1-or-later",
        };
        let licences = Licences { parts, system: Vec::new() }.with_system(&[libc]);
        assert_eq!(licences.expression(), "(MIT OR Apache-2.0) AND Apache-2.0 AND LGPL-2.1-or-later");
        let folder = crate::fetch::tests::Folder::new();
        let [text, sbom] =
            licences.write(folder.path()).unwrap().map(|path| fs::read_to_string(path).unwrap());
        assert!(!text.contains("libc6"), "{text}");
        assert!(sbom.contains("pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64"), "{sbom}");
    }
}

//! The libraries of headers of which the CUDA kernels contain compiled code, as FlashInfer's wheel brings them.
//!
//! The licences of these libraries require that packages contain their notices. nvcc lists the headers that the kernels include, so a library that no
//! kernel includes is no part. A kernel that includes a header of a library that is not listed here does not compile here, because only the folders of
//! the listed libraries are given to the compiler.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::parts::ShippedPart;
use crate::place;

/// Where the libraries are, below the fetched folder.
const DATA: &str = "flashinfer/data";

/// A library of headers.
struct HeaderLibrary {
    name: &'static str,
    /// The folder that the compiler searches, below [`DATA`].
    include: &'static str,
    /// The folder with the headers of this library, below `include`.
    headers: &'static str,
    licence: &'static str,
    repository: &'static str,
    /// The version, and the text of the licence, from the folder [`DATA`].
    describe: fn(&Path) -> Result<(String, String)>,
}

/// In the order in which the compiler searches them. FlashInfer's own headers belong to its wheel.
const LIBRARIES: [HeaderLibrary; 3] = [
    HeaderLibrary {
        name: "libcudacxx",
        include: "cccl/libcudacxx/include",
        headers: "",
        licence: "Apache-2.0 WITH LLVM-exception",
        repository: "https://github.com/NVIDIA/cccl",
        describe: |data| {
            let version = data.join("cccl/libcudacxx/include/cuda/std/__cccl/version.h");
            let number: u32 = defined(&read(&version)?, "CCCL_VERSION")?.parse()?;
            let version = format!("{}.{}.{}", number / 1_000_000, number / 1_000 % 1_000, number % 1_000);
            Ok((version, include_str!("libcudacxx.txt").to_owned()))
        },
    },
    HeaderLibrary {
        name: "flash-attention",
        include: "include",
        headers: "flashinfer/attention/hopper",
        licence: "BSD-3-Clause",
        repository: "https://github.com/Dao-AILab/flash-attention",
        describe: |_| Ok(("3".to_owned(), include_str!("FlashAttention.txt").to_owned())),
    },
    HeaderLibrary {
        name: "cutlass",
        include: "cutlass/include",
        headers: "",
        licence: "BSD-3-Clause",
        repository: "https://github.com/NVIDIA/cutlass",
        describe: |data| {
            let header = read(&data.join("cutlass/include/cutlass/version.h"))?;
            let [major, minor, patch] = ["CUTLASS_MAJOR", "CUTLASS_MINOR", "CUTLASS_PATCH"];
            let version = [major, minor, patch]
                .map(|name| defined(&header, name))
                .into_iter()
                .collect::<Result<Vec<_>>>()?;
            Ok((version.join("."), comment(&header)?))
        },
    },
];

/// The libraries of which the kernels contain code. `cuda` is the fetched folder with the compiler; another fetched folder has none.
///
/// # Errors
/// The compiler fails, a kernel includes a header of an unknown library, or a header has no version.
pub(super) fn parts(cuda: &Path) -> Result<Vec<ShippedPart>> {
    let data = cuda.join(DATA);
    if !data.is_dir() {
        return Ok(Vec::new());
    }
    used(&included(cuda, &place::root().join("engine/kernels"))?, &data)
}

/// The libraries to which these headers belong.
fn used(headers: &BTreeSet<PathBuf>, data: &Path) -> Result<Vec<ShippedPart>> {
    let is_used = |library: &&HeaderLibrary| {
        let folder = data.join(library.include).join(library.headers);
        headers.iter().any(|header| header.starts_with(&folder))
    };
    let part = |library: &HeaderLibrary| {
        let (version, text) = (library.describe)(data)?;
        Ok(ShippedPart {
            name: library.name.to_owned(),
            purl: format!("pkg:generic/{}@{version}", library.name),
            version,
            licence: library.licence.to_owned(),
            repository: Some(library.repository.to_owned()),
            text: Some(text),
            ..ShippedPart::default()
        })
    };
    LIBRARIES.iter().filter(is_used).map(part).collect()
}

/// The headers that the kernels in a folder include, as absolute paths without `..`.
fn included(cuda: &Path, kernels: &Path) -> Result<BTreeSet<PathBuf>> {
    let nvcc = cuda.join("nvidia/cu13/bin/nvcc");
    let mut found = BTreeSet::new();
    let entries = fs::read_dir(kernels).with_context(|| format!("cannot read {}", kernels.display()))?;
    for entry in entries {
        let kernel = entry?.path();
        if kernel.extension().is_none_or(|extension| extension != "cu") {
            continue;
        }
        // The flags that decide what is included, as in the build script of `engine`.
        let output = Command::new(&nvcc)
            .args(["-M", "-std=c++17", "-gencode", "arch=compute_90a,code=sm_90a"])
            .args(["-DNDEBUG", "-DFLASHINFER_ENABLE_BF16", "-DBATON_HEAD_DIM=128"])
            .args(
                LIBRARIES
                    .iter()
                    .map(|library| format!("-I{}", cuda.join(DATA).join(library.include).display())),
            )
            .arg(&kernel)
            .output()
            .with_context(|| format!("cannot start {}", nvcc.display()))?;
        ensure!(
            output.status.success(),
            "nvcc cannot list the headers of {}; if it includes another library, add that to xtask/src/licences/headers.rs: {}",
            kernel.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        found.extend(prerequisites(&String::from_utf8_lossy(&output.stdout)));
    }
    Ok(found)
}

/// The files in a rule of `make`.
fn prerequisites(rule: &str) -> Vec<PathBuf> {
    let words = rule.split_whitespace().filter(|word| word.starts_with('/'));
    words.map(|word| without_parents(Path::new(word))).collect()
}

/// A path without `..`. The folders of the fetched wheels are no links.
fn without_parents(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut path, component| {
        match component {
            Component::ParentDir => drop(path.pop()),
            component => path.push(component),
        }
        path
    })
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The value of a macro.
fn defined(header: &str, name: &str) -> Result<String> {
    let value = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("#define") && words.next() == Some(name))
            .then(|| words.next().map(str::to_owned))?
    };
    header.lines().find_map(value).with_context(|| format!("a header of the kernels does not define {name}"))
}

/// The first comment of a header, which has its licence.
fn comment(header: &str) -> Result<String> {
    let text = header.split_once("/*").and_then(|(_, rest)| rest.split_once("*/")).map(|(text, _)| text);
    let text =
        text.filter(|text| text.contains("Copyright")).context("a header of the kernels has no licence")?;
    let lines: Vec<&str> = text.lines().map(|line| line.trim_matches(['*', ' '])).collect();
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::tests::Folder;

    #[test]
    fn libraries_of_included_headers_are_parts_with_their_texts() {
        let folder = Folder::new();
        let data = folder.path();
        let put = |path: &str, text: &str| {
            fs::create_dir_all(data.join(path).parent().unwrap()).unwrap();
            fs::write(data.join(path), text).unwrap();
        };
        put("cccl/libcudacxx/include/cuda/std/__cccl/version.h", "#define CCCL_VERSION 3006001\n");
        put(
            "cutlass/include/cutlass/version.h",
            "/****\n * Copyright (c) 2026 N\n *\n * Redistribution\n ****/\n#define CUTLASS_MAJOR 4\n#define CUTLASS_MINOR 5\n#define CUTLASS_PATCH 0\n",
        );
        let check = |headers: &[&str], expect: &[&str]| {
            let parts = used(&headers.iter().map(|header| data.join(header)).collect(), data).unwrap();
            let names: Vec<String> =
                parts.iter().map(|part| format!("{} {}", part.name, part.version)).collect();
            assert_eq!(names, expect);
            parts
        };
        check(&["include/flashinfer/page.cuh"], &[]);
        check(&["include/flashinfer/attention/hopper/utils.cuh"], &["flash-attention 3"]);
        let headers = ["cccl/libcudacxx/include/cuda/cmath", "cutlass/include/cute/tensor.hpp"];
        let parts = check(&headers, &["libcudacxx 3.6.1", "cutlass 4.5.0"]);
        assert_eq!(parts[1].text.as_deref().map(str::trim), Some("Copyright (c) 2026 N\n\nRedistribution"));
        assert!(parts[0].text.as_ref().is_some_and(|text| text.contains("LLVM Exceptions")));
        put("cutlass/include/cutlass/version.h", "#define CUTLASS_MAJOR 4\n");
        let headers = [data.join("cutlass/include/cute/tensor.hpp")].into();
        assert!(used(&headers, data).is_err(), "a library without a version and a licence");
    }

    #[test]
    fn a_rule_of_make_names_files() {
        let rule = "fa3.o : /k/fa3.cu \\\n    /usr/include/stdc-predef.h /d/include/flashinfer/attention/../page.cuh \\\n";
        let expect = ["/k/fa3.cu", "/usr/include/stdc-predef.h", "/d/include/flashinfer/page.cuh"];
        assert_eq!(prerequisites(rule), expect.map(PathBuf::from));
    }
}

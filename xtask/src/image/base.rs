//! The base of an image: the C library, certificates and licences of the Debian release of this machine. Nothing is installed.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::dist;
use crate::licences::DebianPackage;

/// The packages and their licences: the libraries that the program needs, certificate authorities, and the names and licences of Debian.
const PACKAGES: [(&str, &str); 5] = [
    ("base-files", "GPL-2.0-or-later"),
    ("ca-certificates", "GPL-2.0-or-later AND MPL-2.0"),
    ("libc6", "LGPL-2.1-or-later"),
    ("libgcc-s1", GCC),
    ("libstdc++6", GCC),
];

/// The licence of the compiler's libraries.
const GCC: &str = "GPL-3.0-or-later WITH GCC-exception-3.1";

/// Folders of Debian's root that are links into `/usr`.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// Certificates, below the root, one file each.
const AUTHORITIES: &str = "usr/share/ca-certificates/mozilla";

/// All certificates in one file, where TLS libraries look for them.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

/// Files that no package has.
const FILES: [(&str, &str); 3] = [
    ("etc/passwd", "root:x:0:0:root:/:/sbin/nologin\nbaton:x:65532:65532:baton:/cache:/sbin/nologin\n"),
    ("etc/group", "root:x:0:\nbaton:x:65532:\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
];

/// Adds the base to `root`. Downloads packages into `packages`. Returns them.
///
/// # Errors
/// apt or dpkg is missing or fails, or a file cannot be written.
pub(super) fn write(root: &Path, packages: &Path) -> Result<Vec<DebianPackage>> {
    for name in MERGED {
        let folder = root.join("usr").join(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        symlink(Path::new("usr").join(name), root.join(name))
            .with_context(|| format!("cannot create /{name}"))?;
    }
    let unpacked = download(packages)?.iter().map(|package| unpack(package, root)).collect::<Result<_>>()?;
    let temporary = root.join("tmp");
    fs::create_dir_all(&temporary).context("cannot create /tmp")?;
    write_file(root, BUNDLE, &bundle(&root.join(AUTHORITIES))?)?;
    FILES.iter().try_for_each(|(path, text)| write_file(root, path, text))?;
    Ok(unpacked)
}

/// Gives each file and folder its mode in an image, which does not depend on the umask and the user of this process: all users read, none but
/// root writes, and the folders for temporary files are open.
pub(super) fn set_modes(root: &Path) -> Result<()> {
    let cannot = |path: &Path| format!("cannot change the mode of {}", path.display());
    let set = |path: &Path, mode: u32| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| cannot(path))
    };
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        set(&folder, 0o755)?;
        for (_, path) in dist::entries(&folder)? {
            let metadata = fs::symlink_metadata(&path).with_context(|| cannot(&path))?;
            if metadata.is_dir() {
                open.push(path);
            } else if metadata.is_file() {
                set(&path, if metadata.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 })?;
            }
        }
    }
    let temporary = ["tmp", "var/tmp"].map(|name| root.join(name));
    temporary.iter().filter(|folder| folder.is_dir()).try_for_each(|folder| set(folder, 0o1777))
}

/// Downloads the packages, whose signatures apt checks.
fn download(folder: &Path) -> Result<Vec<PathBuf>> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let get = |names: &[&str]| {
        run(Command::new("apt-get").args(["download", "--quiet"]).args(names).current_dir(folder))
    };
    get(&PACKAGES.map(|(name, _)| name))?;
    // The licence of libgcc is in a package whose name has the version of the compiler.
    let libgcc = packages_in(folder)?.into_iter().find(|path| file_name(path).starts_with("libgcc-s1_"));
    let depends = run(Command::new("dpkg-deb")
        .arg("--field")
        .arg(libgcc.context("apt-get wrote no libgcc-s1")?)
        .arg("Depends"))?;
    let base = depends.split([' ', ',']).find(|word| word.starts_with("gcc-") && word.ends_with("-base"));
    get(&[base.context("libgcc-s1 does not name the package of its licence")?])?;
    packages_in(folder)
}

fn packages_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Unpacks a package into `root`, and records it where scanners look for the packages of an image without dpkg.
fn unpack(package: &Path, root: &Path) -> Result<DebianPackage> {
    let mut files = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let archive = files.stdout.take().context("the output of dpkg-deb was piped")?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--keep-directory-symlink", "--directory"])
        .arg(root)
        .stdin(archive);
    run(&mut tar)?;
    ensure!(files.wait()?.success(), "dpkg-deb cannot read {}", package.display());
    let control = run(Command::new("dpkg-deb").arg("--field").arg(package))?;
    let name = file_name(package);
    let name = name.split('_').next().unwrap_or_default();
    write_file(root, &format!("var/lib/dpkg/status.d/{name}"), &control)?;
    described(&control).with_context(|| format!("dpkg-deb does not describe {}", package.display()))
}

/// The package with this control file; `None` without a name, a version or an architecture.
fn described(control: &str) -> Option<DebianPackage> {
    let field = |name: &str| {
        let lines = control.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value.trim().to_owned())
    };
    let name = field("Package")?;
    // The package with the licence of the compiler's libraries has a version in its name.
    let licence = PACKAGES.iter().find(|(known, _)| *known == name).map_or(GCC, |(_, licence)| licence);
    Some(DebianPackage { name, version: field("Version")?, architecture: field("Architecture")?, licence })
}

/// The certificates of a folder in one text, in the order of their names.
fn bundle(folder: &Path) -> Result<String> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let read =
        |path: PathBuf| fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
    let texts = paths.into_iter().map(read).collect::<Result<Vec<String>>>()?;
    ensure!(!texts.is_empty(), "{} has no certificate", folder.display());
    Ok(texts.iter().map(|text| format!("{}\n", text.trim_end())).collect())
}

fn write_file(root: &Path, path: &str, text: &str) -> Result<()> {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap_or(root))
        .with_context(|| format!("cannot create the folder of {}", path.display()))?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Runs a program and returns what it prints. The error has the last line that it printed.
fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.output().with_context(|| format!("cannot run {program}; images are built on Debian"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}", stderr.trim().lines().next_back().unwrap_or("no reason given"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::tests::Folder;

    #[test]
    fn modes_do_not_depend_on_the_umask() {
        let root = Folder::new();
        let root = root.path();
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::create_dir_all(root.join("tmp")).unwrap();
        for (name, mode) in [("usr/bin/program", 0o700), ("usr/text", 0o600), ("usr/open", 0o666)] {
            fs::write(root.join(name), "").unwrap();
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        symlink("nowhere", root.join("usr/link")).unwrap();
        fs::set_permissions(root.join("usr"), fs::Permissions::from_mode(0o700)).unwrap();
        set_modes(root).unwrap();
        for (name, expect) in [
            ("", 0o755),
            ("usr", 0o755),
            ("usr/bin", 0o755),
            ("usr/bin/program", 0o755),
            ("usr/text", 0o644),
            ("usr/open", 0o644),
            ("tmp", 0o1777),
        ] {
            let mode = fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode, expect, "{name}");
        }
    }

    #[test]
    fn a_package_is_described_by_its_control_file() {
        let control = "Package: gcc-12-base\nArchitecture: amd64\nVersion: 12.2.0-14\nDescription: GCC\n The name: none\n";
        let expect = DebianPackage {
            name: "gcc-12-base".to_owned(),
            version: "12.2.0-14".to_owned(),
            architecture: "amd64".to_owned(),
            licence: GCC,
        };
        assert_eq!(described(control), Some(expect));
        let libc = described("Package: libc6\nVersion: 2\nArchitecture: amd64\n").unwrap();
        assert_eq!(libc.licence, "LGPL-2.1-or-later");
        assert_eq!(described("Package: libc6\nVersion: 2\n"), None);
    }

    #[test]
    fn certificates_are_joined_line_by_line() {
        let folder = Folder::new();
        assert!(bundle(folder.path()).is_err(), "an image without certificates is refused");
        fs::write(folder.path().join("b.crt"), "second").unwrap();
        fs::write(folder.path().join("a.crt"), "first\n").unwrap();
        assert_eq!(bundle(folder.path()).unwrap(), "first\nsecond\n");
    }
}

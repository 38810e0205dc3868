use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::ServerName;

use super::expiries::CertificateExpiry;
use super::watched_files::Look;
use super::*;

/// A folder with the files of a test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("baton-tls-files-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, key: &'static str, name: &str) -> TlsFile {
        TlsFile { key, path: self.0.join(name) }
    }

    fn put(&self, name: &str, contents: &str) {
        fs::write(self.0.join(name), contents).unwrap();
    }

    fn pair(&self) -> Pair {
        Pair {
            certificate: self.file("tls.cert_file", "cert.pem"),
            key: self.file("tls.key_file", "key.pem"),
        }
    }

    fn put_pair(&self, (certificate, key): &(String, String)) {
        self.put("cert.pem", certificate);
        self.put("key.pem", key);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A certificate that signs itself, and its key.
fn made(change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let (mut params, key) =
        (CertificateParams::new(vec!["localhost".to_owned()]).unwrap(), KeyPair::generate().unwrap());
    change(&mut params);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn good() -> (String, String) {
    made(|_| ())
}

#[test]
fn each_bad_file_is_named_with_its_key_and_a_remedy() {
    let folder = Folder::new();
    let check = |certificate: &str, key: &str, expect: &[&str]| {
        folder.put("cert.pem", certificate);
        folder.put("key.pem", key);
        let error = HttpTls::open(folder.pair(), CertificateExpiry::default())
            .err()
            .expect("the files cannot be used")
            .to_string();
        for part in expect {
            assert!(error.contains(part), "{error} lacks {part:?}");
        }
        assert!(!error.contains('\n') && error.contains("; "), "{error}");
        assert!(!error.contains(key.lines().nth(1).unwrap_or("-----")), "{error} shows the key");
    };
    let (certificate, key) = good();
    let cut = |text: &str| text[..text.len() / 2].to_owned();
    check(
        "",
        &key,
        &["tls.cert_file is ", "cert.pem", "no certificate", "set it to a PEM file with certificates"],
    );
    check(&key, &key, &["tls.cert_file is ", "no certificate"]);
    check(&cut(&certificate), &key, &["tls.cert_file is ", "cert.pem"]);
    check(&certificate, "", &["tls.key_file is ", "key.pem", "no private key", "unencrypted private key"]);
    check(&certificate, &cut(&key), &["tls.key_file is ", "key.pem"]);
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    check(&certificate, &encrypted, &["tls.key_file is ", "an encrypted private key"]);
    let damaged = pem_of("PRIVATE KEY", "AAAA");
    check(&certificate, &damaged, &["tls.key_file is ", "key.pem", "a private key of an unknown kind"]);
    check(
        &certificate,
        &good().1,
        &["key.pem (tls.key_file) does not belong to the certificate in ", "(tls.cert_file)"],
    );

    let (expired, its_key) = made(|params| params.not_after = date_time_ymd(2020, 2, 3));
    check(&expired, &its_key, &["cert.pem (tls.cert_file) expired on 2020-02-03 00:00 UTC; renew it"]);
    let (early, its_key) = made(|params| params.not_before = date_time_ymd(4000, 2, 3));
    check(&early, &its_key, &["(tls.cert_file) is not valid before 4000-02-03 00:00 UTC", "set the clock"]);

    fs::remove_file(folder.0.join("key.pem")).unwrap();
    let error = HttpTls::open(folder.pair(), CertificateExpiry::default()).err().expect("a file is missing");
    assert_eq!(error.kind(), "unreadable");
    assert!(error.to_string().contains("tls.key_file is ") && error.to_string().contains("cannot be read"));
}

fn pem_of(kind: &str, base64: &str) -> String {
    format!("-----BEGIN {kind}-----\n{base64}\n-----END {kind}-----\n")
}

#[test]
fn the_end_of_a_certificate_is_known() {
    let folder = Folder::new();
    folder.put_pair(&made(|params| params.not_after = date_time_ymd(3000, 5, 6)));
    let pair = folder.pair();
    let certified = pair.certified_key(&pair.certificate.read().unwrap(), &pair.key.read().unwrap()).unwrap();
    assert_eq!(expiry(&certified.cert).unwrap().1, "3000-05-06 00:00 UTC");
}

#[test]
fn files_are_used_when_they_have_changed_and_can_be_used() {
    let folder = Folder::new();
    let (first, second) = (good(), good());
    folder.put_pair(&first);
    let (_, mut watched) = HttpTls::open(folder.pair(), CertificateExpiry::default()).unwrap();
    assert_eq!(watched.look(), Look::Same);
    folder.put_pair(&second);
    assert_eq!([watched.look(), watched.look()], [Look::Renewed, Look::Same]);

    // Between the two writes of a program, the pair does not fit. One look does not log that.
    folder.put("cert.pem", &first.0);
    assert_eq!(watched.look(), Look::StillUnusable);
    folder.put("key.pem", &first.1);
    assert_eq!([watched.look(), watched.look()], [Look::Renewed, Look::Same]);

    let expired = made(|params| params.not_after = date_time_ymd(2020, 1, 1));
    let damaged = [("".to_owned(), "".to_owned()), expired, (second.0.clone(), first.1.clone())];
    for bad in damaged {
        folder.put_pair(&bad);
        assert_eq!(watched.look(), Look::StillUnusable);
        let Look::Unusable(reason) = watched.look() else { panic!("the second look does not log {bad:?}") };
        assert!(reason.contains("tls.cert_file"), "{reason}");
        assert_eq!(watched.look(), Look::StillUnusable, "one line for each fault");
        folder.put_pair(&first);
        assert_eq!([watched.look(), watched.look()], [Look::SameAgain, Look::Same]);
    }

    // A renewal that fails is logged although one before it has failed, even for the same reason.
    for bad in [(good().0, good().1), (good().0, good().1)] {
        folder.put_pair(&bad);
        assert_eq!(watched.look(), Look::StillUnusable);
        assert!(matches!(watched.look(), Look::Unusable(_)), "each failing renewal is logged");
        assert_eq!(watched.look(), Look::StillUnusable);
    }
}

#[test]
fn the_metric_has_the_end_of_the_certificate_in_use() {
    let written = |expiries: &CertificateExpiries| {
        let mut page = common::metrics::MetricsText::default();
        expiries.write(&mut page);
        let text = page.into_string();
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
    };
    let (folder, expiries) = (Folder::new(), CertificateExpiries::default());
    assert!(written(&expiries).is_empty(), "no values without TLS");
    folder.put_pair(&made(|params| params.not_after = date_time_ymd(3000, 1, 1)));
    let (_, mut watched) = HttpTls::open(folder.pair(), expiries.http.clone()).unwrap();
    let line =
        |end: u64| vec![format!("baton_tls_certificate_expiry_timestamp_seconds{{use=\"http\"}} {end}")];
    assert_eq!(written(&expiries), line(32_503_680_000));
    folder.put_pair(&made(|params| params.not_after = date_time_ymd(2000, 1, 1)));
    assert_eq!(watched.look(), Look::StillUnusable);
    assert_eq!(written(&expiries), line(32_503_680_000), "the old certificate stays in use");
    folder.put_pair(&made(|params| params.not_after = date_time_ymd(3000, 1, 2)));
    assert_eq!(watched.look(), Look::Renewed);
    assert_eq!(written(&expiries), line(32_503_680_000 + 86_400));
}

/// A node's certificate in a file of authorities would let the node make certificates for peers.
#[test]
fn a_certificate_that_may_not_sign_is_no_authority() {
    let folder = Folder::new();
    let authority = |constraints| {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "authority");
        params.is_ca = constraints;
        rcgen::CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let root = authority(IsCa::Ca(BasicConstraints::Unconstrained));
    let signed = |constraints| {
        let mut params = CertificateParams::new(vec!["node-1".to_owned()]).unwrap();
        params.is_ca = constraints;
        params.signed_by(&KeyPair::generate().unwrap(), &root).unwrap().pem()
    };
    let check = |pem: &str| {
        let file = folder.file("link.tls_ca_file", "ca.pem");
        file.authorities(pem.as_bytes()).map(|roots| roots.len()).map_err(|error| error.to_string())
    };
    assert_eq!(check(&root.pem()), Ok(1));
    assert_eq!(check(&(root.pem() + &signed(IsCa::Ca(BasicConstraints::Constrained(0))))), Ok(2));
    assert_eq!(check(&good().0), Ok(1), "a certificate that signs itself");
    for constraints in [IsCa::NoCa, IsCa::ExplicitNoCa] {
        let error = check(&(root.pem() + &signed(constraints))).unwrap_err();
        assert!(
            error.starts_with("link.tls_ca_file is ") && error.contains("is no authority; set it to"),
            "{error}"
        );
    }
}

/// Kubernetes mounts a Secret as links through a link `..data`, which it renames.
#[test]
fn files_behind_a_replaced_link_are_read_again() {
    use std::os::unix::fs::symlink;
    let folder = Folder::new();
    let at = |name: &str| folder.0.join(name);
    let version = |name: &str| {
        fs::create_dir(at(name)).unwrap();
        let (certificate, key) = good();
        fs::write(at(name).join("cert.pem"), certificate).unwrap();
        fs::write(at(name).join("key.pem"), key).unwrap();
        symlink(name, at("..tmp")).unwrap();
        fs::rename(at("..tmp"), at("..data")).unwrap();
    };
    version("..1");
    for name in ["cert.pem", "key.pem"] {
        symlink(Path::new("..data").join(name), at(name)).unwrap();
    }
    let (_, mut watched) = HttpTls::open(folder.pair(), CertificateExpiry::default()).unwrap();
    version("..2");
    fs::remove_dir_all(at("..1")).unwrap();
    assert_eq!([watched.look(), watched.look()], [Look::Renewed, Look::Same]);
}

/// A chain of a root that is not in the file is as good as one that signs itself.
#[test]
fn authorities_and_link_files_are_read() {
    let folder = Folder::new();
    folder.put_pair(&good());
    folder.put("ca.pem", &(good().0 + &good().0));
    let authorities = folder.file("link.tls_ca_file", "ca.pem");
    assert_eq!(authorities.authorities(&authorities.read().unwrap()).unwrap().len(), 2);
    let files = || LinkFiles {
        pair: folder.pair(),
        authorities: authorities.clone(),
        allowed_names: vec![ServerName::try_from("a").unwrap()],
    };
    let (_, mut watched) = open_link(files(), CertificateExpiry::default()).unwrap();
    folder.put("ca.pem", &good().0);
    assert_eq!([watched.look(), watched.look()], [Look::Renewed, Look::Same]);
    folder.put("ca.pem", "");
    let error = open_link(files(), CertificateExpiry::default()).err().unwrap().to_string();
    assert!(error.starts_with("link.tls_ca_file is ") && error.contains("no certificate"), "{error}");
    let error = NodesTls::open(folder.file("fleet.nodes_ca_file", "ca.pem"), None).err().unwrap().to_string();
    assert!(error.starts_with("fleet.nodes_ca_file is "), "{error}");
}

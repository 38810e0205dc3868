//! Certificates for tests: authorities, the certificates that they sign, and the files that processes read.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

use crate::folders::Folder;

/// An authority that signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM text.
#[derive(Clone, Debug)]
pub struct SignedPair {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// There are no random bytes.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let mut params = CertificateParams::new(vec![])?;
        let name = format!("Authority {}", NEXT.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Its own certificate as PEM text.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Its own certificate.
    pub fn der(&self) -> &[u8] {
        self.0.der()
    }

    /// A certificate for these host names and addresses.
    ///
    /// # Errors
    /// A name cannot be in a certificate.
    pub fn signs(&self, names: &[&str]) -> Result<SignedPair> {
        self.signs_until(names, 4000)
    }

    /// A certificate that is valid until the beginning of a year.
    ///
    /// # Errors
    /// A name cannot be in a certificate.
    pub fn signs_until(&self, names: &[&str], year: i32) -> Result<SignedPair> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let (mut params, key) = (CertificateParams::new(names)?, KeyPair::generate()?);
        params.not_after = date_time_ymd(year, 1, 1);
        let certificate = params.signed_by(&key, &self.0)?.pem();
        Ok(SignedPair { certificate, key: key.serialize_pem() })
    }
}

/// A folder with PEM files, which is removed with the value.
pub struct PemFolder(Folder);

impl PemFolder {
    /// An empty folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("baton-pem-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = Folder(std::env::temp_dir().join(name));
        fs::create_dir_all(&folder.0)?;
        Ok(Self(folder))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, and returns `key=` and its path, a setting.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put(&self, key: &str, name: &str, text: &str) -> Result<String> {
        let path = self.path().join(name);
        fs::write(&path, text)?;
        Ok(format!("{key}={}", path.display()))
    }

    /// The settings of the HTTP ports with this certificate.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn http(&self, pair: &SignedPair) -> Result<[String; 2]> {
        Ok([
            self.put("tls.cert_file", "http_own.pem", &pair.certificate)?,
            self.put("tls.key_file", "http_own.key", &pair.key)?,
        ])
    }

    /// The settings of the link with this certificate, which trusts an authority.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn link(&self, pair: &SignedPair, authority: &Authority) -> Result<[String; 3]> {
        Ok([
            self.put("link.tls_cert_file", "link_own.pem", &pair.certificate)?,
            self.put("link.tls_key_file", "link_own.key", &pair.key)?,
            self.put("link.tls_ca_file", "ca.pem", &authority.pem())?,
        ])
    }
}

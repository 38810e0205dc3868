//! Reads certificates again when their files change.
//!
//! Files are small and read as a whole, because neither the time nor the size of a file always changes with its contents, and because Kubernetes
//! replaces files through a symbolic link. A thread of its own reads them, so that a file system that hangs delays no request.

use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::files::{TlsFile, TlsFileError};

/// Time between two looks at the files.
const LOOK: Duration = Duration::from_secs(2);

/// Contents that cannot be used at this many looks in a row are logged, once. A program that writes a certificate and then its key may be between the two
/// at one look.
const LOOKS: u32 = 2;

/// What identifies the contents of the files that are in use.
type Fingerprint = [u8; 32];

/// Uses new contents of the files.
type Renew = dyn FnMut(&[Vec<u8>]) -> anyhow::Result<()> + Send;

/// Files and what is done with new contents.
pub(crate) struct WatchedFiles {
    /// What they are for, in the words of a log line.
    what: &'static str,
    files: Vec<TlsFile>,
    /// The contents in use.
    used: Fingerprint,
    /// The contents that could not be used at the last look.
    failed: Option<Failure>,
    /// Whether contents that cannot be used were logged since the files could be used.
    is_logged: bool,
    renew: Box<Renew>,
}

/// Contents that cannot be used.
struct Failure {
    /// What identifies them; `None` if they cannot be read.
    contents: Option<Fingerprint>,
    error: String,
    /// Looks in a row that found them.
    looks: u32,
}

/// The result of one look at the files.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// The contents are those in use.
    Same,
    /// The contents are those in use again, after some that could not be used were logged.
    SameAgain,
    /// New contents are in use.
    Renewed,
    /// The files cannot be used. The old contents stay in use.
    Unusable(String),
    /// The same as before, logged already or not yet to be logged.
    StillUnusable,
}

impl WatchedFiles {
    /// Files with these contents in use.
    pub(super) fn new(
        what: &'static str,
        files: Vec<TlsFile>,
        used: Fingerprint,
        renew: impl FnMut(&[Vec<u8>]) -> anyhow::Result<()> + Send + 'static,
    ) -> Self {
        Self { what, files, used, failed: None, is_logged: false, renew: Box::new(renew) }
    }

    /// Reads the files. Returns what identifies their contents, and the contents.
    pub(super) fn read(files: &[TlsFile]) -> Result<(Fingerprint, Vec<Vec<u8>>), TlsFileError> {
        let contents = files.iter().map(TlsFile::read).collect::<Result<Vec<_>, _>>()?;
        let mut digest = Sha256::new();
        for content in &contents {
            digest.update(Sha256::digest(content));
        }
        Ok((digest.finalize().into(), contents))
    }

    /// Looks at the files once.
    pub(super) fn look(&mut self) -> Look {
        let (found, contents) = match Self::read(&self.files) {
            Ok(read) => read,
            Err(error) => return self.fails(None, error.to_string()),
        };
        if found != self.used {
            if let Err(error) = (self.renew)(&contents) {
                return self.fails(Some(found), format!("{error:#}"));
            }
            (self.used, self.failed, self.is_logged) = (found, None, false);
            return Look::Renewed;
        }
        self.failed = None;
        if std::mem::take(&mut self.is_logged) { Look::SameAgain } else { Look::Same }
    }

    /// These contents cannot be used. Other contents, or another reason, are logged again.
    fn fails(&mut self, contents: Option<Fingerprint>, error: String) -> Look {
        let before = self.failed.take().filter(|failed| failed.contents == contents && failed.error == error);
        let looks = before.map_or(0, |failed| failed.looks).saturating_add(1);
        self.failed = Some(Failure { contents, error: error.clone(), looks });
        if looks != LOOKS {
            return Look::StillUnusable;
        }
        self.is_logged = true;
        Look::Unusable(error)
    }

    fn look_and_log(&mut self) {
        let what = self.what;
        match self.look() {
            Look::Same | Look::StillUnusable => {}
            Look::Renewed => tracing::info!("{what}: the files have changed and are in use"),
            Look::SameAgain => tracing::info!("{what}: the files are those in use again"),
            Look::Unusable(error) => {
                tracing::warn!(
                    "{what}: the new files cannot be used, and the old contents stay in use: {error}"
                );
            }
        }
    }
}

/// Looks at the files every few seconds, until the process ends.
///
/// # Errors
/// The system starts no thread.
pub(crate) fn watch(mut all: Vec<WatchedFiles>) -> std::io::Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    let look = move || {
        loop {
            thread::sleep(LOOK);
            all.iter_mut().for_each(WatchedFiles::look_and_log);
        }
    };
    thread::Builder::new().name("certificates".to_owned()).spawn(look).map(drop)
}

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

/// A file that cannot be used at this many looks in a row is logged. A program that writes a certificate and then its key may be between the two
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
    /// Looks in a row at which the files could not be used.
    failed: u32,
    renew: Box<Renew>,
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
        Self { what, files, used, failed: 0, renew: Box::new(renew) }
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
        let renewed = Self::read(&self.files).map_err(anyhow::Error::from).and_then(|(found, contents)| {
            if found == self.used {
                return Ok(false);
            }
            (self.renew)(&contents)?;
            self.used = found;
            Ok(true)
        });
        match renewed {
            Ok(true) => {
                self.failed = 0;
                Look::Renewed
            }
            Ok(false) => match std::mem::take(&mut self.failed) {
                0..LOOKS => Look::Same,
                _ => Look::SameAgain,
            },
            Err(error) => {
                self.failed = self.failed.saturating_add(1);
                if self.failed == LOOKS { Look::Unusable(format!("{error:#}")) } else { Look::StillUnusable }
            }
        }
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

//! Checks of the certificates and keys that a start reads.

use std::time::Duration;

use rustls::pki_types::UnixTime;

use super::Subject;
use super::report::Finding;
use crate::roles::certificates;
use crate::tls::{Pair, TlsFile, TlsFileError, expiry};

const CHECK: &str = "certificates";

/// A certificate whose validity ends within this time is a warning.
const SOON: Duration = Duration::from_secs(14 * 86_400);

pub(super) fn check(subject: &Subject) -> Vec<Finding> {
    let (role, config) = (subject.config.role, &subject.config);
    let link = certificates::link(role, config);
    let pairs = certificates::http(config).into_iter().chain(link.clone().map(|link| link.pair));
    let nodes = certificates::nodes(role, config).map(|(file, _)| file);
    let authorities = link.map(|link| link.authorities).into_iter().chain(nodes);
    let pairs = pairs.map(|pair| judge_pair(&pair, own(&pair), UnixTime::now()));
    pairs.chain(authorities.map(|file| judge_authorities(&file, count(&file)))).collect()
}

/// The end of the validity of a certificate that can be used, and how it is written.
type Validity = Result<Option<(UnixTime, String)>, TlsFileError>;

fn own(pair: &Pair) -> Validity {
    let certified = pair.certified_key(&pair.certificate.read()?, &pair.key.read()?)?;
    Ok(expiry(&certified.cert))
}

fn count(file: &TlsFile) -> Result<usize, TlsFileError> {
    Ok(file.authorities(&file.read()?)?.len())
}

fn judge_pair(pair: &Pair, validity: Validity, now: UnixTime) -> Finding {
    let (key, path) = (pair.certificate.key, pair.certificate.path.display());
    match validity {
        Err(error) => Finding::from_error(CHECK, &error.to_string(), "correct the file"),
        Ok(None) => Finding::ok(CHECK, format!("{key} is {path}")),
        Ok(Some((end, date))) => {
            let what = format!("{key} is {path}, valid until {date}");
            match end.as_secs().saturating_sub(now.as_secs()) < SOON.as_secs() {
                false => Finding::ok(CHECK, what),
                true => {
                    Finding::warning(CHECK, what, "renew it; a running process reads the new file by itself")
                }
            }
        }
    }
}

fn judge_authorities(file: &TlsFile, found: Result<usize, TlsFileError>) -> Finding {
    match found {
        Err(error) => Finding::from_error(CHECK, &error.to_string(), "correct the file"),
        Ok(count) => {
            let (key, path) = (file.key, file.path.display());
            let plural = if count == 1 { "y" } else { "ies" };
            Finding::ok(CHECK, format!("{key} is {path}, with {count} authorit{plural}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::CheckState;
    use super::*;

    #[test]
    fn a_certificate_that_ends_soon_is_a_warning() {
        let file = |key| TlsFile { key, path: "/c".into() };
        let pair = Pair { certificate: file("tls.cert_file"), key: file("tls.key_file") };
        let at = |days: u64| UnixTime::since_unix_epoch(Duration::from_secs(days * 86_400));
        let judge = |days| judge_pair(&pair, Ok(Some((at(days), "then".to_owned()))), at(1000));
        assert_eq!((judge(1013).state, judge(1014).state), (CheckState::Warning, CheckState::Ok));
        assert_eq!(judge(2000).what, "tls.cert_file is /c, valid until then");
        let expired =
            || TlsFileError::Expired { key: "tls.cert_file", path: "/c".to_owned(), date: "then".to_owned() };
        let fault = judge_pair(&pair, Err(expired()), at(1000));
        assert_eq!(fault.what, "the certificate in /c (tls.cert_file) expired on then");
        assert_eq!((fault.state, fault.remedy.as_deref()), (CheckState::Fault, Some("renew it")));
        let file = file("link.tls_ca_file");
        assert_eq!(judge_authorities(&file, Ok(2)).what, "link.tls_ca_file is /c, with 2 authorities");
    }
}

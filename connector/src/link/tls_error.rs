//! Why two ends of a link do not agree on TLS, in the words of the settings.

use std::io;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use crate::frame::peer_text;

/// The reason why a link with TLS could not be established.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkTlsError {
    /// The peer's certificate is of an authority that this process does not trust.
    #[error(
        "peer's certificate is signed by no authority in link.tls_ca_file; set it to the authorities of the peers' certificates, or give \
         the peer a certificate of one of them"
    )]
    UnknownAuthority,
    /// The peer's certificate was valid until some time ago.
    #[error("peer's certificate expired {0} ago; renew link.tls_cert_file of the peer")]
    Expired(String),
    /// The peer's certificate becomes valid later.
    #[error(
        "peer's certificate is not valid before {0} from now; set the clocks of both machines, or renew link.tls_cert_file of the peer"
    )]
    NotValidYet(String),
    /// The peer's certificate has other names.
    #[error(
        "peer's certificate is for {presented}, but this process expects {expected}; set link.tls_allowed_names to a name in the \
         certificates of peers, or give the peer a certificate with the expected name"
    )]
    Name {
        /// The names in the certificate.
        presented: String,
        /// The names of which it should have one.
        expected: String,
    },
    /// The peer's certificate cannot be used for another reason.
    #[error("peer's certificate cannot be used ({0}); give the peer another link.tls_cert_file")]
    Certificate(String),
    /// The peer has shown no certificate.
    #[error("peer shows no certificate; set link.tls_cert_file and link.tls_key_file of the peer")]
    NoCertificate,
    /// The peer refuses the certificate of this process.
    #[error("peer refuses the certificate of this process: {0}")]
    Refused(&'static str),
    /// This process has TLS and the peer has none.
    #[error(
        "peer speaks without TLS on the link, but this process with TLS; set link.tls_cert_file, link.tls_key_file and link.tls_ca_file on \
         both sides or on neither"
    )]
    PeerIsPlain,
    /// The peer has TLS and this process has none.
    #[error(
        "peer speaks TLS on the link, but this process does not; set link.tls_cert_file, link.tls_key_file and link.tls_ca_file on both \
         sides or on neither"
    )]
    PeerSpeaksTls,
    /// The dialled host cannot be in a certificate, and there are no allowed names.
    #[error(
        "no certificate can be for the host in {0}; dial a host name or an IP address without a zone, or set link.tls_allowed_names to a name \
         in the certificates of peers"
    )]
    Address(String),
    /// The file of authorities has none.
    #[error(
        "link.tls_ca_file has no authority; set it to a PEM file with the authorities of the peers' certificates"
    )]
    NoAuthority,
    /// The system starts no thread for the handshakes.
    #[error("cannot start the thread of TLS handshakes ({0}); raise the limits of threads and open files")]
    Thread(String),
    /// The peer does not follow the protocol.
    #[error("TLS on the link failed: {0}")]
    Protocol(Error),
}

impl LinkTlsError {
    /// True if dialling again fails until a setting is changed. Certificates are renewed, and a fault of the connection may pass.
    pub fn is_permanent(&self) -> bool {
        !matches!(self, Self::Expired(_) | Self::NotValidYet(_) | Self::Protocol(_))
    }

    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::UnknownAuthority => "unknown_authority",
            Self::Expired(_) => "expired",
            Self::NotValidYet(_) => "not_valid_yet",
            Self::Name { .. } => "name",
            Self::Certificate(_) => "certificate",
            Self::NoCertificate => "no_certificate",
            Self::Refused(_) => "refused",
            Self::PeerIsPlain => "peer_is_plain",
            Self::PeerSpeaksTls => "peer_speaks_tls",
            Self::Address(_) => "address",
            Self::NoAuthority => "no_authority",
            Self::Thread(_) => "thread",
            Self::Protocol(_) => "protocol",
        }
    }
}

impl From<&Error> for LinkTlsError {
    fn from(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(reason) => of_certificate(reason),
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::AlertReceived(alert) => of_alert(*alert).unwrap_or_else(|| Self::Protocol(error.clone())),
            // What a peer without TLS sends first is no TLS record.
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::PeerIsPlain,
            error => Self::Protocol(error.clone()),
        }
    }
}

/// This process refuses the peer's certificate.
fn of_certificate(reason: &CertificateError) -> LinkTlsError {
    let between =
        |later: &UnixTime, earlier: &UnixTime| period(later.as_secs().saturating_sub(earlier.as_secs()));
    match reason {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => LinkTlsError::UnknownAuthority,
        CertificateError::ExpiredContext { time, not_after } => LinkTlsError::Expired(between(time, not_after)),
        CertificateError::NotValidYetContext { time, not_before } => {
            LinkTlsError::NotValidYet(between(not_before, time))
        }
        CertificateError::NotValidForNameContext { expected, presented } => LinkTlsError::Name {
            presented: presented_names(presented),
            expected: expected.to_str().into_owned(),
        },
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => LinkTlsError::Certificate(
            "its extended key usage needs serverAuth for a process that listens and clientAuth for one that dials".to_owned(),
        ),
        reason => LinkTlsError::Certificate(reason.to_string()),
    }
}

/// The peer refuses the certificate of this process; `None` for an alert about something else.
fn of_alert(alert: AlertDescription) -> Option<LinkTlsError> {
    Some(LinkTlsError::Refused(match alert {
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "no authority in its link.tls_ca_file signed it; use the same authorities on both sides"
        }
        AlertDescription::CertificateExpired => {
            "it has expired or is not valid yet; renew link.tls_cert_file"
        }
        AlertDescription::BadCertificate => {
            "it has no name that the peer expects; add one of its names to link.tls_allowed_names of the peer"
        }
        AlertDescription::UnsupportedCertificate => {
            "its extended key usage does not fit; use a certificate for servers and clients in link.tls_cert_file"
        }
        AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => "see the log of the peer for the reason",
        AlertDescription::CertificateRequired => {
            "none was sent; set link.tls_cert_file and link.tls_key_file"
        }
        _ => return None,
    }))
}

/// The names of a certificate for a sentence, from their form in [`CertificateError::NotValidForNameContext`], such as `DnsName("a")`.
pub fn presented_names(presented: &[String]) -> String {
    const SHOWN: usize = 4;
    let bare = |name: &String| {
        let inside = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
        peer_text(inside.unwrap_or(name).trim_matches('"'))
    };
    let names: Vec<String> = presented.iter().take(SHOWN).map(bare).collect();
    match presented.len() {
        0 => "no name".to_owned(),
        count if count > SHOWN => format!("{} and {} more", names.join(", "), count - SHOWN),
        _ => names.join(", "),
    }
}

/// The TLS error inside an error of a socket.
pub(super) fn inner(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// A number of seconds for people.
fn period(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..120 => (seconds, "s"),
        120..7200 => (seconds / 60, "minutes"),
        7200..172_800 => (seconds / 3600, "hours"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{count} {unit}")
}

//! The checks of a peer's certificate: its authority and time, as webpki checks them, and then its names.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};

use super::LinkTlsError;

type Verified<T> = Result<T, Error>;

/// The check of a peer: `Chain` checks all but the allowed names.
#[derive(Debug)]
pub(super) struct PeerVerifier<Chain: ?Sized> {
    chain: Arc<Chain>,
    allowed: Vec<ServerName<'static>>,
}

impl PeerVerifier<WebPkiServerVerifier> {
    /// The dialer's check of the listener.
    pub(super) fn of_listeners(
        authorities: &Arc<RootCertStore>,
        provider: &Arc<CryptoProvider>,
        allowed: &[ServerName<'static>],
    ) -> Result<Self, LinkTlsError> {
        let builder =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(authorities), Arc::clone(provider));
        let chain = builder.build().map_err(|_| LinkTlsError::NoAuthority)?;
        Ok(Self { chain, allowed: allowed.to_vec() })
    }
}

impl PeerVerifier<dyn ClientCertVerifier> {
    /// The listener's check of the dialer.
    pub(super) fn of_dialers(
        authorities: &Arc<RootCertStore>,
        provider: &Arc<CryptoProvider>,
        allowed: &[ServerName<'static>],
    ) -> Result<Self, LinkTlsError> {
        let builder =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(authorities), Arc::clone(provider));
        let chain = builder.build().map_err(|_| LinkTlsError::NoAuthority)?;
        Ok(Self { chain, allowed: allowed.to_vec() })
    }
}

/// The methods that both traits of verifiers have: the chain checks the signatures of a handshake.
macro_rules! signatures_by_chain {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Verified<HandshakeSignatureValid> {
            self.chain.verify_tls12_signature(message, cert, dss)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Verified<HandshakeSignatureValid> {
            self.chain.verify_tls13_signature(message, cert, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.chain.supported_verify_schemes()
        }
    };
}

impl ServerCertVerifier for PeerVerifier<WebPkiServerVerifier> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Verified<ServerCertVerified> {
        if self.allowed.is_empty() {
            return self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp, now);
        }
        // The names are checked last, so an error about the name means that all else is right.
        match self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp, now) {
            Ok(_)
            | Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {
                has_allowed_name(end_entity, &self.allowed)?;
                Ok(ServerCertVerified::assertion())
            }
            refused => refused,
        }
    }

    signatures_by_chain!();
}

impl ClientCertVerifier for PeerVerifier<dyn ClientCertVerifier> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Verified<ClientCertVerified> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        has_allowed_name(end_entity, &self.allowed)?;
        Ok(verified)
    }

    signatures_by_chain!();
}

/// Checks that the certificate has one of the names, if there are any. The error is that of the first name.
fn has_allowed_name(certificate: &CertificateDer<'_>, allowed: &[ServerName<'static>]) -> Verified<()> {
    let Some((first, others)) = allowed.split_first() else { return Ok(()) };
    let certificate = ParsedCertificate::try_from(certificate)?;
    let refused = verify_server_name(&certificate, first);
    let is_other = || others.iter().any(|name| verify_server_name(&certificate, name).is_ok());
    if refused.is_err() && is_other() { Ok(()) } else { refused }
}

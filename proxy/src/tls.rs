//! TLS as a client: of etcd, of Patroni's REST interface, of PostgreSQL.
//!
//! Files are read anew by each call, so that a replaced certificate is used from the next connection on.
//! The cryptography is ring's, given explicitly: there is no process-wide default to depend on.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pointsman_config::{ClientTls, Host as _, System, Verify};
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::{self, AlertDescription, CertificateError, ClientConfig, RootCertStore};

mod end_point;
mod lenient;

pub(crate) use end_point::end_point;

/// What can be wrong with the files of a TLS client.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or unreadable.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file is not the PEM that it should be.
    #[error("{} holds no {what} in PEM form", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// A CA certificate that cannot be used.
    #[error("a certificate in {} cannot be used as a CA: {error}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// What rustls said.
        error: rustls::Error,
    },
    /// The system has no CAs.
    #[error("no CA is given and the system has none: {0}")]
    NoSystemCa(String),
    /// The certificate and the key do not belong together, or the key is of an unknown kind.
    #[error("the certificate {} and the key {} cannot be used together: {error}", cert.display(), key.display())]
    CertKey {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls said.
        error: rustls::Error,
    },
    /// The name to expect is neither a host name nor an IP address.
    #[error("{0:?} is no name that a certificate can carry")]
    Name(String),
    /// The verifier could not be built.
    #[error("the server's certificate cannot be verified: {0}")]
    Verifier(String),
}

/// Builds a client's configuration. `None`: the system's CAs, no client certificate. Reads files: call it
/// where blocking is allowed.
pub fn client_config(tls: Option<&ClientTls>, alpn: &[&[u8]]) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Verifier(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier(tls, provider)?);
    let mut config = match tls.and_then(|tls| tls.cert_key.as_ref()) {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(|error| TlsError::CertKey { cert: cert.clone(), key: key.clone(), error })?,
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// The name that the server's certificate must carry: the configured one, or else the address's host.
pub fn server_name(tls: Option<&ClientTls>, host: &str) -> Result<ServerName<'static>, TlsError> {
    let name = tls.and_then(|tls| tls.server_name.as_deref()).unwrap_or(host);
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))
}

/// A sentence for people, if a failed TLS handshake is at the bottom of an error.
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    let error = find_tls(error)?;
    if let rustls::Error::InvalidCertificate(why) = error {
        return Some(explain_certificate(why));
    }
    let refused = matches!(
        error,
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::UnknownCA
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown,
        )
    );
    Some(if refused {
        format!("it does not accept our client certificate ({error}); check tls.cert and tls.key")
    } else if matches!(error, rustls::Error::InvalidMessage(_)) {
        "it does not speak TLS; is it http rather than https?".to_owned()
    } else {
        format!("the TLS handshake failed: {error}")
    })
}

fn explain_certificate(why: &CertificateError) -> String {
    if *why == CertificateError::UnknownIssuer {
        return "its certificate is signed by an authority that is not trusted here; check tls.ca".to_owned();
    }
    if matches!(why, CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) {
        return format!("its certificate names another host ({why}); check tls.server_name");
    }
    if matches!(why, CertificateError::Expired | CertificateError::ExpiredContext { .. }) {
        return "its certificate has expired".to_owned();
    }
    format!("its certificate is not accepted: {why}")
}

/// rustls hides its errors in `io::Error`s, which do not show them as their source.
fn find_tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let inside = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = inside.map(|inside| inside as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

fn verifier(
    tls: Option<&ClientTls>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let verify = tls.map_or(Verify::Full, |tls| tls.verify);
    if verify == Verify::None {
        return Ok(Arc::new(lenient::AnyCertificate::new(provider)));
    }
    let roots = match tls.and_then(|tls| tls.ca.as_deref()) {
        Some(path) => given_roots(path)?,
        None => system_roots()?,
    };
    let full = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| TlsError::Verifier(error.to_string()))?;
    Ok(if verify == Verify::Ca { Arc::new(lenient::AnyName::new(full)) } else { full })
}

fn given_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::Ca { path: path.to_owned(), error })?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        return Err(TlsError::NoSystemCa(why));
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = || TlsError::Pem { path: path.to_owned(), what: "certificate" };
    let all = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, pem::Error>>();
    all.ok().filter(|all| !all.is_empty()).ok_or_else(wrong)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let wrong = |_| TlsError::Pem { path: path.to_owned(), what: "private key" };
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(wrong)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    System.read_file(path).map_err(|error| TlsError::Unreadable { path: path.to_owned(), error })
}

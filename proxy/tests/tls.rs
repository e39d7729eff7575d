//! What is wrong with the files of a TLS client is said with the file's name.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use std::path::PathBuf;

use pointsman::tls::{TlsError, client_config, server_name};
use pointsman_config::{ClientTls, Verify};
use support::certs::Certs;

fn tls(ca: String, cert_key: Option<(String, String)>) -> ClientTls {
    let cert_key = cert_key.map(|(cert, key)| (PathBuf::from(cert), PathBuf::from(key)));
    ClientTls { ca: Some(ca.into()), cert_key, server_name: None, verify: Verify::Full }
}

#[test]
fn good_files_and_alpn() {
    let certs = Certs::new(&[]);
    let pair = (certs.path("client.pem"), certs.path("client.key"));
    let config = client_config(Some(&tls(certs.path("ca.pem"), Some(pair))), &[b"h2"]).unwrap();
    assert_eq!(config.alpn_protocols, [b"h2"]);
    assert!(config.client_auth_cert_resolver.has_certs());
}

#[test]
fn bad_files_are_named() {
    let certs = Certs::new(&[]);
    let (ca, key, other) = (certs.path("ca.pem"), certs.path("client.key"), certs.path("server.key"));
    let cert = certs.path("client.pem");
    let missing = certs.path("missing.pem");
    for (tls, wanted) in [
        (tls(missing.clone(), None), format!("cannot read {missing}: ")),
        (tls(key.clone(), None), format!("{key} holds no certificate in PEM form")),
        (tls(ca.clone(), Some((cert.clone(), missing.clone()))), format!("cannot read {missing}: ")),
        (
            tls(ca.clone(), Some((cert.clone(), cert.clone()))),
            format!("{cert} holds no private key in PEM form"),
        ),
        (
            tls(ca.clone(), Some((cert.clone(), other.clone()))),
            format!("the certificate {cert} and the key {other} "),
        ),
    ] {
        let error = client_config(Some(&tls), &[]).unwrap_err();
        assert!(error.to_string().starts_with(&wanted), "{error}");
    }
}

#[test]
fn names_to_expect() {
    let mut tls = tls(String::new(), None);
    assert_eq!(server_name(None, "pg1.example.com").unwrap().to_str(), "pg1.example.com");
    assert_eq!(server_name(Some(&tls), "fd00::1").unwrap().to_str(), "fd00::1");
    tls.server_name = Some("patroni".to_owned());
    assert_eq!(server_name(Some(&tls), "10.0.0.1").unwrap().to_str(), "patroni");
    assert!(matches!(server_name(None, "no name"), Err(TlsError::Name(_))));
}

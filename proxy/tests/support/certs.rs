//! A CA with a server and a client certificate, in files.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use tempfile::TempDir;

pub(crate) struct Certs {
    dir: TempDir,
}

impl Certs {
    /// `ca.pem`, `server.pem` for these addresses, `client.pem`, their keys; and `other-ca.pem`, which signed `stranger.pem`.
    pub(crate) fn new(ips: &[String]) -> Self {
        let certs = Self { dir: tempfile::tempdir().unwrap() };
        let issuer = certs.authority("ca");
        let other = certs.authority("other-ca");
        certs.leaf("server", &issuer, ips);
        certs.leaf("client", &issuer, &[]);
        certs.leaf("stranger", &other, &[]);
        certs
    }

    pub(crate) fn path(&self, file: &str) -> String {
        self.dir.path().join(file).to_str().unwrap().to_owned()
    }

    fn authority(&self, name: &str) -> Issuer<'static, KeyPair> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        self.write(&format!("{name}.pem"), &certificate.pem());
        Issuer::new(params, key)
    }

    fn leaf(&self, name: &str, issuer: &Issuer<'_, KeyPair>, ips: &[String]) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names =
            ips.iter().map(|ip| SanType::IpAddress(ip.parse::<IpAddr>().unwrap())).collect();
        let certificate = params.signed_by(&key, issuer).unwrap();
        self.write(&format!("{name}.pem"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    fn write(&self, file: &str, content: &str) {
        std::fs::write(self.dir.path().join(file), content).unwrap();
    }
}

//! A CA with server and client certificates, in files.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use tempfile::TempDir;

pub(crate) struct Certs {
    dir: TempDir,
    ips: Vec<String>,
}

impl Certs {
    /// `ca.pem`, `server.pem` for these addresses and `localhost`, `client.pem` and `reader.pem`, their keys, and
    /// `other-ca.pem`, which signed `stranger.pem`. The common names are those of the files.
    pub(crate) fn new(ips: &[String]) -> Self {
        let certs = Self { dir: tempfile::tempdir().unwrap(), ips: ips.to_vec() };
        let issuer = certs.authority("ca");
        let other = certs.authority("other-ca");
        certs.leaves(&issuer);
        certs.leaf("stranger", &other, &[]);
        certs
    }

    /// New certificates by a new authority in place of the old ones, its own in `new-ca.pem`; `ca.pem` is left alone.
    pub(crate) fn replace_leaves(&self) {
        self.leaves(&self.authority("new-ca"));
    }

    /// A new certificate of the servers by an authority that is not kept.
    pub(crate) fn replace_server_by_a_stranger(&self) {
        self.leaf("server", &self.authority("stranger"), &self.ips);
    }

    fn leaves(&self, issuer: &Issuer<'_, KeyPair>) {
        self.leaf("server", issuer, &self.ips);
        self.leaf("client", issuer, &[]);
        self.leaf("reader", issuer, &[]);
    }

    pub(crate) fn path(&self, file: &str) -> String {
        self.dir.path().join(file).to_str().unwrap().to_owned()
    }

    /// Writes the contents of some files into one, which is replaced.
    pub(crate) fn concat(&self, files: &[&str], into: &str) {
        let text: String =
            files.iter().map(|file| std::fs::read_to_string(self.path(file)).unwrap()).collect();
        self.write(into, &text);
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
        params.subject_alt_names.push(SanType::DnsName("localhost".try_into().unwrap()));
        let certificate = params.signed_by(&key, issuer).unwrap();
        self.write(&format!("{name}.pem"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    fn write(&self, file: &str, content: &str) {
        let new = self.path(&format!("{file}.new"));
        std::fs::write(&new, content).unwrap();
        std::fs::rename(new, self.path(file)).unwrap();
    }
}

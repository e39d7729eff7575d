//! Certificates for the servers of a site: one authority, and whatever it is asked to sign, as PEM files.
//!
//! Files are replaced by renaming, as every tool that renews certificates does, so a reader never sees half of one.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use crate::site::Site;

/// An authority with its files in one directory: `ca.pem`, and `NAME.pem` with `NAME.key` for each leaf.
pub struct Pki {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Makes the authority, in the directory `name` of the site. Its files belong to the servers' account.
    pub fn new(site: &Site, name: &str) -> Result<Self> {
        let directory = site.subdirectory(name)?;
        let (issuer, certificate) = authority(name)?;
        let pki = Self { directory, issuer };
        pki.write(site, "ca.pem", &certificate)?;
        Ok(pki)
    }

    /// Signs a certificate that serves as server's and as client's, for these addresses and names; replaces one of the
    /// same name. Its common name is `name`.
    pub fn leaf(&self, site: &Site, name: &str, addresses: &[IpAddr], names: &[&str]) -> Result<()> {
        self.sign(site, name, Some(name), addresses, names)
    }

    /// The same without a common name.
    pub fn nameless_leaf(&self, site: &Site, name: &str, addresses: &[IpAddr], names: &[&str]) -> Result<()> {
        self.sign(site, name, None, addresses, names)
    }

    fn sign(
        &self,
        site: &Site,
        name: &str,
        common_name: Option<&str>,
        addresses: &[IpAddr],
        names: &[&str],
    ) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(common_name) = common_name {
            params.distinguished_name.push(DnType::CommonName, common_name);
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let addresses = addresses.iter().map(|address| Ok(SanType::IpAddress(*address)));
        let names = names.iter().map(|name| Ok(SanType::DnsName((*name).try_into()?)));
        params.subject_alt_names = addresses.chain(names).collect::<Result<_, rcgen::Error>>()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        self.write(site, &format!("{name}.key"), &key.serialize_pem())?;
        self.write(site, &format!("{name}.pem"), &certificate.pem())
    }

    /// A new authority in place of the old one: `ca.pem` changes, and nothing that was signed before is accepted by it.
    pub fn replace_authority(&mut self, site: &Site) -> Result<()> {
        let (issuer, certificate) = authority("replacement")?;
        self.issuer = issuer;
        self.write(site, "ca.pem", &certificate)
    }

    /// The path of one of the files.
    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    fn write(&self, site: &Site, file: &str, content: &str) -> Result<()> {
        let (new, path) = (self.directory.join(format!("{file}.new")), self.path(file));
        fs::write(&new, content).with_context(|| format!("cannot write {}", new.display()))?;
        // PostgreSQL refuses a key that others may read.
        let mode = if path.extension().is_some_and(|end| end == "key") { 0o600 } else { 0o644 };
        fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
        site.hand_over(&new)?;
        fs::rename(&new, &path).with_context(|| format!("cannot replace {}", path.display()))
    }
}

fn authority(name: &str) -> Result<(Issuer<'static, KeyPair>, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.self_signed(&key)?.pem();
    Ok((Issuer::new(params, key), certificate))
}

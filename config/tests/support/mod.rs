//! A machine for tests: its files, environment and host name are what the test says.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use pointsman_config::Host;

/// The directory that every file of this machine is in.
pub(crate) const BASE: &str = "/etc/pointsman";

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----\n";
const LOCKED_KEY: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMC4C\n-----END ENCRYPTED PRIVATE KEY-----\n";

/// What [`BASE`] holds. The examples may name these files and no others.
const FILES: [(&str, &str); 19] = [
    ("ca.pem", CERTIFICATE),
    ("client.pem", CERTIFICATE),
    ("client.key", KEY),
    ("server.pem", CERTIFICATE),
    ("server.key", KEY),
    ("client-ca.pem", CERTIFICATE),
    ("patroni-ca.pem", CERTIFICATE),
    ("locked.key", LOCKED_KEY),
    ("etcd.password", "reader's password\n"),
    ("sql.password", "probe's password\n"),
    ("rest.password", "patroni's password\n"),
    ("consul.token", "b1gs33cr3t\n"),
    ("peers.key", "0123456789abcdef0123456789abcdef\n"),
    ("short.key", "0123\n"),
    ("vrrp.password", "8 bytes!\n"),
    ("long.password", "nine bytes\n"),
    ("lines.password", "one\ntwo\n"),
    ("empty.password", "\n"),
    ("notify.sh", "#!/bin/sh\n"),
];

/// See the module.
pub(crate) struct Pretend {
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// The host name.
    pub(crate) host_name: Option<String>,
}

impl Default for Pretend {
    fn default() -> Self {
        let file = |(name, content): (&str, &str)| (Path::new(BASE).join(name), content.as_bytes().to_vec());
        let mut files: BTreeMap<_, _> = FILES.into_iter().map(file).collect();
        files.insert(Path::new(BASE).join("binary.password"), vec![0xff, 0xfe]);
        Self { files, host_name: Some("lb1.example.com".to_owned()) }
    }
}

impl Host for Pretend {
    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        let missing = || io::Error::from_raw_os_error(2);
        self.files.get(path).cloned().ok_or_else(missing)
    }

    fn variable(&self, name: &str) -> Option<String> {
        match name {
            "POINTSMAN_SQL_PASSWORD" => Some("from the environment".to_owned()),
            "SHORT_PASSWORD" => Some("8 bytes!".to_owned()),
            _ => None,
        }
    }

    fn host_name(&self) -> Option<String> {
        self.host_name.clone()
    }
}

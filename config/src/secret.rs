//! Secrets come from files or from the environment, never from the configuration file itself.

use std::{fmt, io, path::PathBuf};

use secrecy::{ExposeSecret, SecretString};

use crate::Host;

/// Where a secret is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A file (`password_file`, `token_file`, `key_file`); one line break at its end is not part of the secret.
    File(PathBuf),
    /// A variable of the environment (`password_env`, `token_env`).
    Variable(String),
}

/// Why a secret could not be read. Never holds any part of the secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file is missing or unreadable.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The environment has no such variable, or it is not UTF-8.
    #[error("the environment variable {0} is not set")]
    Unset(String),
    /// The content is not UTF-8.
    #[error("{0} holds bytes that are not UTF-8 text")]
    NotText(SecretSource),
    /// Nothing but a line break.
    #[error("{0} is empty")]
    Empty(SecretSource),
    /// A NUL or a line break in the middle: no protocol that we speak can carry it.
    #[error("{0} holds more than one line")]
    SeveralLines(SecretSource),
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => write!(f, "the environment variable {name}"),
        }
    }
}

impl SecretSource {
    /// Reads the secret now. Used when the file is loaded, and again by whoever wants to follow a rotation.
    pub fn read(&self, host: &dyn Host) -> Result<Secret, SecretError> {
        let bytes = match self {
            Self::File(path) => {
                host.read_file(path).map_err(|error| SecretError::Unreadable { path: path.clone(), error })?
            }
            Self::Variable(name) => {
                host.variable(name).ok_or_else(|| SecretError::Unset(name.clone()))?.into_bytes()
            }
        };
        let text = String::from_utf8(bytes).map_err(|_| SecretError::NotText(self.clone()))?;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            return Err(SecretError::Empty(self.clone()));
        }
        if line.contains(['\n', '\r', '\0']) {
            return Err(SecretError::SeveralLines(self.clone()));
        }
        Ok(Secret { source: self.clone(), value: SecretString::from(line) })
    }
}

/// A password, token or key. Equal when the content is equal, wherever it came from, so that a rotated
/// password file is a change at the next reload. `Debug` never shows the content.
#[derive(Clone)]
pub struct Secret {
    source: SecretSource,
    value: SecretString,
}

impl Secret {
    /// The content. Call it where the secret goes onto the wire, and nowhere else.
    pub fn expose(&self) -> &str {
        self.value.expose_secret()
    }

    /// Where it was read from.
    pub fn source(&self) -> &SecretSource {
        &self.source
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A user and its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub user: String,
    /// Its password.
    pub password: Secret,
}

//! Names that people give to things. They appear in URLs, metric labels, CSV and on the command line
//! (`CLUSTER/MEMBER`), so they are kept to letters, digits, `.`, `_` and `-`.

use std::{fmt, sync::Arc};

/// The longest name in bytes, so that tables and labels stay readable. A host name's label has at most 63.
pub(crate) const MAX_NAME: usize = 64;

/// Why a text is not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing is written.
    #[error("a name must not be empty")]
    Empty,
    /// Longer than 64 bytes.
    #[error("a name has at most {MAX_NAME} characters")]
    TooLong,
    /// The first character that is not allowed.
    #[error("{0:?} is not allowed in a name")]
    Character(char),
}

fn check(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    let bad = |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if let Some(character) = text.chars().find(bad) {
        return Err(NameError::Character(character));
    }
    if text.len() > MAX_NAME { Err(NameError::TooLong) } else { Ok(()) }
}

macro_rules! name {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Accepts 1 to 64 ASCII letters, digits, `.`, `_` and `-`.
            pub fn new(text: &str) -> Result<Self, NameError> {
                check(text)?;
                Ok(Self(Arc::from(text)))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

name!(
    /// The name of a cluster: the table's name under `[clusters]`.
    ClusterName
);
name!(
    /// The name of a listener; HAProxy's proxy name in CSV and Prometheus.
    ListenerName
);
name!(
    /// The name of a load-balancer host, `node` in the file.
    NodeName
);
name!(
    /// The name of a virtual IP, as `pointsman-vip status` shows it.
    VipName
);
name!(
    /// The name of a member that the file itself names. (Members that Patroni names are not bound to this
    /// alphabet; they come from the store.)
    MemberName
);

//! The files of a connection to Consul, which may be replaced while it lives: the token, and certificates.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use pointsman_config::{ClientTls, Consul, Secret, SecretSource, System};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::tls;

/// How often they are looked at.
const EACH: Duration = Duration::from_secs(1);
/// A file system that hangs must not hold us up.
const PATIENCE: Duration = Duration::from_secs(1);

/// What tells one version of a file from the next.
type Stamp = Option<(u64, u64, i64, i64, u64)>;

/// The token in use, and what the files looked like when they were read.
#[derive(Clone, Debug)]
pub(super) struct Files {
    token: Option<Secret>,
    tls: Option<ClientTls>,
    token_stamp: Vec<Stamp>,
    tls_stamps: Vec<Stamp>,
    looked_at: Instant,
}

/// What is to be done about the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// The token is another.
    pub(super) token: bool,
    /// The certificates are others, and can be used.
    pub(super) tls: bool,
}

impl Files {
    /// Reads the token. While that fails, it is the one of the configuration.
    pub(super) async fn read(consul: &Consul, tls: bool) -> Self {
        let files = Self {
            token: consul.token.clone(),
            tls: consul.tls.clone().filter(|_| tls),
            token_stamp: Vec::new(),
            tls_stamps: Vec::new(),
            looked_at: Instant::now(),
        };
        let (files, _) = files.look().await;
        files
    }

    /// The token to send.
    pub(super) fn token(&self) -> Option<&Secret> {
        self.token.as_ref()
    }

    /// Looks at the files, if that has not been done for a while.
    pub(super) async fn follow(&mut self) -> News {
        if self.looked_at.elapsed() < EACH { News::default() } else { self.refresh().await }
    }

    /// Looks at the files now.
    pub(super) async fn refresh(&mut self) -> News {
        let (files, news) = self.clone().look().await;
        *self = files;
        news
    }

    async fn look(mut self) -> (Self, News) {
        self.looked_at = Instant::now();
        let old = self.clone();
        let look = spawn_blocking(move || {
            let news = News { token: self.read_token(), tls: self.check_tls() };
            (self, news)
        });
        if let Ok(Ok(looked)) = timeout(PATIENCE, look).await {
            return looked;
        }
        warn!("the files for Consul cannot be read in time; what was read before is used");
        (old, News::default())
    }

    /// Blocks. True if the token is another one now.
    fn read_token(&mut self) -> bool {
        let Some(token) = &self.token else { return false };
        let paths = match token.source() {
            SecretSource::File(path) => vec![path.clone()],
            SecretSource::Variable(_) => Vec::new(),
        };
        let stamp = stamps(&paths);
        if stamp == self.token_stamp {
            return false;
        }
        self.token_stamp = stamp;
        match token.source().read(&System) {
            Ok(new) => {
                let news = new != *token;
                self.token = Some(new);
                news
            }
            Err(error) => {
                warn!(%error, "Consul's token is used as it was read before");
                false
            }
        }
    }

    /// Blocks. True if there are new certificates that fit together; until they do, the connection stays.
    fn check_tls(&mut self) -> bool {
        let Some(tls) = &self.tls else { return false };
        let pair = tls.cert_key.iter().flat_map(|(cert, key)| [cert, key]);
        let paths: Vec<PathBuf> = tls.ca.iter().chain(pair).cloned().collect();
        let stamps = stamps(&paths);
        if stamps == self.tls_stamps || tls::client_config(Some(tls), &[]).is_err() {
            return false;
        }
        self.tls_stamps = stamps;
        true
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.dev(), file.ino(), file.mtime(), file.mtime_nsec(), file.size()))
    };
    paths.iter().map(stamp).collect()
}

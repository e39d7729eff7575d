//! One member's server, over SQL: one connection that is kept, and one statement for each question.
//!
//! Passwords and certificates are read anew for each connection, and a connection is replaced after a minute, so that a
//! rotation is noticed, and a server that was told to wait for its clients ("smart" shutdown) does not wait for us.
//! Nothing here has a deadline of its own but the attempts at several addresses; a question that was dropped half-way
//! leaves no connection behind.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use pointsman_config::{ClientTls, Secret, Sql, SqlTls, System, Verify};
use pointsman_core::event::{AskError, Status};
use pointsman_core::sql::{QUESTION, parse_row};
use pointsman_core::view::Address;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, SimpleQueryMessage};

use super::Failure;
use crate::connect::{self, TlsParts};
use crate::tls;

mod failure;
mod wire;

use failure::failure;
use wire::{Bounded, Handshake, Secured};

/// Under this name the sessions are seen in `pg_stat_activity`.
const APPLICATION: &str = "pointsman";
/// After so long a connection is replaced.
const RENEW: Duration = Duration::from_secs(60);
/// How long one of several addresses is tried.
const ATTEMPT: Duration = Duration::from_millis(400);

/// The connection to one server.
pub(crate) struct Server {
    way: Way,
    line: Option<Line>,
}

/// How to connect.
struct Way(Sql);

/// A connection that works. Nobody polls it between questions: it says nothing then.
struct Line {
    client: Client,
    connection: tokio_postgres::Connection<Bounded, Secured>,
    allowance: wire::Allowance,
    address: Address,
    since: Instant,
    /// The other side has ended it.
    over: bool,
}

/// Why a connection did not come about.
struct Refusal {
    failure: Failure,
    /// It might, without TLS.
    by_tls: bool,
}

impl Server {
    pub(crate) fn new(sql: &Sql) -> Self {
        Self { way: Way(sql.clone()), line: None }
    }

    /// Gives up the connection.
    pub(crate) fn forget(&mut self) {
        self.line = None;
    }

    /// Whether the next question needs no new connection, as far as is known.
    pub(crate) fn is_connected(&self) -> bool {
        self.line.as_ref().is_some_and(|line| line.since.elapsed() < RENEW)
    }

    /// What it says of itself; the addresses are tried in order. A kept connection that turns out to be dead is replaced
    /// within the same question.
    pub(crate) async fn status(&mut self, addresses: &Arc<[Address]>) -> Result<Status, Failure> {
        if let Some(mut line) = self.line.take().filter(|line| addresses.contains(&line.address)) {
            if line.since.elapsed() >= RENEW {
                line = self.way.renew(line, addresses).await?;
            }
            if let Ok(status) = line.ask().await {
                self.line = Some(line).filter(|line| !line.over);
                return Ok(status);
            }
        }
        let mut line = self.way.connect(addresses).await?;
        let status = line.ask().await?;
        self.line = Some(line).filter(|line| !line.over);
        Ok(status)
    }
}

impl Way {
    /// A new connection in place of an old one, which is kept when the server lets nobody else in (it is full, say).
    async fn renew(&self, old: Line, addresses: &[Address]) -> Result<Line, Failure> {
        match self.connect(addresses).await {
            Err((AskError::Denied, _)) => Ok(Line { since: Instant::now(), ..old }),
            renewed => renewed,
        }
    }

    async fn connect(&self, addresses: &[Address]) -> Result<Line, Failure> {
        let mut last = (AskError::Unreachable, "it has no address".to_owned());
        for (index, address) in addresses.iter().enumerate() {
            let connecting = self.connect_to(address);
            let outcome = if index + 1 == addresses.len() {
                connecting.await
            } else {
                let late = |_| Err((AskError::TimedOut, "no answer in time".to_owned()));
                timeout(ATTEMPT, connecting).await.unwrap_or_else(late)
            };
            match outcome {
                Ok(line) => return Ok(line),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    /// `prefer` means with TLS if that works, else without, as libpq does it.
    async fn connect_to(&self, address: &Address) -> Result<Line, Failure> {
        let means = self.means(address).await;
        let mode = match self.0.tls {
            SqlTls::Disable => SslMode::Disable,
            SqlTls::Prefer => SslMode::Prefer,
            SqlTls::Require | SqlTls::VerifyCa | SqlTls::VerifyFull => SslMode::Require,
        };
        match self.open(address, &means?, mode).await {
            Err(refusal) if refusal.by_tls && mode == SslMode::Prefer => {
                let again = self.open(address, &self.means(address).await?, SslMode::Disable).await;
                again.map_err(|refusal| refusal.failure)
            }
            outcome => outcome.map_err(|refusal| refusal.failure),
        }
    }

    /// Reads the files.
    async fn means(&self, address: &Address) -> Result<Means, Failure> {
        let (sql, host) = (self.0.clone(), address.host.clone());
        let read = spawn_blocking(move || Means::read(&sql, &host)).await;
        read.unwrap_or_else(|_| Err("the files could not be read".to_owned()))
            .map_err(|why| (AskError::Denied, why)) // the server is not to blame: a person has to look
    }

    async fn open(&self, address: &Address, means: &Means, mode: SslMode) -> Result<Line, Refusal> {
        let tcp = connect::tcp(&address.host, address.port).await;
        let tcp = tcp.map_err(|error| Refusal { failure: failure::of_io(&error), by_tls: false })?;
        let (stream, allowance) = Bounded::new(tcp);
        let mut config = Config::new();
        config.user(&*self.0.user).dbname(&*self.0.dbname).application_name(APPLICATION).ssl_mode(mode);
        if let Some(password) = &means.password {
            config.password(password.expose());
        }
        let handshake = Handshake(means.tls.clone());
        let (client, connection) = config
            .connect_raw(stream, handshake)
            .await
            .map_err(|error| Refusal { failure: failure(&error), by_tls: failure::is_by_tls(&error) })?;
        Ok(Line {
            client,
            connection,
            allowance,
            address: address.clone(),
            since: Instant::now(),
            over: false,
        })
    }
}

/// What the files say at this moment.
struct Means {
    password: Option<Secret>,
    tls: Option<TlsParts>,
}

impl Means {
    /// While the password cannot be read anew, it is the one of the configuration.
    fn read(sql: &Sql, host: &str) -> Result<Self, String> {
        let reread = |secret: &Secret| secret.source().read(&System).unwrap_or_else(|_| secret.clone());
        let verify = match sql.tls {
            SqlTls::Disable => return Ok(Self { password: sql.password.as_ref().map(reread), tls: None }),
            SqlTls::Prefer | SqlTls::Require => Verify::None,
            SqlTls::VerifyCa => Verify::Ca,
            SqlTls::VerifyFull => Verify::Full,
        };
        let (ca, cert_key) = (sql.ca.clone(), sql.cert_key.clone());
        let client = ClientTls { ca, cert_key, server_name: None, verify };
        let config = tls::client_config(Some(&client), &[]).map_err(|error| error.to_string())?;
        let name = tls::server_name(Some(&client), host).map_err(|error| error.to_string())?;
        let tls = Some(TlsParts { config: Arc::new(config), name });
        Ok(Self { password: sql.password.as_ref().map(reread), tls })
    }
}

impl Line {
    async fn ask(&mut self) -> Result<Status, Failure> {
        self.allowance.renew();
        let mut asking = pin!(self.client.simple_query(QUESTION));
        let answer = tokio::select! {
            biased;
            answer = &mut asking => answer,
            end = &mut self.connection => {
                self.over = true;
                // The last that came may be the answer.
                match (asking.now_or_never(), end) {
                    (Some(Ok(answer)), _) => Ok(answer),
                    (_, Err(error)) | (Some(Err(error)), Ok(())) => Err(error),
                    (None, Ok(())) => {
                        let why = "the connection was closed by the other side".to_owned();
                        return Err((AskError::Unreachable, why));
                    }
                }
            }
        };
        let messages = answer.map_err(|error| failure(&error))?;
        let row = messages
            .iter()
            .find_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None });
        let row = row.ok_or_else(|| (AskError::Nonsense, "the answer has no row".to_owned()))?;
        let columns: Vec<Option<&str>> =
            (0..row.len()).map(|index| row.try_get(index).ok().flatten()).collect();
        parse_row(&columns)
    }
}

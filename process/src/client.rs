//! HTTP over the UNIX socket of a running program.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Program;
use crate::table::clean;

/// How long an answer may take, unless the caller has less time.
const PATIENCE: Duration = Duration::from_secs(10);

/// The largest answer that is read: some hundred thousand sessions.
const LARGEST: usize = 256 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket, or we may not use it.
    #[error("cannot reach {} at {}: {}", program.name, path.display(), explain(*program, error))]
    Unreachable {
        /// Whom.
        program: Program,
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It answered that it will not.
    #[error("{0}")]
    Refused(String),
    /// The answer ended early, came too late, or makes no sense.
    #[error("{} gave no usable answer: {why}", program.name)]
    Broken {
        /// Who.
        program: Program,
        /// What was wrong with it.
        why: String,
    },
}

impl ClientError {
    /// Whether the program is well and said no.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    /// Whether nobody listens on the socket: the program does not run.
    pub fn is_absence(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::Unreachable { error, .. } if matches!(error.kind(), NotFound | ConnectionRefused))
    }
}

fn explain(program: Program, error: &io::Error) -> String {
    let kind = error.kind();
    if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
        format!("is it running? (`systemctl status {}`; --socket names another socket)", program.name)
    } else if kind == io::ErrorKind::PermissionDenied {
        "permission denied; members of the group pointsman may use it, and root".to_owned()
    } else {
        error.to_string()
    }
}

/// A process to ask, by its socket.
#[derive(Debug)]
pub struct Client {
    program: Program,
    path: PathBuf,
    patience: Duration,
    largest: usize,
}

impl Client {
    /// Asks `program` at its socket.
    pub fn new(program: Program, path: PathBuf) -> Self {
        Self { program, path, patience: PATIENCE, largest: LARGEST }
    }

    /// Asks `program` at a socket that is named, or that its configuration file names, or at the usual one.
    pub fn of(program: Program, named: Option<&Path>, file: &Path) -> Self {
        let path = named.map(Path::to_owned).or_else(|| configured(program, file));
        Self::new(program, path.unwrap_or_else(|| PathBuf::from(program.socket)))
    }

    /// For a program that asks: it has less time than a person, and less room.
    #[must_use]
    pub fn within(self, patience: Duration, largest: usize) -> Self {
        Self { patience, largest, ..self }
    }

    fn broken(&self, why: impl Into<String>) -> ClientError {
        ClientError::Broken { program: self.program, why: why.into() }
    }

    /// Reads a document.
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.document(Method::GET, path).await
    }

    /// Changes something.
    pub async fn post(&self, path: &str) -> Result<Value, ClientError> {
        self.document(Method::POST, path).await
    }

    async fn document(&self, method: Method, path: &str) -> Result<Value, ClientError> {
        let mut tasks = JoinSet::new();
        let asked = async {
            let answer = self.send(&mut tasks, method, path).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), self.largest).collect().await;
            let body = body.map_err(|error| self.broken(error.to_string()))?.to_bytes();
            let value = serde_json::from_slice(&body).map_err(|error| self.broken(error.to_string()))?;
            if status.is_success() { Ok(value) } else { Err(self.refused(status, &value)) }
        };
        let answer = timeout(self.patience, asked).await;
        answer.unwrap_or_else(|_| {
            Err(self.broken(format!("nothing came for {} s", self.patience.as_secs_f32())))
        })
    }

    /// Follows a stream of server-sent events until it ends, or until `take` (name, data) has had enough.
    pub async fn events(
        &self,
        path: &str,
        mut take: impl FnMut(&str, &str) -> bool,
    ) -> Result<(), ClientError> {
        let mut tasks = JoinSet::new();
        let sent = timeout(self.patience, self.send(&mut tasks, Method::GET, path)).await;
        let answer = sent.unwrap_or_else(|_| Err(self.broken("no answer in time")))?;
        if !answer.status().is_success() {
            return Err(self.refused(answer.status(), &Value::Null));
        }
        let mut body = answer.into_body();
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broken(error.to_string()))?;
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<_> = text.drain(..end + 2).collect();
                let (name, data) = parse(&event);
                if !data.is_empty() && !take(&name, &data) {
                    return Ok(());
                }
            }
        }
        Err(self.broken(format!("the stream of events has ended: {} has stopped", self.program.name)))
    }

    async fn send(
        &self,
        tasks: &mut JoinSet<hyper::Result<()>>,
        method: Method,
        path: &str,
    ) -> Result<Response<Incoming>, ClientError> {
        let broken = |error: hyper::Error| self.broken(error.to_string());
        let unreachable =
            |error| ClientError::Unreachable { program: self.program, path: self.path.clone(), error };
        let stream = UnixStream::connect(&self.path).await.map_err(unreachable)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tasks.spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "pointsman");
        let request = request.body(Empty::<Bytes>::new());
        let request = request.map_err(|error| self.broken(error.to_string()))?;
        sender.send_request(request).await.map_err(broken)
    }

    fn refused(&self, status: StatusCode, answer: &Value) -> ClientError {
        let sentence = answer.get("error").and_then(Value::as_str).map(clean);
        ClientError::Refused(sentence.unwrap_or_else(|| format!("{} answered {status}", self.program.name)))
    }
}

/// Name and data of one event.
fn parse(event: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(event);
    let field = |name: &str| {
        let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
        values.next().map(|value| value.trim_start().to_owned()).unwrap_or_default()
    };
    (field("event:"), field("data:"))
}

/// The socket that a configuration file names. Nothing else of the file is looked at: whoever asks for the
/// status need not be able to read the secrets that the file points to.
///
/// A file that is no TOML is said: it may be just the one whose reload has failed.
pub fn configured(program: Program, file: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(file).ok()?;
    let Ok(table) = text.parse::<toml::Table>() else {
        eprintln!(
            "{}: {} has a syntax error: the default socket is asked (--socket names another one)",
            program.name,
            file.display()
        );
        return None;
    };
    let socket = table.get(program.section)?.get("socket")?.as_str()?;
    Some(file.parent().unwrap_or(Path::new("")).join(socket))
}

/// Percent-encoding of one part of a path (RFC 3986, 2.1).
pub fn escape(part: &str) -> String {
    let mut escaped = String::new();
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PROXY;

    #[test]
    fn events_are_read_by_name_and_data() {
        assert_eq!(
            parse(b"id: 7\nevent: note\ndata: {\"a\":1}\n\n"),
            ("note".to_owned(), "{\"a\":1}".to_owned())
        );
        assert_eq!(parse(b": still here\n\n"), (String::new(), String::new()));
    }

    #[test]
    fn the_socket_is_found_in_a_file_whose_secrets_are_not_readable() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pointsman.toml");
        std::fs::write(
            &file,
            "[clusters.main.sql]\npassword_file = \"/nowhere\"\n[admin]\nsocket = \"a.sock\"\n",
        )
        .unwrap();
        assert_eq!(configured(PROXY, &file), Some(dir.path().join("a.sock")));
        assert_eq!(configured(PROXY, &dir.path().join("none.toml")), None);
    }
}

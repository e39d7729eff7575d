//! HTTP over the admin socket.

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

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The largest answer that is read: some hundred thousand sessions.
const LARGEST: usize = 256 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Nobody listens on the socket, or we may not use it.
    #[error("cannot reach pointsman at {}: {}", path.display(), explain(error))]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It answered that it will not.
    #[error("{0}")]
    Refused(String),
    /// The answer ended early, came too late, or makes no sense.
    #[error("pointsman gave no usable answer: {0}")]
    Broken(String),
}

impl ClientError {
    /// Whether pointsman is well and said no.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

fn explain(error: &io::Error) -> String {
    let kind = error.kind();
    if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
        "is it running? (`systemctl status pointsman`; --socket names another socket)".to_owned()
    } else if kind == io::ErrorKind::PermissionDenied {
        "permission denied; members of the group pointsman may use it, and root".to_owned()
    } else {
        error.to_string()
    }
}

/// A process to ask, by its socket.
#[derive(Debug)]
pub(super) struct Client {
    path: PathBuf,
}

impl Client {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Reads a document.
    pub(super) async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.document(Method::GET, path).await
    }

    /// Changes something.
    pub(super) async fn post(&self, path: &str) -> Result<Value, ClientError> {
        self.document(Method::POST, path).await
    }

    async fn document(&self, method: Method, path: &str) -> Result<Value, ClientError> {
        let mut tasks = JoinSet::new();
        let asked = async {
            let answer = self.send(&mut tasks, method, path).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LARGEST).collect().await;
            let body = body.map_err(|error| ClientError::Broken(error.to_string()))?.to_bytes();
            let value =
                serde_json::from_slice(&body).map_err(|error| ClientError::Broken(error.to_string()))?;
            if status.is_success() { Ok(value) } else { Err(refused(status, &value)) }
        };
        let answer = timeout(PATIENCE, asked).await;
        answer.unwrap_or_else(|_| {
            Err(ClientError::Broken(format!("nothing came for {} s", PATIENCE.as_secs())))
        })
    }

    /// Follows a stream of server-sent events until it ends, or until `take` (name, data) has had enough.
    pub(super) async fn events(
        &self,
        path: &str,
        mut take: impl FnMut(&str, &str) -> bool,
    ) -> Result<(), ClientError> {
        let mut tasks = JoinSet::new();
        let sent = timeout(PATIENCE, self.send(&mut tasks, Method::GET, path)).await;
        let answer = sent.unwrap_or_else(|_| Err(ClientError::Broken("no answer in time".to_owned())))?;
        if !answer.status().is_success() {
            return Err(refused(answer.status(), &Value::Null));
        }
        let mut body = answer.into_body();
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ClientError::Broken(error.to_string()))?;
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<_> = text.drain(..end + 2).collect();
                let (name, data) = parse(&event);
                if !data.is_empty() && !take(&name, &data) {
                    return Ok(());
                }
            }
        }
        Err(ClientError::Broken("the stream of events has ended: pointsman has stopped".to_owned()))
    }

    async fn send(
        &self,
        tasks: &mut JoinSet<hyper::Result<()>>,
        method: Method,
        path: &str,
    ) -> Result<Response<Incoming>, ClientError> {
        let broken = |error: hyper::Error| ClientError::Broken(error.to_string());
        let unreachable = |error| ClientError::Unreachable { path: self.path.clone(), error };
        let stream = UnixStream::connect(&self.path).await.map_err(unreachable)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tasks.spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "pointsman");
        let request = request.body(Empty::<Bytes>::new());
        let request = request.map_err(|error| ClientError::Broken(error.to_string()))?;
        sender.send_request(request).await.map_err(broken)
    }
}

fn refused(status: StatusCode, answer: &Value) -> ClientError {
    let sentence = answer.get("error").and_then(Value::as_str).map(super::table::clean);
    ClientError::Refused(sentence.unwrap_or_else(|| format!("pointsman answered {status}")))
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
pub(super) fn configured(file: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(file).ok()?;
    let Ok(table) = text.parse::<toml::Table>() else {
        eprintln!(
            "pointsman: {} has a syntax error: the default socket is asked (--socket names another one)",
            file.display()
        );
        return None;
    };
    let socket = table.get("admin")?.get("socket")?.as_str()?;
    Some(file.parent().unwrap_or(Path::new("")).join(socket))
}

/// Percent-encoding of one part of a path (RFC 3986, 2.1).
pub(super) fn escape(part: &str) -> String {
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
        assert_eq!(configured(&file), Some(dir.path().join("a.sock")));
        assert_eq!(configured(&dir.path().join("none.toml")), None);
    }
}

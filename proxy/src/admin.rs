//! The admin interface: dashboard, JSON, metrics and health answers over HTTP, on TCP addresses for
//! everybody and on a UNIX socket for operators.
//!
//! Tasks: one that accepts for each address, one for each connection, one for each event stream; all in one
//! tracker, ended by one token. Bounds: [`TCP_CONNECTIONS`] and [`UNIX_CONNECTIONS`] at once, 16 KiB for a
//! request's head, five seconds until it is complete; bodies are never read. State changes through the UNIX
//! socket only.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::state::App;

mod actions;
mod answer;
mod api;
mod bind;
mod events;
mod health;
mod pages;
mod router;

pub use bind::BindError;
use bind::SocketFile;

/// Connections at once on all TCP addresses.
pub const TCP_CONNECTIONS: usize = 256;

/// Connections at once on the UNIX socket: an operator gets in even when the addresses are full.
pub const UNIX_CONNECTIONS: usize = 64;

/// How long a request's head may take, and how long a connection may be idle between requests.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);

/// How long open connections may take to finish at the end.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// How a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// An address: look, and nothing else.
    Tcp,
    /// The UNIX socket: an operator, by the socket's permissions.
    Unix,
}

/// What every request needs.
#[derive(Clone, Debug)]
struct Context {
    app: Arc<App>,
    tasks: TaskTracker,
    stop: CancellationToken,
    streams: Arc<Semaphore>,
}

/// The admin interface with its addresses bound.
#[derive(Debug)]
pub struct Admin {
    tcp: Vec<TcpListener>,
    unix: UnixListener,
    socket: SocketFile,
}

impl Admin {
    /// Binds every address and the UNIX socket. Must be called on a tokio runtime.
    pub fn bind(config: &pointsman_config::Admin) -> Result<Self, BindError> {
        let tcp = config.bind.iter().map(|address| bind::tcp(*address)).collect::<Result<_, _>>()?;
        let (unix, socket) = bind::unix(&config.socket)?;
        Ok(Self { tcp, unix, socket })
    }

    /// The addresses as bound (port 0 is replaced by the real one).
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Serves until `stop`, then lets running answers finish for a second. The socket's file is removed.
    pub async fn serve(self, app: Arc<App>, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let streams = Arc::new(Semaphore::new(events::STREAMS));
        let context = Context { app, tasks: tasks.clone(), stop: stop.clone(), streams };
        let room = Arc::new(Semaphore::new(TCP_CONNECTIONS));
        for listener in self.tcp {
            tasks.spawn(accept_tcp(listener, context.clone(), Arc::clone(&room)));
        }
        tasks.spawn(accept_unix(self.unix, context));
        stop.cancelled().await;
        tasks.close();
        if tokio::time::timeout(CLOSE_DEADLINE, tasks.wait()).await.is_err() {
            tracing::debug!("admin connections were still open at the end");
        }
        drop(self.socket);
    }
}

async fn accept_tcp(listener: TcpListener, context: Context, room: Arc<Semaphore>) {
    let mut backoff = Backoff::default();
    while let Some(accepted) = context.stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                backoff = Backoff::default();
                match Arc::clone(&room).try_acquire_owned() {
                    Ok(permit) => {
                        bind::prepare(&stream);
                        spawn(&context, Door::Tcp, stream, permit);
                    }
                    Err(_) => turn_away(&stream),
                }
            }
            Err(error) => backoff.wait(&error).await,
        }
    }
}

async fn accept_unix(listener: UnixListener, context: Context) {
    let mut backoff = Backoff::default();
    let room = Arc::new(Semaphore::new(UNIX_CONNECTIONS));
    while let Some(accepted) = context.stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                backoff = Backoff::default();
                if let Ok(permit) = Arc::clone(&room).try_acquire_owned() {
                    spawn(&context, Door::Unix, stream, permit);
                }
            }
            Err(error) => backoff.wait(&error).await,
        }
    }
}

/// One connection too many: it is told so, as far as that goes without waiting.
fn turn_away(stream: &TcpStream) {
    const FULL: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nconnection: close\r\n\
        content-length: 38\r\n\r\ntoo many connections to the admin port";
    let _ = stream.try_write(FULL);
}

fn spawn<S>(context: &Context, door: Door, stream: S, permit: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let context = context.clone();
    context.tasks.clone().spawn(async move {
        let _permit = permit;
        let stop = context.stop.clone();
        let service = service_fn(move |request| {
            let context = context.clone();
            async move { Ok::<_, Infallible>(router::handle(&context, door, &request)) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::trace!(%error, "admin connection");
        }
    });
}

/// Waits after an error of accept(2): descriptors or memory are short, and trying again at once would spin.
#[derive(Debug, Default)]
struct Backoff {
    errors: u32,
}

impl Backoff {
    async fn wait(&mut self, error: &io::Error) {
        if self.errors == 0 {
            tracing::warn!(%error, "the admin interface cannot accept a connection");
        }
        self.errors = (self.errors + 1).min(6);
        tokio::time::sleep(Duration::from_millis(10 << self.errors)).await;
    }
}

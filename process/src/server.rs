//! HTTP for people, machines and operators: on TCP addresses for everybody, on a UNIX socket for operators.
//!
//! Tasks: one that accepts for each address, one for each connection; all in the caller's tracker, ended by the caller's token.
//! Bounds: [`TCP_CONNECTIONS`] and [`UNIX_CONNECTIONS`] at once, 16 KiB for a request's head, five seconds until it is
//! complete; bodies are never read.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Program;
use crate::answer::Answer;
use crate::bind::{self, BindError, SocketFile};
use crate::request::Door;

/// Connections at once on all TCP addresses.
pub const TCP_CONNECTIONS: usize = 256;

/// Connections at once on the UNIX socket: an operator gets in even when the addresses are full.
pub const UNIX_CONNECTIONS: usize = 64;

/// How long a request's head may take, and how long a connection may be idle between requests.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);

/// How long open connections may take to finish at the end.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// What answers requests.
pub trait Service: Clone + Send + Sync + 'static {
    /// Answers one request. Its body is not to be read.
    fn answer(&self, door: Door, request: Request<Incoming>) -> impl Future<Output = Answer> + Send;
}

/// Addresses and socket, bound.
#[derive(Debug)]
pub struct Server {
    program: Program,
    tcp: Vec<TcpListener>,
    unix: UnixListener,
    socket: SocketFile,
}

impl Server {
    /// Binds every address and the UNIX socket. Must be called on a tokio runtime.
    pub fn bind(program: Program, addresses: &[SocketAddr], socket: &Path) -> Result<Self, BindError> {
        let tcp = addresses.iter().map(|address| bind::tcp(program, *address)).collect::<Result<_, _>>()?;
        let (unix, socket) = bind::unix(program, socket)?;
        Ok(Self { program, tcp, unix, socket })
    }

    /// The addresses as bound (port 0 is replaced by the real one).
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Serves until `stop`, then lets running answers finish for a second, and whatever else is in `tasks`. The socket's file
    /// is removed.
    pub async fn serve<S: Service>(self, service: S, tasks: TaskTracker, stop: CancellationToken) {
        let context = Context { program: self.program, service, tasks: tasks.clone(), stop: stop.clone() };
        let room = Arc::new(Semaphore::new(TCP_CONNECTIONS));
        for listener in self.tcp {
            tasks.spawn(accept_tcp(listener, context.clone(), Arc::clone(&room)));
        }
        tasks.spawn(accept_unix(self.unix, context));
        stop.cancelled().await;
        tasks.close();
        if tokio::time::timeout(CLOSE_DEADLINE, tasks.wait()).await.is_err() {
            tracing::debug!(
                "connections of the {} interface were still open at the end",
                self.program.section
            );
        }
        drop(self.socket);
    }
}

/// What every connection needs.
#[derive(Clone)]
struct Context<S> {
    program: Program,
    service: S,
    tasks: TaskTracker,
    stop: CancellationToken,
}

async fn accept_tcp<S: Service>(listener: TcpListener, context: Context<S>, room: Arc<Semaphore>) {
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
                    Err(_) => turn_away(context.program, &stream),
                }
            }
            Err(error) => backoff.wait(context.program, &error).await,
        }
    }
}

async fn accept_unix<S: Service>(listener: UnixListener, context: Context<S>) {
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
            Err(error) => backoff.wait(context.program, &error).await,
        }
    }
}

/// One connection too many: it is told so, as far as that goes without waiting.
fn turn_away(program: Program, stream: &TcpStream) {
    let sentence = format!("too many connections to the {} port", program.section);
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{sentence}",
        sentence.len()
    );
    let _ = stream.try_write(answer.as_bytes());
}

fn spawn<S, T>(context: &Context<S>, door: Door, stream: T, permit: OwnedSemaphorePermit)
where
    S: Service,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (service, stop) = (context.service.clone(), context.stop.clone());
    context.tasks.spawn(async move {
        let _permit = permit;
        let service = service_fn(move |request| {
            let service = service.clone();
            async move { Ok::<_, Infallible>(service.answer(door, request).await) }
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
            tracing::trace!(%error, "a connection of an operator or a reader");
        }
    });
}

/// Waits after an error of accept(2): descriptors or memory are short, and trying again at once would spin.
#[derive(Debug, Default)]
struct Backoff {
    errors: u32,
}

impl Backoff {
    async fn wait(&mut self, program: Program, error: &io::Error) {
        if self.errors == 0 {
            tracing::warn!(%error, "the {} interface cannot accept a connection", program.section);
        }
        self.errors = (self.errors + 1).min(6);
        tokio::time::sleep(Duration::from_millis(10 << self.errors)).await;
    }
}

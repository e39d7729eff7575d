//! The admin interface: dashboard, JSON, metrics and health answers over HTTP, on TCP addresses for
//! everybody and on a UNIX socket for operators.
//!
//! Tasks: those of the [`Server`], and one for each event stream; all in one tracker, ended by one token. Bounds: the server's,
//! [`TCP_CONNECTIONS`] and [`UNIX_CONNECTIONS`] among them, and 64 event streams. State changes through the UNIX socket only.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;
use pointsman_process::PROXY;
use pointsman_process::answer::Answer;
pub use pointsman_process::bind::BindError;
use pointsman_process::request::Door;
use pointsman_process::server::{Server, Service};
pub use pointsman_process::server::{TCP_CONNECTIONS, UNIX_CONNECTIONS};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::state::App;

mod actions;
mod api;
mod events;
mod health;
mod pages;
mod router;

/// What every request needs.
#[derive(Clone, Debug)]
struct Context {
    app: Arc<App>,
    tasks: TaskTracker,
    stop: CancellationToken,
    streams: Arc<Semaphore>,
}

impl Service for Context {
    async fn answer(&self, door: Door, request: Request<Incoming>) -> Answer {
        router::handle(self, door, request).await
    }
}

/// The admin interface with its addresses bound.
#[derive(Debug)]
pub struct Admin(Server);

impl Admin {
    /// Binds every address and the UNIX socket. Must be called on a tokio runtime.
    pub fn bind(config: &pointsman_config::Admin) -> Result<Self, BindError> {
        Server::bind(PROXY, &config.bind, &config.socket).map(Self)
    }

    /// The addresses as bound (port 0 is replaced by the real one).
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0.addresses()
    }

    /// Serves until `stop`, then lets running answers finish for a second. The socket's file is removed.
    pub async fn serve(self, app: Arc<App>, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let streams = Arc::new(Semaphore::new(events::STREAMS));
        let context = Context { app, tasks: tasks.clone(), stop: stop.clone(), streams };
        self.0.serve(context, tasks, stop).await;
    }
}

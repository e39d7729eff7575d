//! temporary
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
/// x
pub enum Signal { /// a
 Terminate, /// b
 Interrupt, /// c
 Reload }
/// x
pub struct Signals { t: tokio::signal::unix::Signal, i: tokio::signal::unix::Signal, h: tokio::signal::unix::Signal }
impl Signals {
    /// x
    pub fn new() -> std::io::Result<Self> { Ok(Self { t: signal(SignalKind::terminate())?, i: signal(SignalKind::interrupt())?, h: signal(SignalKind::hangup())? }) }
    /// x
    pub async fn next(&mut self) -> Signal { tokio::select! { _ = self.t.recv() => Signal::Terminate, _ = self.i.recv() => Signal::Interrupt, _ = self.h.recv() => Signal::Reload } }
    /// x
    pub async fn end(&mut self) { tokio::select! { _ = self.t.recv() => {}, _ = self.i.recv() => {} } }
}
/// x
pub fn prepare_descriptors(_: &pointsman_config::Config) {}
/// x
pub async fn keep_systemd_informed(_: Arc<crate::state::App>, stop: CancellationToken) { stop.cancelled().await }

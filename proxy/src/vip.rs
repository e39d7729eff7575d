//! What is shown of `pointsman-vip` on this host: it is another process, and is asked through its socket.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pointsman_config::Config;
use pointsman_process::VIP;
use pointsman_process::client::Client;
use serde::Serialize;
use serde_json::Value;

/// How long an answer may take: who looks at the dashboard waits for it.
const DEADLINE: Duration = Duration::from_millis(500);

/// An answer is good for so long, however many look.
const FRESH: Duration = Duration::from_secs(1);

/// The largest answer that is read.
const LARGEST: usize = 1 << 20;

/// `/api/v1/vip`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum VipView {
    /// The configuration has no virtual IP.
    None,
    /// It does not run on this host.
    Absent,
    /// It runs, and cannot be asked.
    Broken {
        /// Why.
        why: String,
    },
    /// It runs, and says this.
    Running {
        /// Its own `/api/v1/status`.
        status: Value,
    },
}

/// The virtual IP on this host.
#[derive(Debug, Default)]
pub struct Vip {
    /// Its socket. `None`: the configuration has no virtual IP.
    socket: Mutex<Option<PathBuf>>,
    /// The last answer. Who finds it too old asks, and the others wait for that.
    last: tokio::sync::Mutex<Option<(Instant, Arc<VipView>)>>,
}

impl Vip {
    /// Takes the socket that this configuration names.
    pub fn set_socket(&self, config: &Config) {
        let vrrp = config.vrrp.as_ref().filter(|_| !config.vips.is_empty());
        let socket = vrrp.map(|vrrp| vrrp.socket.clone());
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = socket;
    }

    /// What it says, a second old at most.
    pub async fn look(&self) -> Arc<VipView> {
        let mut last = self.last.lock().await;
        if let Some((_, view)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Arc::clone(view);
        }
        let view = Arc::new(self.ask().await);
        *last = Some((Instant::now(), Arc::clone(&view)));
        view
    }

    async fn ask(&self) -> VipView {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(socket) = socket else { return VipView::None };
        match Client::new(VIP, socket).within(DEADLINE, LARGEST).get("/api/v1/status").await {
            Ok(status) => VipView::Running { status },
            Err(error) if error.is_absence() => VipView::Absent,
            Err(error) => VipView::Broken { why: error.to_string() },
        }
    }
}

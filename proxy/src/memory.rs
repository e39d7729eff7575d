//! What is kept of a cluster on disk (`state_dir`), for a start while its store is silent: whom to *ask* then. It never says
//! where to route.
//!
//! One task for each cluster ([`Memory::run`], owned by [`crate::cluster::Cluster`]): it reads the file once, then looks every
//! five seconds whether the members have changed, and writes them anew if so. A disk that hangs holds up this task alone.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pointsman_config::ClusterName;
use pointsman_core::event::Event;
use pointsman_core::status::ClusterStatus;
use pointsman_core::view::{
    Address, ApiUrl, ClusterSettings, ClusterView, MemberName, MemberRole, MemberState, MemberView,
    Replication, Revision, Tags,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Sender;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::state::ClusterHandle;

/// How often the members are compared with what is on disk.
const EVERY: Duration = Duration::from_secs(5);
/// A cluster of a thousand members needs some 200 KiB.
const MAX_FILE: u64 = 1 << 20;
/// Of the file's form. Another one is not read.
const VERSION: u32 = 1;

/// Where one cluster is remembered.
#[derive(Clone, Debug)]
pub struct Memory {
    file: PathBuf,
    scope: String,
}

/// What is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// Patroni's scope: another cluster's members are of no use.
    scope: String,
    /// Patroni's `ttl`, in seconds.
    ttl: u32,
    /// Patroni's `loop_wait`, in seconds.
    loop_wait: u32,
    members: BTreeMap<String, Remembered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    /// Where PostgreSQL answers, in order.
    addresses: Vec<Host>,
    /// Where Patroni answers.
    api: Option<Api>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Host {
    host: String,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Api {
    tls: bool,
    host: String,
    port: u16,
}

impl Memory {
    /// Of this cluster, below this directory.
    pub fn new(state_dir: &Path, cluster: &ClusterName, scope: &str) -> Self {
        Self { file: state_dir.join(format!("{cluster}.view.json")), scope: scope.to_owned() }
    }

    /// Tells `events` what is remembered, then keeps it up to date with what `handle` shows. For ever.
    pub async fn run(self, handle: Arc<ClusterHandle>, events: Sender<Event>) -> Infallible {
        let mut kept = self.recall(&events).await;
        let mut beat = interval(EVERY);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut trouble = None;
        loop {
            beat.tick().await;
            let described = handle.status();
            let Some(now) = described.and_then(|described| self.record(&described.status)) else { continue };
            if kept.as_ref() == Some(&now) {
                continue;
            }
            match self.keep(now.clone()).await {
                Ok(()) => {
                    kept = Some(now);
                    trouble = None;
                }
                Err(error) => {
                    let text = error.to_string();
                    if trouble.as_ref() != Some(&text) {
                        warn!(
                            file = %self.file.display(),
                            error = text,
                            "the members cannot be kept on disk: a start while the store is silent would know nobody to ask"
                        );
                    }
                    trouble = Some(text);
                }
            }
        }
    }

    /// Reads the file. What cannot be used is said, and is as good as nothing.
    async fn recall(&self, events: &Sender<Event>) -> Option<Record> {
        let (file, scope) = (self.file.clone(), self.scope.clone());
        let read = spawn_blocking(move || read(&file, &scope)).await;
        let record = match read.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(record) => record,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(file = %self.file.display(), %error, "what was remembered of the cluster is of no use");
                return None;
            }
        };
        info!(file = %self.file.display(), members = record.members.len(), "remembered whom to ask if the store is silent");
        let _ = events.send(Event::Remembered(Box::new(record.view()))).await; // nobody listens: shutdown
        Some(record)
    }

    /// What is worth remembering now: only what a store that answers has said.
    fn record(&self, status: &ClusterStatus) -> Option<Record> {
        let present = status.members.iter().filter(|member| member.present);
        let members: BTreeMap<_, _> = present
            .map(|member| {
                let host = |address: &Address| Host { host: address.host.clone(), port: address.port };
                let api = member.api.as_ref().map(|api| Api {
                    tls: api.tls,
                    host: api.address.host.clone(),
                    port: api.address.port,
                });
                let addresses = member.addresses.iter().map(host).collect();
                (member.name.to_string(), Remembered { addresses, api })
            })
            .collect();
        (status.store.state == "alive" && !members.is_empty()).then(|| Record {
            version: VERSION,
            scope: self.scope.clone(),
            ttl: status.settings.ttl,
            loop_wait: status.settings.loop_wait,
            members,
        })
    }

    async fn keep(&self, record: Record) -> io::Result<()> {
        let file = self.file.clone();
        spawn_blocking(move || write(&file, &record))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

impl Record {
    /// A view that names members and nothing else.
    fn view(&self) -> ClusterView {
        let settings =
            ClusterSettings { ttl: self.ttl, loop_wait: self.loop_wait, ..ClusterSettings::default() };
        let members = self.members.iter().filter(|(_, member)| !member.addresses.is_empty());
        let members = members.map(|(name, member)| {
            let name = MemberName::from(name.as_str());
            (name.clone(), member.view(name))
        });
        ClusterView { settings, members: members.collect(), ..ClusterView::default() }
    }
}

impl Remembered {
    fn view(&self, name: MemberName) -> MemberView {
        let address = |host: &str, port| Address { host: host.to_owned(), port };
        MemberView {
            name,
            addresses: self.addresses.iter().map(|at| address(&at.host, at.port)).collect(),
            api: self.api.as_ref().map(|api| ApiUrl { tls: api.tls, address: address(&api.host, api.port) }),
            role: MemberRole::Unknown,
            state: MemberState::from_patroni("remembered"),
            version: None,
            timeline: None,
            position: None,
            replay: None,
            replication: Replication::Unknown,
            tags: Tags::default(),
            weight: 1,
            revision: Revision::default(),
        }
    }
}

fn read(file: &Path, scope: &str) -> io::Result<Record> {
    let mut text = Vec::new();
    fs::File::open(file)?.take(MAX_FILE + 1).read_to_end(&mut text)?;
    parse(&text, scope).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
}

/// The error is a sentence for people.
fn parse(text: &[u8], scope: &str) -> Result<Record, String> {
    if text.len() as u64 > MAX_FILE {
        return Err(format!("it is longer than {} KiB", MAX_FILE >> 10));
    }
    let record: Record = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if record.version != VERSION {
        return Err(format!("it has the form {}, and only {VERSION} is understood", record.version));
    }
    if record.scope != scope {
        return Err(format!("it is of the scope {:?}, and {scope:?} is configured", record.scope));
    }
    Ok(record)
}

/// Replaces the file as a whole, or not at all.
fn write(file: &Path, record: &Record) -> io::Result<()> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    let new = file.with_extension("json.new");
    let mut opened = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&new)?;
    opened.write_all(&serde_json::to_vec_pretty(record)?)?;
    opened.sync_all()?;
    fs::rename(new, file)
}

#[cfg(test)]
mod tests;

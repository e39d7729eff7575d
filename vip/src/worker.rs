//! The worker: carries out what [`Node`] decides, and tells it what happens.
//!
//! One thread, which never waits for anything but for something to happen: for a request to the kernel 20 ms at most, for a disk,
//! a name server or a client never. What may take longer is on the side thread ([`crate::side`]).
//!
//! Each round: take what has arrived, then look at the clock, then wait. In this order, because a process that was not
//! scheduled for a while has to hear what was said meanwhile before it draws conclusions from the silence.
//!
//! * `senses.rs`: what happens. `hands.rs`: what is to be done. `words.rs`: what is told. `reload.rs`: a new configuration.
//! * `interfaces.rs`: network interfaces and their sockets.
//!
//! *Invariant:* the guard knows that addresses are held before they are added, and until they are removed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use pointsman_config::{Config, Vip, VipName};
use pointsman_process::logging::Logging;
use pointsman_vrrp::advert::Form;
use pointsman_vrrp::event::Event;
use pointsman_vrrp::node::{Node, NodeSettings};
use pointsman_vrrp::router::{OWNER, Settings};
use pointsman_vrrp::time::Moment;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

use crate::guard::{Command, GuardLink};
use crate::netlink::{Netlink, NetlinkError, NetlinkEvent, NetlinkEvents, REFRESH};
use crate::peers::{Peers, PeersError};
use crate::privileges;
use crate::side::{self, Ends};

mod hands;
mod interfaces;
mod reload;
mod senses;
mod words;

use interfaces::Interfaces;

/// How often the guard is told that we live, and the interfaces are looked at: the kernel may hold back the event of a lost
/// carrier for a second.
const BEAT: Duration = Duration::from_millis(25);

/// How soon what the kernel did not do is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// How often what is shown is brought up to date when nothing happens.
const SHOW: Duration = Duration::from_secs(1);

/// How long the end may take: an heir has 50 ms.
const LAST: Duration = Duration::from_millis(300);

/// What is taken from one socket in a round, so that a flood does not keep the clock from being looked at.
const ROUND: usize = 64;

/// The same failure is told once in so long.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Runs the worker until it is told to stop. `link`: the descriptor that the guard left us. To be called before there are other
/// threads than that of the log.
pub fn run(config: Config, file: &Path, link: RawFd, logging: &Logging) -> ExitCode {
    match prepare(&config).and_then(|runtime| work(&runtime, config, file, link, logging)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What has to be done while we still may, and before there are more threads.
fn prepare(config: &Config) -> anyhow::Result<Runtime> {
    let vrrp = config.vrrp.as_ref();
    if vrrp.is_some_and(|vrrp| vrrp.lock_memory)
        && let Err(error) = privileges::lock_memory()
    {
        tracing::error!("{error}; it goes on without"); // a slow address is better than none
    }
    if vrrp.is_some_and(|vrrp| vrrp.realtime)
        && let Err(error) = privileges::take_realtime()
    {
        tracing::error!("{error}; it goes on without");
    }
    privileges::keep_for_worker()?;
    Ok(Builder::new_current_thread().enable_all().build()?)
}

fn work(
    runtime: &Runtime,
    config: Config,
    file: &Path,
    link: RawFd,
    logging: &Logging,
) -> anyhow::Result<()> {
    let (ends, side) = side::start(&config)?;
    runtime.block_on(async {
        let guard = GuardLink::from_fd(link)?;
        Worker::start(config, file, guard, ends)?.run(logging).await;
        anyhow::Ok(())
    })?;
    side.end();
    Ok(())
}

/// Why the worker cannot work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The kernel does not tell of interfaces and addresses.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The hosts cannot signal each other.
    #[error(transparent)]
    Peers(#[from] PeersError),
    /// The guard cannot be told what to clean up.
    #[error(transparent)]
    Guard(#[from] crate::guard::LinkError),
}

/// A virtual router as the shell sees it.
#[derive(Debug)]
struct Carried {
    vip: Vip,
    form: Form,
    /// Where its adverts come from, while its interface can be used.
    source: Option<IpAddr>,
    /// Its addresses are on the interface, or may be.
    held: bool,
    /// They should be gone, and may not be.
    lingers: bool,
    /// We forward IPv6 packets.
    forwards: bool,
}

impl Carried {
    fn new(vip: &Vip) -> Self {
        Self {
            vip: vip.clone(),
            form: Form::of(vip),
            source: None,
            held: false,
            lingers: false,
            forwards: vip.is_ipv6() && interfaces::forwards_ipv6(&vip.interface),
        }
    }

    fn is_owner(&self) -> bool {
        self.vip.priority.get() == OWNER
    }
}

/// What happened while it waited.
enum Woken {
    Something,
    Event(Event),
    Netlink(Result<NetlinkEvent, NetlinkError>),
    Guard(Command),
    Side(side::Command),
    Read(Box<Result<Config, String>>),
}

/// The worker.
#[derive(Debug)]
pub struct Worker {
    file: PathBuf,
    config: Config,
    began: Instant,
    node: Node,
    routers: BTreeMap<VipName, Carried>,
    interfaces: Interfaces,
    netlink: Netlink,
    events: NetlinkEvents,
    peers: Option<Peers>,
    guard: GuardLink,
    ends: Ends,
    /// The file, while it is read anew.
    reading: Option<JoinHandle<Result<Config, String>>>,
    buffer: Box<[u8]>,
    refresh_at: Moment,
    beat_at: Moment,
    show_at: Moment,
    /// When interfaces that could not be read or opened are looked at again.
    retry_at: Moment,
    told: BTreeMap<&'static str, Instant>,
}

impl Worker {
    /// Everything opened, nothing taken yet. On the runtime of the router thread.
    pub fn start(config: Config, file: &Path, guard: GuardLink, ends: Ends) -> Result<Self, WorkerError> {
        let events = NetlinkEvents::open()?; // before anything is read, so that no change is missed
        let began = Instant::now();
        let now = Moment::ZERO;
        let peers = config.vrrp.as_ref().and_then(|vrrp| vrrp.peers.as_ref());
        let peers = peers.map(|peers| Peers::start(peers, &config.node)).transpose()?;
        let mut worker = Self {
            file: file.to_owned(),
            node: Node::new(now, settings(&config)),
            routers: config.vips.iter().map(|vip| (vip.name.clone(), Carried::new(vip))).collect(),
            config,
            began,
            interfaces: Interfaces::default(),
            netlink: Netlink::open()?,
            events,
            peers,
            guard,
            ends,
            reading: None,
            buffer: vec![0; interfaces::BUFFER].into(),
            refresh_at: now,
            beat_at: now,
            show_at: now,
            retry_at: now,
            told: BTreeMap::new(),
        };
        worker.interfaces.set(&worker.config.vips);
        worker.read_interfaces();
        worker.cover()?;
        worker.beat();
        worker.tell_links(None);
        worker.show();
        worker.guard.ready();
        Ok(worker)
    }

    /// Works until it is told to stop, then hands over.
    pub async fn run(mut self, logging: &Logging) {
        loop {
            self.take_all();
            // Before the clock is looked at: a process that wakes up without its guard refreshes nothing any more.
            let woken = if let Some(command) = self.guard.command().now_or_never() {
                Woken::Guard(command)
            } else {
                self.keep_time();
                self.wait().await
            };
            match woken {
                Woken::Guard(Command::Reload) => self.read_file(),
                Woken::Guard(Command::Stop) => break,
                Woken::Guard(Command::Gone) => {
                    tracing::error!(
                        "the guard is gone: the addresses are handed over, and a new one starts afresh"
                    );
                    break;
                }
                Woken::Read(read) => self.reload(*read, logging).await,
                Woken::Something | Woken::Event(_) | Woken::Netlink(_) | Woken::Side(_) => self.react(woken),
            }
        }
        self.stop().await;
    }

    fn react(&mut self, woken: Woken) {
        match woken {
            Woken::Event(event) => self.tell(event),
            Woken::Netlink(event) => self.changed(event),
            Woken::Side(command) => self.obey(command),
            Woken::Something | Woken::Guard(_) | Woken::Read(_) => {}
        }
    }

    /// Hands the addresses over, or lets them go.
    async fn stop(mut self) {
        self.tell(Event::Stop);
        let deadline = Instant::now() + LAST;
        while !self.is_done() && Instant::now() < deadline {
            self.take_all();
            self.keep_time();
            if let Ok(woken) = timeout_at(deadline.into(), self.wait()).await {
                self.react(woken);
            }
        }
        self.show();
        if let Some(peers) = self.peers.take() {
            peers.farewell().await;
        }
    }

    fn is_done(&self) -> bool {
        self.node.is_idle() && self.routers.values().all(|router| !router.lingers)
    }

    fn now(&self) -> Moment {
        Moment::from_start(self.began.elapsed())
    }

    // ---- Time --------------------------------------------------------------------------------------------------------

    fn keep_time(&mut self) {
        let now = self.now();
        if self.node.deadline().is_some_and(|due| due <= now) {
            let actions = self.node.tick(now);
            self.carry_out(actions);
        }
        if now >= self.beat_at {
            self.beat();
        }
        if now >= self.refresh_at {
            self.refresh();
        }
        if now >= self.show_at {
            self.show();
        }
    }

    /// A sign of life, and a look at the interfaces.
    fn beat(&mut self) {
        self.beat_at = self.now() + BEAT;
        self.guard.heartbeat(BEAT);
        let present: Vec<_> = self.interfaces.present().map(|(_, index, up)| (index, up)).collect();
        let changed = present.into_iter().any(|(index, up)| match self.netlink.link_state(index) {
            Ok(state) => state.is_none_or(|state| (state.up && state.carrier) != up),
            Err(_) => false, // busy: in 25 ms again
        });
        let unsure = self.interfaces.are_unsure() && self.now() >= self.retry_at;
        if unsure {
            self.retry_at = self.now() + SHOW;
        }
        if changed || unsure {
            self.look_again();
        }
    }

    /// The kernel drops addresses that nobody refreshes, so that they do not outlive us; and what it did not do is tried again.
    fn refresh(&mut self) {
        self.refresh_at = self.now() + REFRESH;
        let names: Vec<_> =
            self.routers.iter().filter(|(_, router)| router.held).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.put(&name);
        }
        let lingering: Vec<_> =
            self.routers.iter().filter(|(_, router)| router.lingers).map(|(name, _)| name.clone()).collect();
        for name in lingering {
            self.remove(&name);
        }
    }
}

/// What decides, of the whole configuration.
fn settings(config: &Config) -> NodeSettings {
    let peers = config.vrrp.as_ref().and_then(|vrrp| vrrp.peers.as_ref());
    let others = peers.into_iter().flat_map(|peers| &peers.nodes).filter(|(name, _)| **name != config.node);
    NodeSettings {
        node: config.node.clone(),
        routers: config.vips.iter().map(Settings::of).collect(),
        peers: others.map(|(name, address)| (name.clone(), *address)).collect(),
        heartbeat: peers.map_or(Duration::from_secs(1), |peers| peers.heartbeat),
    }
}

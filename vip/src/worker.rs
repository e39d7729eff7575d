//! The worker: carries out what [`Node`] decides, and tells it what happens.
//!
//! One thread, which never waits for anything but for something to happen: for a request to the kernel 20 ms at most, for a disk,
//! a name server or a client never. What may take longer is on the side thread ([`crate::side`]).
//!
//! Each round: take what has arrived, then look at the clock, then wait. In this order, because a process that was not
//! scheduled for a while has to hear what was said meanwhile before it draws conclusions from the silence.
//!
//! *Invariant:* the guard knows that addresses are held before they are added, and until they are removed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use pointsman_config::{Config, IpNet, Vip, VipName};
use pointsman_process::logging::Logging;
use pointsman_vrrp::advert::{Advert, Form, decode, peek};
use pointsman_vrrp::event::{Action, Event, Link, LinkFault, State};
use pointsman_vrrp::frame::announcement;
use pointsman_vrrp::node::{Node, NodeSettings};
use pointsman_vrrp::note::{Note, Transition};
use pointsman_vrrp::router::{OWNER, Settings};
use pointsman_vrrp::time::Moment;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout_at};

use crate::guard::{Command, Cover, Farewell, GuardLink};
use crate::netlink::{Lifetime, Netlink, NetlinkError, NetlinkEvent, NetlinkEvents, REFRESH};
use crate::peers::{Peers, PeersError};
use crate::privileges;
use crate::raw::Family;
use crate::side::{self, Ends, Notice};

mod interfaces;

use interfaces::{Arrival, Interfaces};

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

    // ---- What happens ------------------------------------------------------------------------------------------------

    /// Waits for something to happen, or for the next thing to do. Cancel-safe.
    async fn wait(&mut self) -> Woken {
        let held = self.routers.values().any(|router| router.held || router.lingers);
        let due = self.node.deadline().into_iter().chain([self.beat_at, self.show_at]);
        let due = due.chain(held.then_some(self.refresh_at)).min().unwrap_or(self.beat_at);
        let due = self.began + due.since(Moment::ZERO);
        let peers = async {
            match &mut self.peers {
                Some(peers) => peers.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            event = peers => Woken::Event(event),
            () = self.interfaces.readable() => Woken::Something,
            event = self.events.next() => Woken::Netlink(event),
            command = self.guard.command() => Woken::Guard(command),
            read = finished(&mut self.reading) => Woken::Read(Box::new(read)),
            Some(proxy) = self.ends.proxy.recv() => Woken::Event(Event::Proxy(proxy)),
            Some(command) = self.ends.commands.recv() => Woken::Side(command),
            () = sleep_until(due.into()) => Woken::Something,
        }
    }

    /// Whatever has arrived already.
    fn take_all(&mut self) {
        for name in self.interfaces.names() {
            for _ in 0..ROUND {
                if !self.take_from(&name) {
                    break;
                }
            }
        }
        for _ in 0..ROUND {
            let Some(event) = self.peers.as_mut().and_then(Peers::take) else { break };
            self.tell(event);
        }
    }

    /// One packet. False when there was none.
    fn take_from(&mut self, name: &str) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        let arrival = self.interfaces.take(name, &mut buffer);
        let took = arrival.is_some();
        let event = arrival.and_then(|arrival| self.understand(name, &arrival));
        self.buffer = buffer;
        if let Some(event) = event {
            self.tell(event);
        }
        took
    }

    fn understand(&self, interface: &str, arrival: &Arrival<'_>) -> Option<Event> {
        let here = |router: &&Carried| router.vip.interface == interface;
        match arrival {
            Arrival::Vrrp(envelope, payload) => {
                let (_, router_id) = peek(payload)?;
                let family = Family::of(envelope.source);
                let ours = self.routers.values().filter(here).find(|router| {
                    router.vip.router_id == router_id && router.form.is_ipv6() == (family == Family::V6)
                });
                let from = envelope.source;
                let Some(ours) = ours else {
                    return Some(Event::Foreign { interface: interface.to_owned(), router_id, from });
                };
                let router = ours.vip.name.clone();
                Some(match decode(payload, envelope, &ours.form) {
                    Ok(advert) => Event::Advert { router, from, advert },
                    Err(reject) => Event::Rejected { router, from, reject },
                })
            }
            Arrival::Claim(address, mac) => {
                if self.interfaces.get(interface)?.mac() == Some(*mac) {
                    return None;
                }
                let has = |router: &&Carried| router.vip.addresses.iter().any(|net| net.addr() == *address);
                let router = self.routers.values().filter(here).find(has)?;
                Some(Event::Claimed { router: router.vip.name.clone(), address: *address, mac: *mac })
            }
        }
    }

    /// Something has happened to an interface or an address.
    fn changed(&mut self, event: Result<NetlinkEvent, NetlinkError>) {
        match event {
            Ok(NetlinkEvent::Link(link) | NetlinkEvent::LinkGone(link)) => {
                if self.interfaces.concerns(link.index, Some(&link.name)) {
                    self.look_again();
                }
            }
            Ok(NetlinkEvent::AddressAdded { index, address }) => {
                // Those that we refresh ourselves are told twice a second.
                if self.interfaces.concerns(index, None) && !self.is_virtual(address.net.addr()) {
                    self.look_again();
                }
            }
            Ok(NetlinkEvent::AddressRemoved { index, address }) => {
                if self.is_virtual(address.net.addr()) {
                    self.was_removed(index, address.net.addr());
                } else if self.interfaces.concerns(index, None) {
                    self.look_again();
                }
            }
            Ok(NetlinkEvent::Lagging) => self.look_again(),
            Err(error) => {
                self.complain("netlink", &error);
                match NetlinkEvents::open() {
                    Ok(events) => self.events = events,
                    Err(error) => self.complain("netlink", &error),
                }
                self.look_again();
            }
        }
    }

    fn is_virtual(&self, address: IpAddr) -> bool {
        let has = |router: &Carried| router.vip.addresses.iter().any(|net| net.addr() == address);
        self.routers.values().any(has)
    }

    /// One of our addresses is gone: by us, or by somebody else. An old event may tell of one that is back already.
    fn was_removed(&mut self, index: u32, address: IpAddr) {
        let held = self.routers.values().find(|router| {
            router.held
                && router.vip.addresses.iter().any(|net| net.addr() == address)
                && self.index(&router.vip.interface) == Some(index)
        });
        let Some(router) = held.map(|router| router.vip.name.clone()) else { return };
        let there = self.netlink.addresses(index);
        let there = there.is_ok_and(|all| all.iter().any(|one| one.net.addr() == address));
        if !there {
            self.tell(Event::AddressGone { router, address });
        }
    }

    fn index(&self, interface: &str) -> Option<u32> {
        self.interfaces.get(interface).and_then(interfaces::Interface::index)
    }

    fn read_interfaces(&mut self) {
        for name in self.interfaces.names() {
            self.interfaces.read(&self.netlink, &name);
        }
    }

    /// Reads the interfaces, and tells whoever is concerned.
    fn look_again(&mut self) {
        self.read_interfaces();
        if let Err(error) = self.cover() {
            self.complain("guard", &error);
        }
        self.tell_links(None);
    }

    /// Tells virtual routers what their interfaces are: those for which that has changed, or these.
    fn tell_links(&mut self, new: Option<&[VipName]>) {
        let all: Vec<VipName> = self.routers.keys().cloned().collect();
        for name in all {
            let Some(router) = self.routers.get(&name) else { continue };
            let link = self.link(&router.vip);
            let source = match link {
                Link::Up { source } => Some(source),
                Link::Down(_) => None,
            };
            let fresh = new.is_some_and(|new| new.contains(&name));
            if let Some(router) = self.routers.get_mut(&name) {
                router.source = source.or(router.source);
            }
            if fresh || new.is_none() {
                self.tell(Event::Link { router: name, link });
            }
        }
    }

    fn link(&self, vip: &Vip) -> Link {
        let link = self.interfaces.link(vip);
        let open = self.interfaces.get(&vip.interface).is_some_and(interfaces::Interface::is_open);
        match link {
            Link::Up { .. } if !open => Link::Down(LinkFault::Missing(vip.interface.clone())),
            Link::Up { .. } | Link::Down(_) => link,
        }
    }

    /// An operator's wish.
    fn obey(&mut self, command: side::Command) {
        let (event, answer) = match command {
            side::Command::Yield { router, answer } => (Event::Yield { router }, answer),
            side::Command::Resume { router, answer } => (Event::Resume { router }, answer),
        };
        self.tell(event);
        self.show();
        let _ = answer.send(()); // who asked may have gone
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

    // ---- What is to be done ------------------------------------------------------------------------------------------

    fn tell(&mut self, event: Event) {
        let actions = self.node.handle(self.now(), event);
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut news = false;
        for action in actions {
            match action {
                Action::Hold { router } => self.hold(&router),
                Action::Release { router } => self.release(&router),
                Action::Advertise { router, priority } => self.advertise(&router, priority),
                Action::Announce { router } => self.announce(&router),
                Action::Report(report) => {
                    if let Some(peers) = &mut self.peers {
                        peers.send(&report);
                    }
                }
                Action::Note(note) => {
                    news = true;
                    self.note(note);
                }
            }
        }
        if news {
            self.show();
        }
    }

    fn hold(&mut self, name: &VipName) {
        if let Some(router) = self.routers.get_mut(name) {
            router.held = true;
            router.lingers = false;
            self.guard.held(name, true);
        }
        self.put(name);
    }

    /// Puts the addresses of a virtual router on its interface, or makes them last.
    fn put(&mut self, name: &VipName) {
        let Some(router) = self.routers.get(name) else { return };
        let Some(index) = self.index(&router.vip.interface) else { return };
        let addresses =
            if router.is_owner() { self.not_there(index, &router.vip) } else { router.vip.addresses.clone() };
        if let Err(error) = self.netlink.add_all(index, &addresses, Lifetime::HELD) {
            self.complain("hold", &error);
            self.refresh_at = self.now() + RETRY;
        }
    }

    /// An owner's addresses that are not on the interface: those that are there are there for good.
    fn not_there(&self, index: u32, vip: &Vip) -> Vec<IpNet> {
        let there = self.netlink.addresses(index).unwrap_or_default();
        let permanent = |net: &&IpNet| {
            !there.iter().any(|one| one.net.addr() == net.addr() && one.lifetime == Lifetime::Permanent)
        };
        vip.addresses.iter().filter(permanent).copied().collect()
    }

    fn release(&mut self, name: &VipName) {
        if let Some(router) = self.routers.get_mut(name) {
            router.held = false;
            router.lingers = true;
        }
        self.remove(name);
        if let Some(router) = self.routers.get(name) {
            let addresses = router.vip.addresses.iter().map(IpNet::addr).collect();
            self.ends.tell(Notice::Left { router: name.clone(), addresses });
        }
    }

    fn remove(&mut self, name: &VipName) {
        let Some(router) = self.routers.get(name) else { return };
        let index = self.index(&router.vip.interface);
        let owner = router.is_owner();
        let removed = match index {
            Some(index) if !owner => {
                let all = router.vip.addresses.iter().map(|net| (index, *net)).collect();
                self.netlink.remove_all(all)
            }
            Some(_) | None => Ok(()), // gone with its interface, or there for good
        };
        match removed {
            Ok(()) => {
                if let Some(router) = self.routers.get_mut(name) {
                    router.lingers = false;
                }
                self.guard.held(name, false);
            }
            Err(error) => {
                self.complain("release", &error);
                self.refresh_at = self.now() + RETRY;
            }
        }
    }

    fn advertise(&mut self, name: &VipName, priority: u8) {
        let Some(router) = self.routers.get(name) else { return };
        let Some(source) = router.source else { return };
        let advert = Advert::of(&router.vip, priority);
        let interface = router.vip.interface.clone();
        for packet in router.form.packets(&advert, source) {
            let sent = self.interfaces.send(&interface, source, packet.envelope.destination, &packet.payload);
            // An interface that is down takes nothing; that it is down is told elsewhere.
            if let Err(error) = sent
                && self.is_usable(name)
            {
                self.complain("advert", &error);
            }
        }
    }

    fn is_usable(&self, name: &VipName) -> bool {
        self.routers.get(name).is_some_and(|router| matches!(self.link(&router.vip), Link::Up { .. }))
    }

    fn announce(&mut self, name: &VipName) {
        let Some(router) = self.routers.get(name) else { return };
        let interface = router.vip.interface.clone();
        let Some(mac) = self.interfaces.get(&interface).and_then(interfaces::Interface::mac) else { return };
        let frames: Vec<_> =
            router.vip.addresses.iter().map(|net| announcement(net.addr(), mac, router.forwards)).collect();
        for frame in frames {
            if let Err(error) = self.interfaces.send_frame(&interface, &frame)
                && self.is_usable(name)
            {
                self.complain("announcement", &error);
            }
        }
    }

    /// What the guard has to know to clean up behind us.
    fn cover(&mut self) -> Result<(), crate::guard::LinkError> {
        let covers: Vec<Cover> = self.routers.values().filter_map(|router| self.cover_of(router)).collect();
        self.guard.describe(&covers)
    }

    fn cover_of(&self, router: &Carried) -> Option<Cover> {
        let interface = router.vip.interface.clone();
        let source = match self.interfaces.link(&router.vip) {
            Link::Up { source } => Some(source),
            Link::Down(_) => router.source,
        };
        let farewells = source.map(|source| router.form.packets(&Advert::of(&router.vip, 0), source));
        let farewell = |packet: pointsman_vrrp::advert::Packet| Farewell {
            envelope: packet.envelope,
            packet: packet.payload,
        };
        Some(Cover {
            router: router.vip.name.clone(),
            index: self.index(&interface)?,
            interface,
            addresses: if router.is_owner() { Vec::new() } else { router.vip.addresses.clone() },
            farewells: farewells.unwrap_or_default().into_iter().map(farewell).collect(),
        })
    }

    // ---- What is told ------------------------------------------------------------------------------------------------

    fn note(&mut self, note: Note) {
        log(&note);
        if let Note::Transition(Transition { router, to: State::Active, .. }) = &note {
            self.ends.tell(Notice::Took { router: router.clone() });
        }
        self.ends.tell(Notice::Note(note));
    }

    /// Publishes what is shown.
    fn show(&mut self) {
        let now = self.now();
        self.show_at = now + SHOW;
        let status = self.node.status(now);
        self.guard.status(&line(&status));
        self.ends.show(Arc::new(status));
    }

    /// Tells of a failure, not more often than somebody can read it.
    fn complain(&mut self, what: &'static str, error: &dyn std::error::Error) {
        let now = Instant::now();
        let silent = self.told.get(what).is_some_and(|told| now.duration_since(*told) < TOLD_EVERY);
        if !silent {
            self.told.insert(what, now);
            tracing::warn!(error = %error, "the system does not do what it is asked to");
        }
    }

    // ---- A new configuration -----------------------------------------------------------------------------------------

    /// Begins to read the file, on a thread that may wait for a disk: this one may not.
    fn read_file(&mut self) {
        let file = self.file.clone();
        let read = move || Config::load(&file).map_err(|diagnostics| diagnostics.to_string());
        self.reading = Some(tokio::task::spawn_blocking(read)); // a second order reads it anew
    }

    /// The file has been read.
    async fn reload(&mut self, read: Result<Config, String>, logging: &Logging) {
        self.reading = None;
        match read {
            Err(diagnostics) => {
                tracing::error!("the configuration stays as it was: the new one is wrong\n{diagnostics}");
                self.ends.tell(Notice::BadConfiguration(diagnostics));
            }
            Ok(config) => {
                for change in unchangeable(&self.config, &config) {
                    tracing::warn!("{change}: this takes effect with the next start");
                }
                logging.set_level(config.log.level);
                self.take_configuration(config).await;
                tracing::info!("the configuration was read anew");
            }
        }
        self.guard.ready();
        self.show();
    }

    async fn take_configuration(&mut self, mut config: Config) {
        config.node = self.config.node.clone();
        self.exchange_peers(&mut config).await;
        let settings = settings(&config);
        let actions = self.node.abandon(self.now(), &settings);
        self.carry_out(actions);
        self.exchange_routers(&config);
        self.interfaces.set(&config.vips);
        self.config = config;
        self.read_interfaces();
        let (actions, new) = self.node.reconfigure(self.now(), settings);
        if let Err(error) = self.cover() {
            self.complain("guard", &error);
        }
        self.carry_out(actions);
        self.tell_links(Some(&new));
        self.ends.tell(Notice::Configuration(Box::new(self.config.clone())));
    }

    /// Other hosts, another key, another address of ours: all connections are made anew. What cannot be used is not taken.
    async fn exchange_peers(&mut self, config: &mut Config) {
        let of = |config: &Config| config.vrrp.as_ref().and_then(|vrrp| vrrp.peers.clone());
        let (old, new) = (of(&self.config), of(config));
        if old == new {
            return;
        }
        if let Some(peers) = self.peers.take() {
            self.beat(); // the guard's patience is longer than this takes
            peers.farewell().await;
        }
        match new.map(|new| Peers::start(&new, &config.node)).transpose() {
            Ok(peers) => self.peers = peers,
            Err(error) => {
                tracing::error!(%error, "the hosts cannot signal each other; VRRP goes on alone");
            }
        }
    }

    fn exchange_routers(&mut self, config: &Config) {
        let mut old = std::mem::take(&mut self.routers);
        for vip in &config.vips {
            let mut router = Carried::new(vip);
            if let Some(before) = old.remove(&vip.name) {
                (router.source, router.held) = (before.source, before.held);
                if before.held {
                    self.drop_addresses(&before.vip, vip);
                }
            }
            self.routers.insert(vip.name.clone(), router);
        }
    }

    /// Removes the addresses that a virtual router has no more.
    fn drop_addresses(&mut self, before: &Vip, now: &Vip) {
        let Some(index) = self.index(&before.interface) else { return };
        let gone: Vec<_> =
            before.addresses.iter().filter(|net| !now.addresses.contains(net)).copied().collect();
        if gone.is_empty() {
            return;
        }
        let addresses = gone.iter().map(IpNet::addr).collect();
        if let Err(error) = self.netlink.remove_all(gone.into_iter().map(|net| (index, net)).collect()) {
            self.complain("release", &error);
        }
        self.ends.tell(Notice::Left { router: now.name.clone(), addresses });
    }
}

/// What was read, when it has been. Cancel-safe.
async fn finished(reading: &mut Option<JoinHandle<Result<Config, String>>>) -> Result<Config, String> {
    match reading {
        Some(handle) => handle.await.unwrap_or_else(|error| Err(error.to_string())),
        None => std::future::pending().await,
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

/// What differs and cannot be changed in a running process.
fn unchangeable(old: &Config, new: &Config) -> Vec<&'static str> {
    let vrrp = |config: &Config| config.vrrp.clone();
    let (before, after) = (vrrp(old), vrrp(new));
    let differs =
        |what: fn(&pointsman_config::Vrrp) -> String| before.as_ref().map(what) != after.as_ref().map(what);
    [
        (old.node != new.node, "node"),
        (differs(|vrrp| vrrp.socket.display().to_string()), "vrrp.socket"),
        (differs(|vrrp| format!("{:?}", vrrp.bind)), "vrrp.bind"),
        (differs(|vrrp| vrrp.realtime.to_string()), "vrrp.realtime"),
        (differs(|vrrp| vrrp.lock_memory.to_string()), "vrrp.lock_memory"),
        (old.log.format != new.log.format, "log.format"),
    ]
    .into_iter()
    .filter_map(|(differs, what)| differs.then_some(what))
    .collect()
}

/// For `systemctl status`: `eth0-51 active (priority 150); lb2 alive, lb3 lost`.
fn line(status: &pointsman_vrrp::status::Status) -> String {
    let router = |router: &pointsman_vrrp::status::RouterStatus| {
        format!("{} {} (priority {})", router.name, router.state, router.priority)
    };
    let routers: Vec<_> = status.routers.iter().map(router).collect();
    let peers: Vec<_> =
        status.peers.iter().map(|peer| format!("{} {}", peer.node, peer.state.as_str())).collect();
    let parts = [routers.join(", "), peers.join(", ")];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}

fn log(note: &Note) {
    match note {
        Note::Transition(Transition { router, from, to, reason, priority }) => {
            tracing::info!(%router, %from, %to, priority, reason = reason.label(), "{router} is {to}: {reason}");
        }
        Note::Alarm { router, alarm } => {
            tracing::warn!(%router, alarm = alarm.kind().as_str(), "{router}: {alarm}");
        }
        Note::AlarmOver { router, kind } => {
            tracing::info!(%router, alarm = kind.as_str(), "{router}: the alarm {} is over", kind.as_str());
        }
        // A stranger can cause twenty in a second; what is wrong then is an alarm.
        Note::Repaired { router, by } => {
            tracing::debug!(%router, by = by.label(), "{router}: the neighbours are told anew who has the addresses");
        }
        Note::Peer { node, news } => tracing::info!(%node, "{node}: {news}"),
    }
}

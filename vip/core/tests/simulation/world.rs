//! Hosts, the network between them, a client, and a clock, all made of one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::time::Duration;

use pointsman_config::{NodeName, TrackProxy, VipName};
use pointsman_vrrp::advert::Advert;
use pointsman_vrrp::event::{Action, Event, Link, LinkFault, Proxy, Wire};
use pointsman_vrrp::frame::Mac;
use pointsman_vrrp::node::{Node, NodeSettings};
use pointsman_vrrp::note::Note;
use pointsman_vrrp::report::Report;
use pointsman_vrrp::router::Settings;
use pointsman_vrrp::time::Moment;

use crate::checker::Checker;
use crate::dice::Dice;
use crate::fake_keepalived::{Deed, FakeKeepalived};

/// What is the same on all hosts.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) interval: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) preempt: bool,
    pub(crate) preempt_delay: Duration,
    pub(crate) track: TrackProxy,
    /// The hosts signal each other beside VRRP.
    pub(crate) peers: bool,
    /// All have the same priority.
    pub(crate) equal: bool,
}

#[derive(Debug)]
pub(crate) enum Program {
    Vip(Box<Node>),
    Keepalived(FakeKeepalived),
    /// It does not run.
    None,
}

/// What the shell knows of the process of another host.
#[derive(Clone, Copy, Debug)]
struct Trust {
    incarnation: u64,
    connection: Option<u64>,
    sequence: u64,
    ended: bool,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "a host is made of yes and no")]
pub(crate) struct Host {
    pub(crate) number: usize,
    pub(crate) priority: u8,
    pub(crate) keepalived: bool,
    pub(crate) program: Program,
    pub(crate) incarnation: u64,
    sequence: u64,
    pub(crate) powered: bool,
    pub(crate) frozen: bool,
    pub(crate) link: bool,
    pub(crate) stopping: bool,
    pub(crate) yielded: bool,
    pub(crate) unwell: bool,
    /// The addresses are on its interface.
    pub(crate) holds: bool,
    /// Since when it can take part without a break.
    pub(crate) since: Moment,
    /// When the kernel drops them, which nobody refreshes.
    pub(crate) expires: Option<Moment>,
    inbox: Vec<Message>,
    trust: BTreeMap<usize, Trust>,
    late: Duration,
}

impl Host {
    pub(crate) fn source(&self) -> IpAddr {
        source_of(self.number)
    }

    /// Its program runs and does something.
    pub(crate) fn runs(&self) -> bool {
        self.powered && !self.frozen && !matches!(self.program, Program::None)
    }

    /// As its program, which may think better of itself than the configuration says.
    pub(crate) fn node(&self) -> Option<&Node> {
        match &self.program {
            Program::Vip(node) => Some(node),
            Program::Keepalived(_) | Program::None => None,
        }
    }

    fn deadline(&self) -> Option<Moment> {
        if !self.runs() {
            return None;
        }
        let due = match &self.program {
            Program::Vip(node) => node.deadline()?,
            Program::Keepalived(program) => program.deadline(),
            Program::None => return None,
        };
        Some(due + self.late)
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Message {
    Advert {
        from: IpAddr,
        to: usize,
        priority: u8,
    },
    Report {
        from: usize,
        to: usize,
        incarnation: u64,
        sequence: u64,
        report: Report,
    },
    Wire {
        from: usize,
        to: usize,
        id: u64,
        incarnation: u64,
        wire: Wire,
    },
    Arp {
        from: usize,
        to: usize,
    },
    /// The kernel of a host tells its program of its link.
    Link {
        host: usize,
    },
    /// Two hosts try to connect.
    Connect {
        one: usize,
        other: usize,
    },
    Restart {
        host: usize,
    },
    Thaw {
        host: usize,
    },
    /// The guard of a host finds its worker dead.
    Guard {
        host: usize,
    },
    /// A host that stops ends, whatever it still waits for.
    End {
        host: usize,
        incarnation: u64,
    },
    LinkUp {
        host: usize,
    },
}

/// A connection; a side is open while the kernel has not told its end to it.
#[derive(Clone, Copy, Debug)]
struct Connection {
    id: u64,
    incarnations: [u64; 2],
}

#[derive(Debug)]
pub(crate) struct Network {
    /// Frames of the one never arrive at the other. The client is the last.
    pub(crate) blocked: BTreeSet<(usize, usize)>,
    /// Hosts whose multicast arrives nowhere.
    pub(crate) mute: BTreeSet<usize>,
    /// There was a time when adverts were lost and reports were not.
    pub(crate) one_sided: bool,
    /// One frame in so many is lost; 0: none.
    pub(crate) loss: usize,
    /// The longest way, in microseconds.
    pub(crate) slow: u64,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) dice: Dice,
    pub(crate) now: Moment,
    trace: bool,
    pub(crate) setup: Setup,
    pub(crate) hosts: Vec<Host>,
    pub(crate) network: Network,
    queue: BTreeMap<(Moment, u64), Message>,
    connections: BTreeMap<(usize, usize), Connection>,
    counter: u64,
    /// Whom the client takes for the owner of the addresses.
    pub(crate) neighbour: Option<usize>,
    /// When the last forged advert arrives.
    pub(crate) forged: Moment,
    pub(crate) checker: Checker,
    print: DefaultHasher,
}

pub(crate) fn vip() -> VipName {
    VipName::new("vip").unwrap()
}

pub(crate) fn name_of(number: usize) -> NodeName {
    NodeName::new(&format!("lb{number}")).unwrap()
}

pub(crate) fn source_of(number: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, 1 + u8::try_from(number).unwrap()])
}

fn mac_of(number: usize) -> Mac {
    Mac([2, 0, 0, 0, 0, u8::try_from(number).unwrap()])
}

fn address() -> IpAddr {
    IpAddr::from([10, 0, 0, 100])
}

impl World {
    /// Any world.
    pub(crate) fn new(seed: u64, trace: bool) -> Self {
        let mut dice = Dice(seed);
        let millis = Duration::from_millis;
        let setup = Setup {
            interval: dice.one_of(&[10, 100, 100, 100, 1000].map(millis)),
            heartbeat: dice.one_of(&[10, 30].map(millis)),
            preempt: !dice.one_in(4),
            preempt_delay: dice.one_of(&[0, 500, 2000].map(millis)),
            track: dice.one_of(&[TrackProxy::Release, TrackProxy::Lower(NonZeroU8::new(80).unwrap())]),
            peers: !dice.one_in(5),
            equal: dice.one_in(10),
        };
        let count = 2 + dice.below(4);
        let keepalived = if dice.one_in(3) { dice.below(count) } else { 0 };
        let network = Network {
            blocked: BTreeSet::new(),
            mute: BTreeSet::new(),
            one_sided: false,
            loss: if dice.one_in(3) { 20 } else { 0 },
            slow: dice.one_of(&[300, 2000]),
        };
        Self::of(dice, setup, network, count, keepalived, trace)
    }

    /// Three hosts as they are configured by default, on a good network, at rest.
    pub(crate) fn at_rest(seed: u64, keepalived: usize, trace: bool) -> Self {
        let millis = Duration::from_millis;
        let setup = Setup {
            interval: millis(100),
            heartbeat: millis(30),
            preempt: true,
            preempt_delay: millis(5000),
            track: TrackProxy::Release,
            peers: true,
            equal: false,
        };
        let network =
            Network { blocked: BTreeSet::new(), mute: BTreeSet::new(), one_sided: false, loss: 0, slow: 200 };
        let mut world = Self::of(Dice(seed), setup, network, 3, keepalived, trace);
        let wait = world.dice.millis(20_000, 21_000);
        world.run_for(wait);
        world.check_rest();
        world
    }

    fn of(dice: Dice, setup: Setup, network: Network, count: usize, keepalived: usize, trace: bool) -> Self {
        let host = |number| Host {
            number,
            priority: if setup.equal { 100 } else { 200 - 40 * u8::try_from((number * 3 + 1) % 5).unwrap() },
            keepalived: number >= count - keepalived,
            program: Program::None,
            incarnation: 0,
            sequence: 0,
            powered: true,
            frozen: false,
            link: true,
            stopping: false,
            yielded: false,
            unwell: false,
            holds: false,
            since: Moment::ZERO,
            expires: None,
            inbox: Vec::new(),
            trust: BTreeMap::new(),
            late: Duration::ZERO,
        };
        let mut world = Self {
            now: Moment::from_start(Duration::from_secs(1)),
            trace,
            hosts: (0..count).map(host).collect(),
            setup,
            network,
            queue: BTreeMap::new(),
            connections: BTreeMap::new(),
            counter: 0,
            neighbour: None,
            forged: Moment::ZERO,
            checker: Checker::default(),
            print: DefaultHasher::new(),
            dice,
        };
        world.say(|world| format!("{:?}, keepalived: {keepalived} of {count}", world.setup));
        for host in 0..count {
            let wait = world.dice.millis(0, 300);
            world.after(wait, Message::Restart { host });
            for other in host + 1..count {
                world.after(wait, Message::Connect { one: host, other });
            }
        }
        world
    }

    /// The client's place in the network.
    pub(crate) fn client(&self) -> usize {
        self.hosts.len()
    }

    pub(crate) fn say(&self, what: impl FnOnce(&Self) -> String) {
        if self.trace {
            eprintln!("{:10.3} {}", self.now.since(Moment::ZERO).as_secs_f64(), what(self));
        }
    }

    /// Everything that happened, as one number.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.print.finish()
    }

    pub(crate) fn after(&mut self, wait: Duration, message: Message) {
        self.counter += 1;
        self.queue.insert((self.now + wait, self.counter), message);
    }

    // ---- The network -------------------------------------------------------------------------------------------------

    /// A frame would arrive there now.
    pub(crate) fn reaches(&self, from: usize, to: usize) -> bool {
        let is_up = |place: usize| self.hosts.get(place).is_none_or(|host| host.powered && host.link);
        is_up(from) && is_up(to) && !self.network.blocked.contains(&(from, to))
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        let loss = self.network.loss;
        if self.reaches(from, to) && (loss == 0 || !self.dice.one_in(loss)) {
            let wait = self.dice.micros(50, self.network.slow);
            if self.network.loss > 0 && self.dice.one_in(100) {
                self.after(wait * 2, message.clone()); // some come twice
            }
            self.after(wait, message);
        }
    }

    pub(crate) fn advertise(&mut self, from: usize, priority: u8) {
        if self.network.mute.contains(&from) {
            return;
        }
        for to in (0..self.hosts.len()).filter(|to| *to != from) {
            self.send(from, to, Message::Advert { from: source_of(from), to, priority });
        }
    }

    fn announce(&mut self, from: usize) {
        for to in (0..=self.hosts.len()).filter(|to| *to != from) {
            self.send(from, to, Message::Arp { from, to });
        }
    }

    /// TCP does not lose anything: it arrives when the way is free again.
    fn wire(&mut self, from: usize, to: usize, connection: Connection, wire: Wire) {
        let incarnation = connection.incarnations[usize::from(from > to)];
        let wait = self.dice.micros(50, self.network.slow);
        self.after(wait, Message::Wire { from, to, id: connection.id, incarnation, wire });
    }

    fn connect(&mut self, one: usize, other: usize) {
        let wait = self.dice.millis(20, 100);
        self.after(wait, Message::Connect { one, other });
        let [first, second] = [one, other].map(|host| &self.hosts[host]);
        let ready = |host: &Host| host.runs() && !host.keepalived && !host.stopping;
        let free = self.reaches(one, other) && self.reaches(other, one);
        if !ready(first) || !ready(second) || !free || !self.setup.peers {
            return;
        }
        let incarnations = [first.incarnation, second.incarnation];
        if self.connections.get(&(one, other)).is_some_and(|known| known.incarnations == incarnations) {
            return;
        }
        self.counter += 1;
        let connection = Connection { id: self.counter, incarnations };
        self.connections.insert((one, other), connection);
        self.wire(one, other, connection, Wire::Connected);
        self.wire(other, one, connection, Wire::Connected);
    }

    /// The kernel closes the connections of a process, and tells the other side.
    pub(crate) fn close(&mut self, host: usize, wire: Wire) {
        let all: Vec<_> = self.connections.iter().map(|(pair, connection)| (*pair, *connection)).collect();
        for ((one, other), connection) in all.into_iter().filter(|((a, b), _)| *a == host || *b == host) {
            self.connections.remove(&(one, other));
            self.wire(host, if one == host { other } else { one }, connection, wire);
        }
    }

    /// Nobody tells the other side, and nobody will.
    pub(crate) fn forget_connections(&mut self, host: usize) {
        self.connections.retain(|(one, other), _| *one != host && *other != host);
    }

    // ---- Time --------------------------------------------------------------------------------------------------------

    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let message = self.queue.keys().next().map(|(at, _)| *at);
            let due = self.hosts.iter().filter_map(Host::deadline).min();
            let expiry = self.hosts.iter().filter_map(|host| host.expires).min();
            let Some(next) = [message, due, expiry].into_iter().flatten().min().filter(|next| *next <= end)
            else {
                break;
            };
            self.now = self.now.max(next);
            self.expire();
            // What has arrived comes before timers.
            if message.is_some_and(|at| at <= self.now) {
                let (_, message) = self.queue.pop_first().unwrap();
                self.deliver(message);
            } else {
                self.tick();
            }
            self.check();
        }
        self.now = end;
    }

    fn expire(&mut self) {
        let now = self.now;
        for host in self.hosts.iter_mut().filter(|host| host.expires.is_some_and(|at| at <= now)) {
            host.expires = None;
            host.holds = false;
        }
    }

    fn tick(&mut self) {
        let now = self.now;
        for number in 0..self.hosts.len() {
            let host = &mut self.hosts[number];
            if host.deadline().is_none_or(|due| due > now) {
                continue;
            }
            match &mut host.program {
                Program::Vip(node) => {
                    let actions = node.tick(now);
                    self.checker.ticked(number, now, node.deadline());
                    self.carry_out(number, actions);
                }
                Program::Keepalived(program) => {
                    let deeds = program.tick(now);
                    self.perform(number, &deeds);
                }
                Program::None => {}
            }
            // Timers come a little late.
            self.hosts[number].late = self.dice.micros(0, 400);
        }
    }

    // ---- What arrives ------------------------------------------------------------------------------------------------

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Connect { one, other } => self.connect(one, other),
            Message::Restart { host } => self.restart(host),
            Message::Thaw { host } => self.thaw(host),
            Message::Guard { host } => self.guard(host),
            Message::LinkUp { host } => self.set_link(host, true),
            Message::End { host, incarnation } => {
                let stops = self.hosts[host].stopping && self.hosts[host].incarnation == incarnation;
                if stops && !matches!(self.hosts[host].program, Program::None) {
                    self.end(host, Wire::Farewell);
                }
            }
            Message::Arp { from, to } if to == self.client() => {
                if self.reaches(from, to) {
                    self.neighbour = Some(from);
                    self.say(|_| format!("the client believes lb{from}"));
                }
            }
            Message::Wire { from, to, .. } if !(self.reaches(from, to) && self.reaches(to, from)) => {
                // Sent again later, unless the other side was switched off.
                if self.hosts[from].powered {
                    let wait = self.dice.millis(200, 800);
                    self.after(wait, message);
                }
            }
            Message::Report { from, to, .. } | Message::Arp { from, to } if !self.reaches(from, to) => {}
            Message::Advert { to, .. }
            | Message::Report { to, .. }
            | Message::Wire { to, .. }
            | Message::Arp { to, .. } => self.receive(to, message),
            Message::Link { host } => self.receive(host, message),
        }
    }

    /// A program is told, or finds it when it runs again.
    fn receive(&mut self, to: usize, message: Message) {
        let host = &mut self.hosts[to];
        if !host.powered || matches!(host.program, Program::None) {
            return;
        }
        if host.frozen {
            if host.inbox.len() < 300 {
                host.inbox.push(message);
            }
            return;
        }
        match (&mut host.program, message) {
            (Program::Keepalived(program), Message::Advert { from, priority, .. }) => {
                let deeds = program.advert(self.now, from, priority, self.setup.interval);
                self.perform(to, &deeds);
            }
            (Program::Vip(_), Message::Advert { from, priority, .. }) => {
                let advert = Advert {
                    router_id: NonZeroU8::MIN,
                    priority,
                    interval: self.setup.interval,
                    addresses: vec![address()],
                };
                self.tell(to, Event::Advert { router: vip(), from, advert });
            }
            (Program::Vip(_), Message::Arp { from, .. }) => {
                self.tell(to, Event::Claimed { router: vip(), address: address(), mac: mac_of(from) });
            }
            (Program::Vip(_), Message::Report { from, incarnation, sequence, report, .. }) => {
                let trust = host.trust.get_mut(&from);
                let trust = trust.filter(|trust| {
                    trust.incarnation == incarnation && sequence > trust.sequence && !trust.ended
                });
                if let Some(trust) = trust {
                    trust.sequence = sequence;
                    self.tell(to, Event::Report { node: name_of(from), report });
                }
            }
            (Program::Vip(_), Message::Wire { from, id, incarnation, wire, .. }) => {
                self.wire_arrives(to, from, id, incarnation, wire);
            }
            (Program::Vip(_), Message::Link { .. }) => {
                let link = if host.link {
                    Link::Up { source: source_of(to) }
                } else {
                    Link::Down(LinkFault::NoCarrier("eth0".to_owned()))
                };
                self.tell(to, Event::Link { router: vip(), link });
            }
            (Program::Vip(_) | Program::Keepalived(_) | Program::None, _) => {}
        }
    }

    /// As the shell does it: another process at the same place means that the one before has ended.
    fn wire_arrives(&mut self, to: usize, from: usize, id: u64, incarnation: u64, wire: Wire) {
        let known = self.hosts[to].trust.get(&from).copied();
        let mut events = Vec::new();
        if wire == Wire::Connected {
            if known.is_some_and(|trust| trust.incarnation != incarnation && !trust.ended) {
                events.push(Wire::Ended);
            }
            let same = known.filter(|trust| trust.incarnation == incarnation);
            let sequence = same.map_or(0, |trust| trust.sequence);
            let trust = Trust { incarnation, connection: Some(id), sequence, ended: false };
            self.hosts[to].trust.insert(from, trust);
        } else {
            let Some(mut trust) = known.filter(|trust| trust.connection == Some(id)) else { return };
            trust.connection = None;
            trust.ended = matches!(wire, Wire::Ended | Wire::Farewell);
            self.hosts[to].trust.insert(from, trust);
        }
        events.push(wire);
        for wire in events {
            self.tell(to, Event::Wire { node: name_of(from), wire });
        }
    }

    pub(crate) fn tell(&mut self, number: usize, event: Event) {
        if matches!(event, Event::Wire { .. } | Event::Link { .. }) {
            self.say(|_| format!("lb{number} hears {event:?}"));
        }
        let now = self.now;
        if let Program::Vip(node) = &mut self.hosts[number].program {
            let actions = node.handle(now, event);
            self.carry_out(number, actions);
        }
    }

    // ---- What is done ------------------------------------------------------------------------------------------------

    fn carry_out(&mut self, number: usize, actions: Vec<Action>) {
        for action in actions {
            self.note_down(number, &action);
            match action {
                Action::Hold { .. } => {
                    self.hosts[number].holds = true;
                    self.hosts[number].expires = None;
                }
                Action::Release { .. } => self.hosts[number].holds = false,
                Action::Advertise { priority, .. } => self.advertise(number, priority),
                Action::Announce { .. } => self.announce(number),
                Action::Report(report) => self.report(number, &report),
                Action::Note(_) => {}
            }
        }
        let host = &self.hosts[number];
        if host.stopping && host.node().is_some_and(Node::is_idle) {
            self.end(number, Wire::Farewell);
        }
    }

    fn note_down(&mut self, number: usize, action: &Action) {
        if !matches!(action, Action::Report(_)) {
            let word = format!("lb{number} {action:?}");
            word.hash(&mut self.print);
            self.now.hash(&mut self.print);
            self.say(|_| word);
        }
        if let Action::Note(Note::Transition(transition)) = action {
            self.check_votes(number, transition);
        }
        self.checker.did(self.now, number, self.hosts[number].holds, action);
    }

    fn report(&mut self, number: usize, report: &Report) {
        let host = &mut self.hosts[number];
        host.sequence += 1;
        let (incarnation, sequence) = (host.incarnation, host.sequence);
        for to in (0..self.hosts.len()).filter(|to| *to != number) {
            if !self.hosts[to].keepalived {
                let report = report.clone();
                self.send(number, to, Message::Report { from: number, to, incarnation, sequence, report });
            }
        }
    }

    pub(crate) fn perform(&mut self, number: usize, deeds: &[Deed]) {
        for deed in deeds {
            self.say(|_| format!("lb{number} (keepalived) {deed:?}"));
            match deed {
                Deed::Advertise(priority) => self.advertise(number, *priority),
                Deed::Hold => self.hosts[number].holds = true,
                Deed::Release => self.hosts[number].holds = false,
                Deed::Announce => self.announce(number),
            }
        }
    }

    // ---- The life of a host ------------------------------------------------------------------------------------------

    fn settings(&self, number: usize) -> NodeSettings {
        let host = &self.hosts[number];
        let router = Settings {
            name: vip(),
            interface: "eth0".to_owned(),
            router_id: NonZeroU8::MIN,
            priority: host.priority,
            addresses: vec!["10.0.0.100/24".parse().unwrap()],
            interval: self.setup.interval,
            version_2: false,
            preempt: self.setup.preempt,
            preempt_delay: self.setup.preempt_delay,
            track: self.setup.track,
            unicast: BTreeSet::new(),
        };
        let others = self.hosts.iter().filter(|other| other.number != number && !other.keepalived);
        let address = |host: &Host| SocketAddr::new(host.source(), 7001);
        let peers = others.map(|host| (name_of(host.number), address(host))).collect();
        NodeSettings {
            node: name_of(number),
            routers: vec![router],
            peers: if self.setup.peers { peers } else { BTreeMap::new() },
            heartbeat: self.setup.heartbeat,
        }
    }

    fn restart(&mut self, number: usize) {
        if !matches!(self.hosts[number].program, Program::None) {
            return;
        }
        self.counter += 1;
        self.say(|_| format!("lb{number} starts"));
        let settings = self.settings(number);
        let (now, interval, incarnation) = (self.now, self.setup.interval, self.counter);
        let host = &mut self.hosts[number];
        host.powered = true;
        host.since = now;
        host.holds = false; // left-over addresses are removed
        host.expires = None;
        host.frozen = false;
        host.stopping = false;
        host.yielded = false;
        host.incarnation = incarnation;
        host.sequence = 0;
        host.trust.clear();
        host.inbox.clear();
        if host.keepalived {
            let program = FakeKeepalived::new(now, host.priority, host.source(), interval);
            host.program = Program::Keepalived(program);
            return;
        }
        host.program = Program::Vip(Box::new(Node::new(now, settings)));
        self.checker.restarted(number);
        self.receive(number, Message::Link { host: number });
        self.set_unwell(number, self.hosts[number].unwell);
    }

    pub(crate) fn set_unwell(&mut self, number: usize, unwell: bool) {
        self.hosts[number].unwell = unwell;
        let proxy = if unwell { Proxy::Unwell { why: "it says so".to_owned() } } else { Proxy::Well };
        self.tell(number, Event::Proxy(proxy));
    }

    pub(crate) fn set_link(&mut self, number: usize, up: bool) {
        if self.hosts[number].link != up {
            self.say(|_| format!("the link of lb{number}: {up}"));
            self.hosts[number].link = up;
            self.hosts[number].since = self.now;
            let wait = self.dice.micros(100, 25_000);
            self.after(wait, Message::Link { host: number });
        }
    }

    /// Its process ends, and its kernel tells everybody.
    pub(crate) fn end(&mut self, number: usize, wire: Wire) {
        self.say(|_| format!("the process of lb{number} ends: {wire:?}"));
        self.hosts[number].program = Program::None;
        self.hosts[number].frozen = false;
        self.close(number, wire);
    }

    fn thaw(&mut self, number: usize) {
        let host = &mut self.hosts[number];
        if !host.frozen {
            return;
        }
        host.frozen = false;
        host.since = self.now;
        let inbox = std::mem::take(&mut host.inbox);
        let held = host.expires.take().is_some();
        self.say(|_| format!("lb{number} goes on"));
        let lost = !held && !self.hosts[number].holds;
        // What has arrived comes before timers; the kernel's news come in between.
        for message in inbox {
            self.receive(number, message);
        }
        let active = |node: &Node| node.routers().any(|router| router.state().as_str() == "active");
        if lost && self.hosts[number].node().is_some_and(active) && !self.hosts[number].holds {
            self.tell(number, Event::AddressGone { router: vip(), address: address() });
        }
    }

    /// Its worker is dead: the addresses, then priority 0, then a new worker.
    fn guard(&mut self, number: usize) {
        let host = &mut self.hosts[number];
        if !host.powered || !matches!(host.program, Program::None) {
            return;
        }
        let held = std::mem::take(&mut host.holds);
        host.expires = None;
        if held {
            self.advertise(number, 0);
        }
        let wait = self.dice.millis(100, 500);
        self.after(wait, Message::Restart { host: number });
    }
}

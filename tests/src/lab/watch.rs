//! What happens on the network, with times: who has which address, and which packets the hosts send.
//!
//! One thread reads it all, so that the order in which things are noted is that in which they were seen.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::namespace::Namespace;
use super::netlink::Monitor;
use super::packet::Packet;
use super::sys::{self, Instruction};

/// A burst of frames waits here while we do something else.
const BUFFER: usize = 8 << 20;

/// An address came to a host, or left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// When it was seen.
    pub at: Instant,
    /// The host.
    pub host: usize,
    /// The address.
    pub address: IpAddr,
    /// It has it now.
    pub held: bool,
}

/// A frame that a host sent.
#[derive(Debug, Clone)]
pub struct Sent {
    /// When it was seen.
    pub at: Instant,
    /// The port of the switch that it came in by.
    pub port: usize,
    /// What it says.
    pub packet: Packet,
    /// The frame.
    pub frame: Vec<u8>,
}

#[derive(Debug, Default)]
struct Seen {
    changes: Vec<Change>,
    held: HashMap<(usize, IpAddr), bool>,
    sent: Vec<Sent>,
    error: Option<String>,
}

/// What has been seen.
#[derive(Debug, Clone)]
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
}

impl Watch {
    /// Starts the thread, which ends with the program. `ports` are the numbers of the switch's ports.
    pub(super) fn start(hosts: &[&Namespace], switch: &Namespace, ports: Vec<u32>) -> Result<Self> {
        let monitors = hosts.iter().map(|host| Monitor::open(host)).collect::<Result<Vec<_>>>()?;
        let capture = switch.within(open_capture)?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let watch = Self { seen: Arc::clone(&seen) };
        let watcher = Watcher { monitors, capture, ports, seen };
        thread::Builder::new().name("watch".to_owned()).spawn(move || watcher.run())?;
        Ok(watch)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(seen.error.is_none(), "the watch has ended: {:?}", seen.error);
        seen
    }

    /// The hosts that have an address now.
    pub fn holders(&self, address: IpAddr) -> Vec<usize> {
        let seen = self.seen();
        let held = seen.held.iter().filter(|((_, other), held)| *other == address && **held);
        let mut hosts: Vec<usize> = held.map(|((host, _), _)| *host).collect();
        hosts.sort_unstable();
        hosts
    }

    /// Every change of an address from `since` on.
    pub fn changes(&self, address: IpAddr, since: Instant) -> Vec<Change> {
        let seen = self.seen();
        seen.changes
            .iter()
            .filter(|change| change.address == address && change.at >= since)
            .copied()
            .collect()
    }

    /// When an address first came to (`held`) or left a host after `since`.
    pub fn when(&self, host: usize, address: IpAddr, held: bool, since: Instant) -> Option<Instant> {
        let changes = self.changes(address, since);
        changes.iter().find(|change| change.host == host && change.held == held).map(|change| change.at)
    }

    /// For how long in a row, at most, an address had two holders or more from `since` on.
    pub fn longest_overlap(&self, address: IpAddr, since: Instant) -> Duration {
        self.longest(address, since, |holders| holders >= 2)
    }

    /// For how long in a row, at most, an address had no holder from `since` on.
    pub fn longest_vacancy(&self, address: IpAddr, since: Instant) -> Duration {
        self.longest(address, since, |holders| holders == 0)
    }

    fn longest(&self, address: IpAddr, since: Instant, counts: impl Fn(usize) -> bool) -> Duration {
        let all: Vec<Change> =
            self.seen().changes.iter().filter(|change| change.address == address).copied().collect();
        longest(&all, since, Instant::now(), counts)
    }

    /// What was sent from `since` on, in order, as far as `wanted` says.
    pub fn sent(&self, since: Instant, wanted: impl Fn(&Sent) -> bool) -> Vec<Sent> {
        let seen = self.seen();
        let from = seen.sent.partition_point(|sent| sent.at < since);
        seen.sent.get(from..).unwrap_or_default().iter().filter(|sent| wanted(sent)).cloned().collect()
    }

    /// How many adverts of `priority` host `host` has sent from `since` on.
    pub fn adverts(&self, host: usize, priority: u8, since: Instant) -> Vec<Instant> {
        let is = |sent: &Sent| {
            sent.port == host && matches!(sent.packet, Packet::Advert { priority: p, .. } if p == priority)
        };
        self.sent(since, is).iter().map(|sent| sent.at).collect()
    }

    /// When host `host` has said from `since` on that it has `address`: announcements, and answers to questions.
    pub fn claims(&self, host: usize, address: IpAddr, since: Instant) -> Vec<Instant> {
        let is = |sent: &Sent| sent.port == host && sent.packet.claims(address);
        self.sent(since, is).iter().map(|sent| sent.at).collect()
    }

    /// A story for people: every change of an address and every advert and claim near one, with times from `since`.
    pub fn story(&self, address: IpAddr, since: Instant) -> String {
        let mut lines: Vec<(Instant, String)> = Vec::new();
        for change in self.changes(address, since) {
            let verb = if change.held { "has" } else { "has no more" };
            lines.push((change.at, format!("lb{} {verb} {address}", change.host + 1)));
        }
        let turns: Vec<Instant> = lines.iter().map(|(at, _)| *at).collect();
        let near = |at: Instant| {
            turns.iter().any(|turn| at.max(*turn).duration_since(at.min(*turn)) < Duration::from_millis(100))
        };
        for sent in self.sent(since, |sent| near(sent.at) && !matches!(sent.packet, Packet::Report)) {
            let asks =
                matches!(sent.packet, Packet::Arp { operation: 1, sender, target, .. } if sender != target);
            if !asks {
                lines.push((sent.at, format!("port {} sends {:?}", sent.port + 1, sent.packet)));
            }
        }
        lines.sort_by_key(|(at, _)| *at);
        let line = |(at, text): &(Instant, String)| {
            format!("{:9.2} ms  {text}\n", at.duration_since(since).as_secs_f64() * 1e3)
        };
        lines.iter().map(line).collect()
    }
}

/// The longest time from `since` to `until` in which the number of holders `counts`.
fn longest(changes: &[Change], since: Instant, until: Instant, counts: impl Fn(usize) -> bool) -> Duration {
    let mut holders: Vec<usize> = Vec::new();
    let mut begun = None;
    let mut longest = Duration::ZERO;
    for change in changes {
        holders.retain(|host| *host != change.host);
        if change.held {
            holders.push(change.host);
        }
        let at = change.at.clamp(since, until);
        match (begun, counts(holders.len())) {
            (None, true) => begun = Some(at),
            (Some(from), false) => {
                longest = longest.max(at.duration_since(from));
                begun = None;
            }
            (None, false) | (Some(_), true) => {}
        }
    }
    longest.max(begun.map_or(Duration::ZERO, |from| until.duration_since(from)))
}

struct Watcher {
    monitors: Vec<Monitor>,
    capture: OwnedFd,
    ports: Vec<u32>,
    seen: Arc<Mutex<Seen>>,
}

impl Watcher {
    fn run(self) {
        if let Err(error) = self.watch() {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.error = Some(format!("{error:#}"));
        }
    }

    fn watch(&self) -> Result<()> {
        let mut buffer = vec![0; 65_536];
        loop {
            let sockets = self.monitors.iter().map(Monitor::as_fd).chain([self.capture.as_fd()]);
            let mut waiting: Vec<PollFd<'_>> =
                sockets.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN)).collect();
            poll(&mut waiting, None).context("poll")?;
            let at = Instant::now();
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            // Frames first: an announcement follows the address that it announces, an advert before it precedes it.
            while let Some((length, interface)) = sys::receive(self.capture.as_fd(), &mut buffer)? {
                let Some(port) = self.ports.iter().position(|port| *port == interface) else { continue };
                let frame = buffer.get(..length).unwrap_or_default();
                if let Some(packet) = Packet::read(frame) {
                    seen.sent.push(Sent { at, port, packet, frame: frame.to_owned() });
                }
            }
            for (host, monitor) in self.monitors.iter().enumerate() {
                for change in monitor.changes()? {
                    let before = seen.held.insert((host, change.address), change.present);
                    // A life that is prolonged is no news.
                    if before.unwrap_or(false) != change.present {
                        let (address, held) = (change.address, change.present);
                        seen.changes.push(Change { at, host, address, held });
                    }
                }
            }
        }
    }
}

fn open_capture() -> Result<OwnedFd> {
    let socket = sys::packet_socket().context("cannot open a packet socket")?;
    // Before it receives anything.
    sys::attach_filter(socket.as_fd(), FILTER).context("cannot attach a filter")?;
    // Not permitted to a root that is none outside: then with what there is.
    let _ = set_socket_recv_buffer_size_force(&socket, BUFFER);
    sys::bind(socket.as_fd(), 0).context("cannot bind a packet socket")?;
    Ok(socket)
}

/// Load a byte, a half word; compare; answer (see bpf(4)).
const BYTE: u16 = 0x30;
const HALF: u16 = 0x28;
const EQUAL: u16 = 0x15;
const ANSWER: u16 = 0x06;
/// `SKF_AD_OFF + SKF_AD_PKTTYPE`: whether the frame comes or goes; 4: it goes.
const DIRECTION: u32 = 0xffff_f004;

/// What comes in (not what the switch sends on) and is ARP, VRRP, a neighbour advertisement or a report.
const FILTER: &[Instruction] = &[
    (BYTE, 0, 0, DIRECTION),
    (EQUAL, 14, 0, 4),
    (HALF, 0, 0, 12),
    (EQUAL, 13, 0, 0x0806),
    (EQUAL, 0, 5, 0x0800),
    // IPv4
    (BYTE, 0, 0, 23),
    (EQUAL, 10, 0, 112),
    (EQUAL, 0, 8, 17),
    (HALF, 0, 0, 36),
    (EQUAL, 7, 6, 7001),
    (EQUAL, 0, 5, 0x86dd),
    // IPv6
    (BYTE, 0, 0, 20),
    (EQUAL, 4, 0, 112),
    (EQUAL, 0, 2, 58),
    (BYTE, 0, 0, 54),
    (EQUAL, 1, 0, 136),
    (ANSWER, 0, 0, 0),
    (ANSWER, 0, 0, 0xffff),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_time_is_that_between_changes_or_to_the_end() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let change = |at, host, held| Change { at: ms(at), host, address: IpAddr::from([10, 0, 0, 1]), held };
        let changes =
            [change(0, 0, true), change(100, 1, true), change(130, 0, false), change(200, 1, false)];
        let longest = |since, until, n| longest(&changes, ms(since), ms(until), |holders| holders == n);
        assert_eq!(longest(0, 300, 2), Duration::from_millis(30));
        assert_eq!(longest(120, 300, 2), Duration::from_millis(10));
        assert_eq!(longest(140, 300, 2), Duration::ZERO);
        assert_eq!(longest(0, 300, 0), Duration::from_millis(100));
        assert_eq!(longest(0, 110, 2), Duration::from_millis(10));
    }
}

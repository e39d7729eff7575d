//! Packets between two hosts, in network namespaces: byte for byte what keepalived sends in the same place.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use pointsman_vip::neighbours::{self, AdvertisementListener, ArpListener, FrameSender};
use pointsman_vip::netlink::Lifetime;
use pointsman_vip::raw::{self, Family, VrrpSender, VrrpSocket};
use pointsman_vrrp::advert::Envelope;
use socket2::{Domain, Protocol, Socket, Type};
use support::{Host, inside, ip, patient_netlink, runtime};
use tokio::time::timeout;

/// Frames captured from keepalived: name, tab, hex.
const VECTORS: &str = include_str!("../core/tests/vectors/keepalived-2.2.7.tsv");
const ETHERNET: usize = 14;
const LONG: Duration = Duration::from_secs(10);

/// A VRRP frame of keepalived.
struct Vector {
    name: &'static str,
    frame: Vec<u8>,
    family: Family,
    source: IpAddr,
    destination: IpAddr,
}

impl Vector {
    fn payload(&self) -> &[u8] {
        match self.family {
            Family::V4 => &self.frame[ETHERNET + 20..],
            Family::V6 => &self.frame[ETHERNET + 40..],
        }
    }

    fn is_unicast(&self) -> bool {
        !self.destination.is_multicast()
    }

    /// The frame without what every sender chooses for itself: number and checksum of the IPv4 header, flow label. keepalived's
    /// IPv6 unicast has a hop limit of 64; ours is 255, as the standard wants it.
    fn without_chance(&self, frame: &[u8]) -> Vec<u8> {
        let mut frame = frame.to_vec();
        match self.family {
            Family::V4 => {
                frame[ETHERNET + 4..ETHERNET + 6].fill(0);
                frame[ETHERNET + 10..ETHERNET + 12].fill(0);
            }
            Family::V6 => {
                frame[ETHERNET + 1] &= 0xf0;
                frame[ETHERNET + 2..ETHERNET + 4].fill(0);
                if self.is_unicast() {
                    frame[ETHERNET + 7] = 0;
                }
            }
        }
        frame
    }
}

fn frame(name: &str) -> Vec<u8> {
    let line = VECTORS.lines().find(|line| line.split('\t').next() == Some(name)).unwrap();
    bytes(line.split('\t').nth(1).unwrap())
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// All that are VRRP and come from the interface's own Ethernet address, as ours do.
fn vectors() -> Vec<Vector> {
    let own = |name: &str| name.starts_with("VRRP") && !name.contains("VMAC");
    let read = |line: &'static str| {
        let (name, hex) = line.split_once('\t').unwrap();
        own(name).then(|| {
            let frame = bytes(hex);
            let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap());
            let v6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
            let (family, source, destination) = if frame[12..14] == [0x08, 0x00] {
                (Family::V4, v4(ETHERNET + 12), v4(ETHERNET + 16))
            } else {
                (Family::V6, v6(ETHERNET + 8), v6(ETHERNET + 24))
            };
            Vector { name, frame, family, source, destination }
        })
    };
    VECTORS.lines().filter_map(read).collect()
}

/// All frames that arrive at the other host.
fn capture(host: &Host) -> Socket {
    host.within(|| {
        let all = Protocol::from(i32::from(0x0003_u16.to_be())); // ETH_P_ALL
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(all)).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        socket
    })
}

/// The next captured frame that carries VRRP.
fn next_vrrp(capture: &mut Socket) -> Vec<u8> {
    loop {
        let mut buffer = vec![0; 4096];
        let length = capture.read(&mut buffer).expect("a frame arrives");
        buffer.truncate(length);
        let is_vrrp = match buffer.get(12..14) {
            Some([0x08, 0x00]) => buffer.get(ETHERNET + 9) == Some(&112),
            Some([0x86, 0xdd]) => buffer.get(ETHERNET + 6) == Some(&112),
            _ => false,
        };
        if is_vrrp {
            return buffer;
        }
    }
}

/// Gives an interface the Ethernet address and IP address of a vector.
fn take_identity(run: impl Fn(&str), interface: &str, mac: &[u8], address: IpAddr) {
    let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    run(&format!("link set {interface} down"));
    run(&format!("link set {interface} address {}", mac.join(":")));
    run(&format!("link set {interface} up"));
    let (prefix, option) = if address.is_ipv4() { (24, "") } else { (64, "nodad") };
    run(&format!("address replace {address}/{prefix} dev {interface} {option}"));
}

/// The kernel takes a moment to let packets come from a new address.
fn wait_until_usable(address: IpAddr) {
    let is_usable = || {
        let link = patient_netlink().link("v0").unwrap().unwrap();
        link.addresses.iter().any(|known| known.net.addr() == address && known.usable)
    };
    let deadline = Instant::now() + LONG;
    while !is_usable() {
        assert!(Instant::now() < deadline, "{address} cannot be used");
        std::thread::sleep(Duration::from_millis(2));
    }
}

async fn receive(socket: &mut VrrpSocket) -> (Envelope, Vec<u8>) {
    let mut buffer = [0; raw::BUFFER];
    let find = async {
        loop {
            if let Some((envelope, payload)) = socket.try_receive(&mut buffer).unwrap() {
                return (envelope, payload.to_vec());
            }
            socket.readable().await.unwrap();
        }
    };
    timeout(LONG, find).await.expect("a packet arrives")
}

fn index(name: &str) -> u32 {
    patient_netlink().link(name).unwrap().unwrap().index
}

#[test]
fn what_we_send_is_what_keepalived_sends() {
    if !inside("what_we_send_is_what_keepalived_sends") {
        return;
    }
    let vectors = vectors();
    assert!(vectors.len() >= 12, "{} vectors", vectors.len());
    for vector in vectors {
        let host = Host::connected();
        take_identity(ip, "v0", &vector.frame[6..12], vector.source);
        if vector.is_unicast() {
            take_identity(|arguments| host.run(arguments), "v1", &vector.frame[..6], vector.destination);
        }
        wait_until_usable(vector.source);
        let mut captured = capture(&host);
        let there = host.within(|| index("v1"));
        let destination = vector.destination;
        runtime().block_on(async {
            // Its socket is watched by our runtime, and lives there.
            let handle = tokio::runtime::Handle::current();
            let mut other = host.within(|| {
                let _runtime = handle.enter();
                VrrpSocket::open(vector.family, there, "v1").unwrap()
            });
            let mut socket = VrrpSocket::open(vector.family, index("v0"), "v0").unwrap();
            socket.send(vector.source, destination, vector.payload()).unwrap();

            let expected = vector.without_chance(&vector.frame);
            let seen = next_vrrp(&mut captured);
            assert_eq!(vector.without_chance(&seen), expected, "{}", vector.name);
            if vector.family == Family::V6 {
                assert_eq!(seen[ETHERNET + 7], 255, "{}", vector.name);
            }
            let (envelope, payload) = receive(&mut other).await;
            assert_eq!(payload, vector.payload(), "{}", vector.name);
            assert_eq!(envelope, Envelope { source: vector.source, destination, hop_limit: 255 });
            // Nothing comes back to us.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let mut buffer = [0; raw::BUFFER];
            assert_eq!(socket.try_receive(&mut buffer).unwrap(), None, "{}", vector.name);

            // The guard's socket says the same.
            let sender = VrrpSender::open().unwrap();
            sender.send(index("v0"), "v0", envelope, vector.payload()).unwrap();
            let seen = next_vrrp(&mut captured);
            assert_eq!(vector.without_chance(&seen), expected, "{}", vector.name);
        });
        drop(host);
        ip("link del v0");
        println!("{}: as keepalived", vector.name);
    }
}

#[test]
fn sockets_outlive_an_interface_that_is_down_for_a_while() {
    if !inside("sockets_outlive_an_interface_that_is_down_for_a_while") {
        return;
    }
    let host = Host::connected();
    ip("address add 10.99.0.11/24 dev v0");
    host.run("address add 10.99.0.12/24 dev v1");
    let there = host.within(|| index("v1"));
    runtime().block_on(async {
        let handle = tokio::runtime::Handle::current();
        let (mut other, mut arp) = host.within(|| {
            let _runtime = handle.enter();
            let arp = ArpListener::open(there, "v1", &[Ipv4Addr::new(10, 99, 0, 50)]).unwrap();
            (VrrpSocket::open(Family::V4, there, "v1").unwrap(), arp)
        });
        let mut socket = VrrpSocket::open(Family::V4, index("v0"), "v0").unwrap();
        let frames = FrameSender::open(index("v0"), "v0").unwrap();
        let source: IpAddr = "10.99.0.11".parse().unwrap();
        for interface in ["v0", "v1"] {
            let run = |arguments: &str| if interface == "v0" { ip(arguments) } else { host.run(arguments) };
            run(&format!("link set {interface} down"));
            let _ = socket.send(source, Family::V4.group(), b"lost");
            let _ = frames.send(&frame("Gratuitous ARP"));
            let mut buffer = [0; raw::BUFFER];
            assert_eq!(other.try_receive(&mut buffer).unwrap(), None);
            assert_eq!(arp.try_receive(&mut buffer).unwrap(), None);
            run(&format!("link set {interface} up"));
            wait_for_carrier(&host).await;
            socket.send(source, Family::V4.group(), b"found").unwrap();
            assert_eq!(receive(&mut other).await.1, b"found");
            frames.send(&frame("Gratuitous ARP")).unwrap();
            assert_eq!(receive_arp(&mut arp).await, frame("Gratuitous ARP"));
        }
    });
}

async fn wait_for_carrier(host: &Host) {
    let carrier = |name: &str| {
        let link = patient_netlink().link(name).unwrap().unwrap();
        link.up && link.carrier
    };
    while !(carrier("v0") && host.within(|| carrier("v1"))) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The queue of the interface is put in place a moment later.
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn receive_arp(listener: &mut ArpListener) -> Vec<u8> {
    let mut buffer = [0; neighbours::BUFFER];
    let find = async {
        loop {
            if let Some(frame) = listener.try_receive(&mut buffer).unwrap() {
                return frame.to_vec();
            }
            listener.readable().await.unwrap();
        }
    };
    timeout(LONG, find).await.expect("an ARP frame arrives")
}

#[test]
fn claims_are_heard_by_the_neighbours() {
    if !inside("claims_are_heard_by_the_neighbours") {
        return;
    }
    let host = Host::connected();
    let there = host.within(|| index("v1"));
    runtime().block_on(async {
        let handle = tokio::runtime::Handle::current();
        let (mut arp, mut advertisements) = host.within(|| {
            let _runtime = handle.enter();
            let arp = ArpListener::open(there, "v1", &[Ipv4Addr::new(10, 99, 0, 50)]).unwrap();
            (arp, AdvertisementListener::open(there, "v1").unwrap())
        });
        let sender = FrameSender::open(index("v0"), "v0").unwrap();
        let mut of_another = frame("Gratuitous ARP");
        of_another[ETHERNET + 17] = 51; // the last byte of the sender's address
        sender.send(&of_another).unwrap();
        sender.send(&frame("Gratuitous ARP")).unwrap();
        assert_eq!(receive_arp(&mut arp).await, frame("Gratuitous ARP"), "the other one is not for us");

        let advertisement = frame("Unsolicited NA global VIP");
        sender.send(&advertisement).unwrap();
        let mut buffer = [0; neighbours::BUFFER];
        let source = "fd99::50".parse::<Ipv6Addr>().unwrap();
        let find = async {
            loop {
                while let Some(heard) = advertisements.try_receive(&mut buffer).unwrap() {
                    // The kernels greet each other, too.
                    if heard.source == source {
                        assert_eq!((heard.hop_limit, heard.message), (255, &advertisement[ETHERNET + 40..]));
                        return;
                    }
                }
                advertisements.readable().await.unwrap();
            }
        };
        timeout(LONG, find).await.expect("an advertisement arrives");
    });
}

#[test]
fn the_neighbours_send_to_whoever_claimed_last() {
    if !inside("the_neighbours_send_to_whoever_claimed_last") {
        return;
    }
    let host = Host::connected();
    host.run("address add 10.99.0.99/24 dev v1");
    host.run("neigh add 10.99.0.50 lladdr 02:00:00:00:00:77 nud stale dev v1");
    let netlink = patient_netlink();
    netlink.add(index("v0"), "10.99.0.50/24".parse().unwrap(), Lifetime::HELD).unwrap();
    FrameSender::open(index("v0"), "v0").unwrap().send(&frame("Gratuitous ARP")).unwrap();
    let known = || host.within(|| support::ip_says("neigh show 10.99.0.50 dev v1"));
    let deadline = Instant::now() + LONG;
    while !known().contains("02:00:00:00:00:01") {
        assert!(Instant::now() < deadline, "{}", known());
    }
}

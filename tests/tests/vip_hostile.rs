//! A stranger on the network: forged adverts, replayed and senseless signals, a rain of ARP. The address does not move, nobody
//! starts a quarrel, and people are told.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::lab::packet::{PEERS_PORT, datagram, gratuitous_arp, unsolicited_advertisement};
use pointsman_tests::lab::{
    self, Forged, Group, HOSTS, Lab, Meter, Packet, SOON, STRANGER, Sent, Software, VIRTUAL, VIRTUAL6, Vip,
    say, wait,
};
use serde_json::Value;

/// What a stranger may cost a client.
const GAP: Duration = Duration::from_millis(60);

fn software() -> Software {
    Software::Pointsman(Vip { preempt_delay_ms: 300, ..Vip::default() })
}

fn three(lab: &mut Lab, group: &Group) -> Result<Meter> {
    lab.start_all(&std::array::from_fn::<_, HOSTS, _>(|_| software()), group)
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => unreachable!("the lab's IPv4"),
    }
}

/// The kinds of the alarms of lb1's virtual router.
fn alarms(lab: &Lab) -> Result<Vec<String>> {
    let status = lab.status(0)?;
    let alarms = status.pointer("/routers/0/alarms").and_then(Value::as_array).context("no alarms")?;
    Ok(alarms.iter().filter_map(|alarm| Some(alarm.get("kind")?.as_str()?.to_owned())).collect())
}

fn has_alarm(lab: &Lab, kinds: &[&str]) -> Result<()> {
    wait::until(format!("one of the alarms {kinds:?}"), SOON, || {
        let alarms = alarms(lab)?;
        ensure!(alarms.iter().any(|alarm| kinds.contains(&alarm.as_str())), "{alarms:?}");
        Ok(())
    })
}

/// How many adverts lb1 has rejected. A status may be a second old.
fn rejected(lab: &Lab) -> Result<u64> {
    let status = lab.status(0)?;
    let rejected = status.pointer("/routers/0/adverts/rejected").and_then(Value::as_object);
    Ok(rejected.context("no rejected adverts")?.values().filter_map(Value::as_u64).sum())
}

/// Nothing has moved since `at`, and the client has hardly noticed.
fn unmoved(lab: &Lab, meter: &Meter, at: Instant) -> Result<()> {
    lab.is_quiet(0, meter)?;
    let changes = lab.watch.changes(VIRTUAL, at);
    ensure!(changes.is_empty(), "the address moved\n{}", lab.watch.story(VIRTUAL, at));
    let gap = meter.gap(at)?;
    ensure!(gap.length <= GAP + meter.stall(at), "{gap:?}");
    Ok(())
}

/// Sends what is wrong for a while; lb1 counts each, says so, and keeps the address.
fn is_refused(lab: &Lab, meter: &Meter, what: &str, advert: &Forged, kinds: &[&str]) -> Result<()> {
    let frame = advert.frame();
    let at = Instant::now();
    let before = rejected(lab)?;
    let mut sent = 0;
    wait::throughout(format!("lb1 holding in spite of {what}"), Duration::from_millis(600), || {
        lab.forge(&frame)?;
        sent += 1;
        lab.has_only(0, VIRTUAL)
    })?;
    wait::until(format!("{what}: {sent} adverts to be counted"), SOON, || {
        let now = rejected(lab)?;
        ensure!(now >= before + sent, "{before} before, {now} now");
        Ok(())
    })?;
    has_alarm(lab, kinds).context(what.to_owned())?;
    unmoved(lab, meter, at).context(what.to_owned())
}

#[test]
fn forged_adverts_of_version_3() -> Result<()> {
    lab::run(|lab| {
        let other = IpAddr::from([10, 0, 0, 111]);
        let group = Group { addresses: vec![(VIRTUAL, 24), (other, 24)], ..Group::v3(100) };
        // The client uses the last address of a group.
        for host in 0..HOSTS {
            lab.start(host, &software(), &group, &lab::PRIORITIES)?;
        }
        lab.wait_holder(0, VIRTUAL, SOON)?;
        let meter = lab.meter(VIRTUAL)?;
        lab.wait_quiet(0, &meter, SOON)?;
        let source = Lab::address(STRANGER, VIRTUAL);
        // Better than lb1: one that was believed would take the address away.
        let right =
            Forged { priority: 254, ..Forged::new(lab.station(STRANGER).mac, source, 51, &[VIRTUAL, other]) };
        is_refused(lab, &meter, "a routed one", &Forged { ttl: 254, ..right.clone() }, &["refused"])?;
        is_refused(
            lab,
            &meter,
            "a wrong checksum",
            &Forged { checksum_off_by: 1, ..right.clone() },
            &["refused"],
        )?;
        is_refused(lab, &meter, "trailing bytes", &Forged { trailing: 8, ..right.clone() }, &["refused"])?;
        let v2 = Forged { version: 2, interval: 1, ..right.clone() };
        is_refused(lab, &meter, "the other version", &v2, &["refused"])?;
        let foreign = Forged { addresses: vec![IpAddr::from([10, 0, 0, 77])], ..right.clone() };
        let at = Instant::now();
        wait::throughout("lb1 holding in spite of another group", Duration::from_millis(600), || {
            lab.forge(&foreign.frame())?;
            lab.has_only(0, VIRTUAL)
        })?;
        has_alarm(lab, &["collision"])?;
        unmoved(lab, &meter, at)?;
        // Who has fewer addresses is somebody of this group with an old configuration: heard, and spoken of.
        let at = Instant::now();
        let fewer = Forged { addresses: vec![VIRTUAL], priority: 200, ..right.clone() };
        wait::until("the alarm of unequal addresses", SOON, || {
            lab.forge(&fewer.frame())?;
            let alarms = alarms(lab)?;
            ensure!(alarms.iter().any(|alarm| alarm == "other-addresses"), "{alarms:?}");
            Ok(())
        })?;
        unmoved(lab, &meter, at)?;
        // Another virtual router is none of our business, and it is shown.
        let at = Instant::now();
        let neighbour =
            Forged { router_id: 77, addresses: vec![IpAddr::from([10, 0, 0, 77])], ..right.clone() };
        wait::until("the other virtual router to be shown", SOON, || {
            lab.forge(&neighbour.frame())?;
            let status = lab.status(0)?;
            let foreign = status.pointer("/foreign/0/router_id").and_then(Value::as_u64);
            ensure!(foreign == Some(77), "{:?}", status.get("foreign"));
            Ok(())
        })?;
        unmoved(lab, &meter, at)?;
        // What is right is believed: multicast VRRP has no way to know better.
        wait::until("lb1 to step down", SOON, || {
            lab.forge(&right.frame())?;
            ensure!(!lab.watch.holders(VIRTUAL).contains(&0), "it holds");
            Ok(())
        })
    })
}

#[test]
fn forged_adverts_of_version_2() -> Result<()> {
    lab::run(|lab| {
        let meter = three(lab, &Group::v2(Some("s3cr3t12")))?;
        let source = Lab::address(STRANGER, VIRTUAL);
        let right = Forged {
            version: 2,
            priority: 254,
            interval: 1,
            password: Some(*b"s3cr3t12"),
            ..Forged::new(lab.station(STRANGER).mac, source, 51, &[VIRTUAL])
        };
        let wrong = Forged { password: Some(*b"s3cr3t13"), ..right.clone() };
        is_refused(lab, &meter, "a wrong password", &wrong, &["refused"])?;
        is_refused(lab, &meter, "no password", &Forged { password: None, ..right.clone() }, &["refused"])?;
        is_refused(lab, &meter, "another interval", &Forged { interval: 3, ..right.clone() }, &["refused"])?;
        // What is right is believed: that is how far a password goes that everybody can read.
        wait::until("lb1 to step down", SOON, || {
            lab.forge(&right.frame())?;
            ensure!(!lab.watch.holders(VIRTUAL).contains(&0), "it holds");
            Ok(())
        })
    })
}

/// The payload of a UDP datagram in a frame.
fn payload(frame: &[u8]) -> &[u8] {
    frame.get(42..).unwrap_or_default()
}

#[test]
fn senseless_and_replayed_signals() -> Result<()> {
    lab::run(|lab| {
        let meter = three(lab, &Group::v3(100))?;
        let stranger = lab.station(STRANGER).mac;
        let host = |host: usize| (lab.station(host).mac, v4(Lab::address(host, VIRTUAL)));
        let (first, second, third) = (host(0), host(1), host(2));
        let begun = Instant::now();
        // What lb1 says while it holds the address.
        let recorded = wait::until("reports of lb1", SOON, || {
            let reports =
                lab.watch.sent(begun, |sent: &Sent| sent.port == 0 && sent.packet == Packet::Report);
            ensure!(reports.len() >= 20, "{}", reports.len());
            Ok(reports)
        })?;
        // Garbage of every size, as from each of the others.
        for length in (0..1_400).step_by(7) {
            let garbage: Vec<u8> = (0..length).map(|n: usize| u8::try_from(n * 31 % 251).unwrap()).collect();
            for from in [second, third, (stranger, v4(Lab::address(STRANGER, VIRTUAL)))] {
                lab.forge(&datagram((stranger, from.1), first, PEERS_PORT, &garbage))?;
            }
        }
        // Connections that say nothing, nonsense, or too much.
        let target = SocketAddr::from((Lab::address(0, VIRTUAL), PEERS_PORT));
        let connections = lab.station(STRANGER).namespace.within(|| {
            let open = |_| Ok(TcpStream::connect_timeout(&target, Duration::from_secs(2))?);
            (0..100).map(open).collect::<Result<Vec<TcpStream>>>()
        });
        // It may refuse them all.
        let mut connections = connections.unwrap_or_default();
        for (number, connection) in connections.iter_mut().enumerate() {
            connection.set_write_timeout(Some(Duration::from_millis(100)))?;
            let nonsense = vec![u8::try_from(number).unwrap(); number * 100];
            let _ = connection.write_all(&nonsense);
        }
        wait::throughout("lb1 holding", Duration::from_secs(1), || lab.has_only(0, VIRTUAL))?;
        unmoved(lab, &meter, begun)?;
        // lb1 dies; the stranger goes on to say in its name that it holds the address.
        let replay = |lab: &Lab| -> Result<()> {
            for report in &recorded {
                for to in [second, third] {
                    lab.forge(&datagram((stranger, first.1), to, PEERS_PORT, payload(&report.frame)))?;
                }
            }
            Ok(())
        };
        let at = lab.kill(0)?;
        let answer = wait::until("lb2 to answer", SOON, || {
            replay(lab)?;
            meter.first_of_another(0, at).context("nobody does")
        })?;
        let took = answer.at.duration_since(at);
        say(&format!("kill -9 with replayed reports: {:.1} ms", took.as_secs_f64() * 1e3));
        ensure!(answer.host == 1 && took <= GAP + meter.stall(at), "{answer:?} after {took:?}");
        wait::throughout("lb2 holding", Duration::from_secs(3), || {
            replay(lab)?;
            ensure!(lab.watch.holders(VIRTUAL).contains(&1), "it does not");
            Ok(())
        })?;
        // It comes back, and what it said in its former life counts no more.
        lab.start(0, &software(), &Group::v3(100), &lab::PRIORITIES)?;
        wait::until("lb1 to take back what is its", SOON, || {
            replay(lab)?;
            lab.is_quiet(0, &meter)
        })
    })
}

/// A stranger says all the time that it has the address: lb1 contradicts, but does not quarrel.
fn rain(lab: &mut Lab, group: &Group, claim: &[u8]) -> Result<()> {
    let meter = three(lab, group)?;
    let address = meter.target().ip();
    let at = Instant::now();
    let length = Duration::from_secs(3);
    let mut drops = 0;
    wait::throughout("lb1 holding", length, || {
        drops += 1;
        lab.forge(claim)?;
        lab.has_only(0, address)
    })?;
    let answers = lab.watch.claims(0, address, at).len();
    say(&format!("{drops} claims of a stranger, {answers} announcements"));
    // At least it tries; at most one for every 50 ms, and what answers the questions of the client.
    ensure!(answers >= 3, "{answers} announcements");
    ensure!(answers <= 120, "{answers} announcements in {length:?}: a quarrel");
    has_alarm(lab, &["claimed-by-stranger"])?;
    // The last word is ours, soon.
    let over = Instant::now();
    lab.wait_quiet(0, &meter, Duration::from_secs(2))?;
    say(&format!("the client is back {:.0} ms after the rain", over.elapsed().as_secs_f64() * 1e3));
    let quiet = Instant::now();
    wait::throughout("quiet", Duration::from_secs(1), || lab.is_quiet(0, &meter))?;
    let answers = lab.watch.claims(0, address, quiet).len();
    ensure!(answers <= 4, "{answers} announcements after the rain");
    ensure!(lab.watch.changes(address, at).is_empty(), "the address moved");
    // Once is answered at once.
    let at = lab.forge(claim)?;
    lab.wait_quiet(0, &meter, Duration::from_secs(2))?;
    let gap = meter.gap(at)?;
    ensure!(gap.length <= Duration::from_millis(150) + meter.stall(at), "{gap:?}");
    Ok(())
}

#[test]
fn a_rain_of_claims_starts_no_quarrel() -> Result<()> {
    lab::run(|lab| {
        let claim = gratuitous_arp(lab.station(STRANGER).mac, v4(VIRTUAL));
        rain(lab, &Group::v3(100), &claim)
    })
}

#[test]
fn nor_does_one_of_neighbour_advertisements() -> Result<()> {
    lab::run(|lab| {
        let IpAddr::V6(address) = VIRTUAL6 else { unreachable!("the lab's IPv6") };
        let claim = unsolicited_advertisement(lab.station(STRANGER).mac, address);
        rain(lab, &Group::v6(100), &claim)
    })
}

#[test]
fn a_thief_is_noticed() -> Result<()> {
    lab::run(|lab| {
        let meter = three(lab, &Group::v3(100))?;
        let at = lab.remove_address(0, VIRTUAL)?;
        lab.wait_quiet(0, &meter, SOON)?;
        let gap = meter.gap(at)?;
        say(&format!("removed by a stranger: {:.1} ms", gap.length.as_secs_f64() * 1e3));
        ensure!(gap.length <= GAP + meter.stall(at), "{gap:?}");
        wait::until("the alarm of a thief", SOON, || {
            let _ = lab.remove_address(0, VIRTUAL);
            let alarms = alarms(lab)?;
            ensure!(alarms.iter().any(|alarm| alarm == "address-removed"), "{alarms:?}");
            Ok(())
        })?;
        lab.wait_holder(0, VIRTUAL, SOON)?;
        lab.wait_quiet(0, &meter, SOON)
    })
}

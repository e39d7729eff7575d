//! The laboratory itself, proved on a router that is known: Debian's keepalived against its like.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pointsman_tests::lab::{
    self, CLIENT, Group, HOSTS, Lab, Meter, PRIORITIES, SOON, STRANGER, Side, Software, VIRTUAL, packet, say,
    wait,
};

/// Three keepalived of which the first holds the address, and a client.
fn three(lab: &mut Lab) -> Result<Meter> {
    lab.start_all(&[const { Software::Keepalived }; HOSTS], &Group::v3(100))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Keepalived's known times, in milliseconds, with room for a busy machine above.
fn within(what: &str, time: Duration, low: u64, high: u64) -> Result<()> {
    say(&format!("keepalived, {what}: {:.1} ms", ms(time)));
    let range = Duration::from_millis(low)..=Duration::from_millis(high);
    ensure!(range.contains(&time), "{what}: {time:?} is not in {range:?}");
    Ok(())
}

#[test]
fn a_killed_keepalived_leaves_its_address_behind() -> Result<()> {
    lab::measure(|lab| {
        let meter = three(lab)?;
        let at = lab.kill(0)?;
        let answer = wait::until("another host to answer", SOON, || {
            meter.first_of_another(0, at).ok_or_else(|| anyhow::anyhow!("none has"))
        })?;
        ensure!(answer.host == 1, "lb{} answered", answer.host + 1);
        within("kill -9 of the whole daemon, another answers after", answer.at.duration_since(at), 180, 600)?;
        // The dead host keeps it for ever: two holders, and nobody says priority 0.
        wait::throughout("two holders", Duration::from_secs(1), || {
            let holders = lab.watch.holders(VIRTUAL);
            ensure!(holders == [0, 1], "{holders:?}");
            Ok(())
        })?;
        ensure!(lab.watch.longest_overlap(VIRTUAL, at) > Duration::from_millis(900), "overlap");
        ensure!(lab.watch.adverts(0, 0, at).is_empty(), "the dead sent priority 0");
        lab.neighbour_is(1, VIRTUAL)
    })
}

#[test]
fn a_stopped_keepalived_says_so_once() -> Result<()> {
    lab::measure(|lab| {
        let meter = three(lab)?;
        let at = lab.stop(0)?;
        lab.wait_quiet(1, &meter, SOON)?;
        let gap = meter.gap(at)?;
        ensure!(gap.by == Some(1), "{gap:?}");
        within("SIGTERM, gap", gap.length, 20, 300)?;
        let farewells = lab.watch.adverts(0, 0, at);
        ensure!(farewells.len() == 1, "{} adverts of priority 0", farewells.len());
        // First priority 0, then the address goes: the order that pointsman-vip has the other way round.
        let left = lab.watch.when(0, VIRTUAL, false, at).unwrap();
        ensure!(farewells.iter().all(|farewell| *farewell <= left), "{}", lab.watch.story(VIRTUAL, at));
        Ok(())
    })
}

#[test]
fn links_and_holes_are_what_they_are_called() -> Result<()> {
    lab::measure(|lab| {
        let meter = three(lab)?;
        // A partition: each side has its own holder, and the client that of its side.
        let at = lab.move_to(0, Side::Other)?;
        lab.move_to(CLIENT, Side::Other)?;
        wait::until("lb2 to take over on its side", SOON, || {
            let holders = lab.watch.holders(VIRTUAL);
            ensure!(holders == [0, 1], "{holders:?}");
            Ok(())
        })?;
        let hosts = meter.hosts(at);
        ensure!(hosts == [0], "the client was answered by {hosts:?}");
        // Back to where nobody can mislead the client: the heal of keepalived is a story of its own.
        lab.stop(1)?;
        lab.stop(2)?;
        lab.move_to(0, Side::Main)?;
        lab.move_to(CLIENT, Side::Main)?;
        for host in [1, 2] {
            lab.start(host, &Software::Keepalived, &Group::v3(100), &PRIORITIES)?;
        }
        lab.wait_quiet(0, &meter, SOON)?;
        // The interface down: keepalived sees it and lets go.
        let at = lab.set_link(0, false)?;
        lab.wait_quiet(1, &meter, SOON)?;
        within("link down, gap", meter.gap(at)?.length, 180, 600)?;
        lab.set_link(0, true)?;
        lab.wait_quiet(0, &meter, SOON)?;
        // The cable out.
        let at = lab.set_carrier(0, false)?;
        lab.wait_quiet(1, &meter, SOON)?;
        within("no carrier, gap", meter.gap(at)?.length, 180, 600)?;
        lab.set_carrier(0, true)?;
        lab.wait_quiet(0, &meter, SOON)?;
        // Frames vanish, and the host does not notice: it keeps the address.
        let at = lab.move_to(0, Side::Nowhere)?;
        wait::until("lb2 to take over", SOON, || lab.neighbour_is(1, VIRTUAL))?;
        within("host dead, gap", meter.gap(at)?.length, 180, 600)?;
        ensure!(lab.watch.holders(VIRTUAL) == [0, 1], "{:?}", lab.watch.holders(VIRTUAL));
        // It still sends, as the port sees.
        wait::until("adverts of lb1", SOON, || {
            ensure!(!lab.watch.adverts(0, 250, at).is_empty(), "none");
            Ok(())
        })?;
        Ok(())
    })
}

#[test]
fn frozen_is_not_gone() -> Result<()> {
    lab::run(|lab| {
        let meter = three(lab)?;
        let at = lab.daemon(0)?.freeze()?;
        wait::until("lb2 to take over", SOON, || lab.neighbour_is(1, VIRTUAL))?;
        ensure!(lab.watch.holders(VIRTUAL) == [0, 1], "{:?}", lab.watch.holders(VIRTUAL));
        lab.daemon(0)?.thaw()?;
        lab.wait_holder(0, VIRTUAL, SOON)?;
        ensure!(meter.changes(at) > 0, "the client saw nothing");
        // Only its child: the parent starts another, which removes the address first.
        let at = lab.daemon(0)?.kill_worker()?;
        wait::until("the address to leave lb1", SOON, || {
            lab.watch.when(0, VIRTUAL, false, at).map(drop).ok_or_else(|| anyhow::anyhow!("it is there"))
        })?;
        lab.wait_holder(0, VIRTUAL, SOON)
    })
}

#[test]
fn the_stranger_is_heard() -> Result<()> {
    lab::run(|lab| {
        let meter = three(lab)?;
        let stranger = lab.station(STRANGER).mac;
        let at = Instant::now();
        let source = Lab::address(STRANGER, VIRTUAL);
        let advert = lab::Forged::new(stranger, source, 51, &[VIRTUAL]);
        // Whatever the address and however often: keepalived believes who has a higher priority.
        let right = lab::Forged { priority: 255, ..advert.clone() }.frame();
        wait::until("lb1 to step down", SOON, || {
            lab.forge(&right)?;
            ensure!(!lab.watch.holders(VIRTUAL).contains(&0), "it holds");
            Ok(())
        })?;
        ensure!(!lab.watch.adverts(STRANGER, 255, at).is_empty(), "the watch has not seen the stranger");
        lab.wait_quiet(0, &meter, SOON)?;
        // With a wrong checksum or a wrong TTL it does not. (Under such a rain lb2 may miss the adverts of lb1.)
        let off = lab::Forged { priority: 255, checksum_off_by: 1, ..advert.clone() }.frame();
        let routed = lab::Forged { priority: 255, ttl: 254, ..advert }.frame();
        wait::throughout("lb1 holding", Duration::from_millis(500), || {
            lab.forge(&off)?;
            lab.forge(&routed)?;
            ensure!(lab.watch.holders(VIRTUAL).contains(&0), "it does not hold");
            Ok(())
        })?;
        // The client believes any announcement.
        let std::net::IpAddr::V4(address) = VIRTUAL else { unreachable!() };
        lab.forge(&packet::gratuitous_arp(stranger, address))?;
        wait::until("the client to be misled", SOON, || {
            let mac = lab.neighbour(VIRTUAL)?;
            ensure!(mac.as_deref() == Some(&stranger.to_string()), "{mac:?}");
            Ok(())
        })
    })
}

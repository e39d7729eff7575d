//! Addresses and interfaces, in network namespaces.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::{Duration, Instant};

use ipnet::IpNet;
use pointsman_vip::netlink::{Lifetime, Netlink, NetlinkError, NetlinkEvent, NetlinkEvents, REFRESH};
use support::{cable, inside, ip, ip_says, patient_netlink, runtime};
use tokio::time::timeout;

const V4: &str = "10.99.0.50/24";
const V6: &str = "fd99::50/64";

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// The next event that is wanted, within a time that is long for any machine.
async fn next(events: &mut NetlinkEvents, mut wanted: impl FnMut(&NetlinkEvent) -> bool) -> NetlinkEvent {
    let find = async {
        loop {
            let event = events.next().await.unwrap();
            if wanted(&event) {
                return event;
            }
        }
    };
    timeout(Duration::from_secs(10), find).await.expect("the kernel tells it")
}

fn is_removal(event: &NetlinkEvent, wanted: IpNet) -> bool {
    matches!(event, NetlinkEvent::AddressRemoved { address, .. } if address.net == wanted)
}

fn count(netlink: &Netlink, index: u32, wanted: IpNet) -> usize {
    netlink.addresses(index).unwrap().iter().filter(|address| address.net.addr() == wanted.addr()).count()
}

#[test]
fn an_address_lives_while_it_is_refreshed_and_no_longer() {
    if !inside("an_address_lives_while_it_is_refreshed_and_no_longer") {
        return;
    }
    cable();
    runtime().block_on(async {
        let netlink = patient_netlink();
        let index = netlink.link("v0").unwrap().unwrap().index;
        let mut events = NetlinkEvents::open().unwrap();
        for round in 0..7 {
            for text in [V4, V6] {
                netlink.add(index, net(text), Lifetime::HELD).unwrap();
                assert_eq!(count(&netlink, index, net(text)), 1, "{text}, round {round}");
            }
            tokio::time::sleep(REFRESH).await;
        }
        let address = netlink.addresses(index).unwrap().into_iter().find(|a| a.net == net(V6)).unwrap();
        assert!(address.usable, "without a check that nobody else has it");
        for text in [V4, V6] {
            netlink.add(index, net(text), Lifetime::HELD).unwrap();
        }
        let last = Instant::now();
        for text in [V4, V6] {
            // Whichever comes first is gone when the other one is asked for.
            let gone = |event: &NetlinkEvent| is_removal(event, net(V4)) || is_removal(event, net(V6));
            next(&mut events, gone).await;
            let after = last.elapsed();
            println!("one address (of {text}) gone by itself after {} ms", after.as_millis());
            assert!(after > Duration::from_millis(1500), "{after:?}");
            // At most 2.5 s on a machine that is not busy: two, and what the kernel's timers add.
            assert!(after < Duration::from_secs(4), "{after:?}");
        }
        assert_eq!(count(&netlink, index, net(V4)) + count(&netlink, index, net(V6)), 0);
    });
}

#[test]
fn the_route_of_our_own_address_does_not_get_our_lifetime() {
    if !inside("the_route_of_our_own_address_does_not_get_our_lifetime") {
        return;
    }
    cable();
    // As a router's advertisement gives it: an address and a route that live for a time.
    ip("-6 address add fd99::b/64 dev v0 valid_lft 1000 preferred_lft 1000 nodad");
    let netlink = patient_netlink();
    let index = netlink.link("v0").unwrap().unwrap().index;
    netlink.add(index, net(V6), Lifetime::HELD).unwrap();
    netlink.add(index, net(V6), Lifetime::HELD).unwrap();
    std::thread::sleep(Duration::from_millis(3500));
    assert_eq!(count(&netlink, index, net(V6)), 0);
    let routes = ip_says("-6 route show dev v0");
    assert!(routes.contains("fd99::/64"), "{routes}");
    // With no other address, ours brings the route.
    netlink.add(index, net("fd98::50/64"), Lifetime::HELD).unwrap();
    let routes = ip_says("-6 route show dev v0");
    assert!(routes.contains("fd98::/64"), "{routes}");
}

#[test]
fn an_ipv6_address_of_ours_is_never_a_source() {
    if !inside("an_ipv6_address_of_ours_is_never_a_source") {
        return;
    }
    cable();
    ip("-6 address add fd99::ffff/64 dev v0 nodad");
    let netlink = patient_netlink();
    let index = netlink.link("v0").unwrap().unwrap().index;
    netlink.add(index, net(V6), Lifetime::HELD).unwrap();
    let route = ip_says("-6 route get fd99::51");
    assert!(route.contains("src fd99::ffff"), "{route}");
}

#[test]
fn what_others_do_to_addresses_is_seen() {
    if !inside("what_others_do_to_addresses_is_seen") {
        return;
    }
    cable();
    runtime().block_on(async {
        let mut events = NetlinkEvents::open().unwrap();
        let netlink = patient_netlink();
        let index = netlink.link("v0").unwrap().unwrap().index;
        for text in [V4, V6] {
            netlink.add(index, net(text), Lifetime::HELD).unwrap();
            let added = |event: &NetlinkEvent| {
                matches!(event, NetlinkEvent::AddressAdded { index: of, address } if *of == index && address.net == net(text))
            };
            next(&mut events, added).await;
            ip(&format!("address del {text} dev v0"));
            next(&mut events, |event| is_removal(event, net(text))).await;
            netlink.remove(index, net(text)).expect("what is not there is removed");
        }
        netlink.remove(4711, net(V4)).expect("as is what is on no interface");
    });
}

#[test]
fn what_happens_to_interfaces_is_seen() {
    if !inside("what_happens_to_interfaces_is_seen") {
        return;
    }
    cable();
    ip("address add 10.99.0.11/24 dev v0");
    runtime().block_on(async {
        let mut events = NetlinkEvents::open().unwrap();
        let netlink = patient_netlink();
        let link = netlink.link("v0").unwrap().unwrap();
        assert!(link.up && link.carrier && link.mac.is_some());
        assert_eq!(link.source(false, &[]), Some("10.99.0.11".parse().unwrap()));
        assert_eq!(link.source(false, &[net("10.99.0.11/32")]), None);
        let index = link.index;
        let mut state_is = async |up: bool, carrier: bool| {
            next(&mut events, |event| {
                matches!(event, NetlinkEvent::Link(state)
                    if state.index == index && state.name == "v0" && state.up == up && state.carrier == carrier)
            })
            .await;
        };
        ip("link set v1 down");
        let state = netlink.link_state(index).unwrap().unwrap();
        assert!(state.up && !state.carrier, "at once, even if the event is late");
        state_is(true, false).await;
        ip("link set v1 up");
        state_is(true, true).await;
        ip("link set v0 down");
        state_is(false, false).await;
        ip("link set v0 up");
        state_is(true, true).await;
        ip("link set v0 name other");
        next(&mut events, |event| {
            matches!(event, NetlinkEvent::Link(state) if state.index == index && state.name == "other")
        })
        .await;
        assert!(netlink.link("v0").unwrap().is_none());
        ip("link del other");
        next(&mut events, |event| matches!(event, NetlinkEvent::LinkGone(state) if state.index == index)).await;
        assert!(netlink.link_state(index).unwrap().is_none());
        assert!(netlink.addresses(index).unwrap().is_empty());
    });
}

#[test]
fn a_port_that_leaves_a_bridge_is_not_gone() {
    if !inside("a_port_that_leaves_a_bridge_is_not_gone") {
        return;
    }
    cable();
    ip("link add b0 type bridge");
    runtime().block_on(async {
        let netlink = patient_netlink();
        let mut events = NetlinkEvents::open().unwrap();
        ip("link set v0 master b0");
        ip("link set v0 nomaster");
        ip("link set v0 name last");
        next(&mut events, |event| {
            assert!(!matches!(event, NetlinkEvent::LinkGone(_) | NetlinkEvent::Lagging), "{event:?}");
            matches!(event, NetlinkEvent::Link(state) if state.name == "last")
        })
        .await;
        drop(netlink);
    });
}

#[test]
fn lost_events_are_told() {
    if !inside("lost_events_are_told") {
        return;
    }
    cable();
    runtime().block_on(async {
        let mut events = NetlinkEvents::open().unwrap();
        let netlink = patient_netlink();
        let index = netlink.link("v0").unwrap().unwrap().index;
        let batch: Vec<IpNet> = (1..=20).map(|host| net(&format!("10.98.0.{host}/24"))).collect();
        let mut added = 0;
        let mut lost = false;
        while !lost {
            for _ in 0..200 {
                netlink.add_all(index, &batch, Lifetime::HELD).unwrap();
            }
            added += 200 * batch.len();
            assert!(added < 1_000_000, "some time they must get lost");
            while let Some(event) = events.try_next().unwrap() {
                lost |= event == NetlinkEvent::Lagging;
            }
        }
        println!("events lost after at most {added}");
        // And it goes on.
        netlink.remove(index, batch[0]).unwrap();
        next(&mut events, |event| is_removal(event, batch[0])).await;
    });
}

#[test]
fn errors_say_what_to_do() {
    if !inside("errors_say_what_to_do") {
        return;
    }
    cable();
    let netlink = patient_netlink();
    let error = netlink.add(4711, net(V4), Lifetime::HELD).unwrap_err().to_string();
    assert!(error.starts_with("cannot add 10.99.0.50/24 on the interface number 4711"), "{error}");
    assert!(error.contains("no such interface"), "{error}");
    assert!(netlink.link("nowhere").unwrap().is_none());
    assert!(netlink.link("a-name-that-is-too-long-for-any").is_err());
    let index = netlink.link("v0").unwrap().unwrap().index;
    std::fs::write("/proc/sys/net/ipv6/conf/v0/disable_ipv6", "1").unwrap();
    let error = netlink.add(index, net(V6), Lifetime::HELD).unwrap_err();
    assert!(matches!(error, NetlinkError::Refused { .. }));
    let error = error.to_string();
    assert!(error.contains("on the interface v0") && error.contains("IPv6 is switched off"), "{error}");
}

#[test]
fn it_is_quick() {
    if !inside("it_is_quick") {
        return;
    }
    cable();
    let netlink = patient_netlink();
    let index = netlink.link("v0").unwrap().unwrap().index;
    for text in [V4, V6] {
        let (mut adding, mut refreshing, mut removing) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..200 {
            let time = |take: &mut Vec<Duration>, run: &dyn Fn()| {
                let start = Instant::now();
                run();
                take.push(start.elapsed());
            };
            time(&mut adding, &|| netlink.add(index, net(text), Lifetime::HELD).unwrap());
            time(&mut refreshing, &|| netlink.add(index, net(text), Lifetime::HELD).unwrap());
            time(&mut removing, &|| netlink.remove(index, net(text)).unwrap());
        }
        for (what, mut took) in [("add", adding), ("refresh", refreshing), ("remove", removing)] {
            took.sort_unstable();
            println!("{what} {text}: median {:?}, worst {:?}", took[100], took[199]);
            assert!(took[100] < Duration::from_millis(10));
        }
    }
}

//! The life of `pointsman-vip` beside its network: the proxy's readiness, hooks, reloads, what it finds when it starts and leaves
//! when it ends.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::lab::{
    self, FakeProxy, Group, HOSTS, Lab, Meter, Mood, PRIORITIES, SOON, Software, VIRTUAL, Vip, say, wait,
};
use serde_json::Value;

const SECOND_ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 111));

fn plain() -> Vip {
    Vip { preempt_delay_ms: 300, ..Vip::default() }
}

fn three(lab: &mut Lab, vip: &Vip) -> Result<Meter> {
    let software = Software::Pointsman(vip.clone());
    lab.start_all(&std::array::from_fn::<_, HOSTS, _>(|_| software.clone()), &Group::v3(100))
}

/// Proxies on all hosts, and the virtual address that follows them.
fn with_proxies(lab: &mut Lab, track: &str) -> Result<(Meter, Vec<FakeProxy>)> {
    let proxies = (0..HOSTS).map(|host| lab.fake_proxy(host)).collect::<Result<Vec<_>>>()?;
    let meter = three(lab, &Vip { track_proxy: track.to_owned(), ..plain() })?;
    wait::until("the proxies to be asked", SOON, || {
        ensure!(proxies.iter().all(|proxy| proxy.questions() > 2), "not all were");
        Ok(())
    })?;
    Ok((meter, proxies))
}

#[test]
fn a_proxy_that_is_not_ready_moves_the_address() -> Result<()> {
    lab::run(|lab| {
        let (meter, proxies) = with_proxies(lab, "\"release\"")?;
        for mood in [Mood::Unready, Mood::Hangs, Mood::Refuses] {
            let at = Instant::now();
            proxies[0].set(mood);
            lab.wait_holder(1, VIRTUAL, SOON).with_context(|| format!("{mood:?}"))?;
            let noticed = at.elapsed();
            lab.wait_quiet(1, &meter, SOON)?;
            let gap = meter.gap(at)?.length;
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            say(&format!("{mood:?}: moved after {:.0} ms, gap {:.1} ms", ms(noticed), ms(gap)));
            // A hand-over, as any that is planned.
            ensure!(gap <= Duration::from_millis(60) + meter.stall(at), "{mood:?}: {gap:?}");
            let status = lab.status(0)?;
            let state = status.pointer("/proxy/state").and_then(Value::as_str);
            ensure!(state == Some("unwell"), "{:?}", status.get("proxy"));
            proxies[0].set(Mood::Ready);
            lab.wait_holder(0, VIRTUAL, SOON).with_context(|| format!("after {mood:?}"))?;
            lab.wait_quiet(0, &meter, SOON)?;
        }
        Ok(())
    })
}

#[test]
fn the_proxy_hears_that_its_address_has_left() -> Result<()> {
    lab::run(|lab| {
        let (meter, proxies) = with_proxies(lab, "\"release\"")?;
        let heard = |host: usize, what: &str| {
            wait::until(format!("the proxy of lb{} to be told", host + 1), SOON, || {
                let told = proxies[host].told();
                ensure!(told.iter().any(|line| line.contains("address=10.0.0.110")), "{what}: {told:?}");
                Ok(())
            })
        };
        let nobody = |host: usize| {
            let told = proxies[host].told();
            ensure!(told.is_empty(), "lb{}: {told:?}", host + 1);
            Ok(())
        };
        (0..HOSTS).try_for_each(nobody)?;
        lab.command(0, &["yield"])?;
        lab.wait_quiet(1, &meter, SOON)?;
        heard(0, "yield")?;
        lab.stop(1)?;
        heard(1, "SIGTERM")?;
        nobody(2)
    })
}

#[test]
fn a_restart_of_the_proxy_moves_nothing() -> Result<()> {
    lab::run(|lab| {
        let (meter, proxies) = with_proxies(lab, "\"release\"")?;
        let at = Instant::now();
        for mood in [Mood::Refuses, Mood::Hangs] {
            proxies[0].set(mood);
            // What a reload or an upgrade takes; a question in between that hangs is not three.
            let length = if mood == Mood::Refuses { 800 } else { 200 };
            wait::throughout("lb1 holding", Duration::from_millis(length), || lab.has_only(0, VIRTUAL))?;
            proxies[0].set(Mood::Ready);
            wait::throughout("lb1 holding", Duration::from_millis(800), || lab.has_only(0, VIRTUAL))?;
        }
        ensure!(lab.watch.changes(VIRTUAL, at).is_empty(), "{}", lab.watch.story(VIRTUAL, at));
        lab.is_quiet(0, &meter)
    })
}

#[test]
fn who_is_sick_keeps_the_address_when_nobody_is_better() -> Result<()> {
    lab::run(|lab| {
        let (meter, proxies) = with_proxies(lab, "\"release\"")?;
        for proxy in proxies.iter().rev() {
            proxy.set(Mood::Unready);
        }
        wait::until("all to know that they are unwell", SOON, || {
            for host in 0..HOSTS {
                let status = lab.status(host)?;
                ensure!(status.pointer("/proxy/state") == Some(&"unwell".into()), "lb{}: {status}", host + 1);
            }
            Ok(())
        })?;
        let at = Instant::now();
        wait::throughout("some host holding", Duration::from_secs(3), || {
            let holders = lab.watch.holders(VIRTUAL).len();
            ensure!(holders == 1, "{holders} holders");
            Ok(())
        })?;
        ensure!(lab.watch.changes(VIRTUAL, at).len() <= 2, "{}", lab.watch.story(VIRTUAL, at));
        // One is well again: it takes over.
        proxies[2].set(Mood::Ready);
        lab.wait_holder(2, VIRTUAL, SOON)?;
        lab.wait_quiet(2, &meter, SOON)?;
        // The holder dies: better a sick host than none, whichever.
        lab.kill(2)?;
        let holder = wait::until("a sick host to hold", SOON, || {
            let holder = lab.watch.holders(VIRTUAL).into_iter().find(|holder| *holder != 2);
            holder.context("none does")
        })?;
        lab.wait_quiet(holder, &meter, SOON)
    })
}

#[test]
fn a_weight_lowers_the_priority() -> Result<()> {
    lab::run(|lab| {
        // 250 - 150 is below lb2's 150, and above lb3's 50.
        let (meter, proxies) = with_proxies(lab, "-150")?;
        proxies[0].set(Mood::Unready);
        lab.wait_holder(1, VIRTUAL, SOON)?;
        let status = lab.status(0)?;
        ensure!(status.pointer("/routers/0/priority") == Some(&100.into()), "{status}");
        ensure!(status.pointer("/routers/0/base_priority") == Some(&250.into()), "{status}");
        lab.kill(1)?;
        lab.wait_holder(0, VIRTUAL, SOON)?;
        lab.wait_quiet(0, &meter, SOON)
    })
}

#[test]
fn hooks_are_told() -> Result<()> {
    lab::run(|lab| {
        let log = lab.directory().join("hooks");
        let hook = lab.directory().join("hook");
        let script =
            "#!/bin/sh\necho \"$POINTSMAN_NODE $POINTSMAN_EVENT $3 $4 $POINTSMAN_ADDRESSES\" >>\"${0}s\"\n";
        fs::write(&hook, script)?;
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
        // Hooks run without our rights, perhaps as somebody else.
        fs::write(&log, "")?;
        fs::set_permissions(&log, fs::Permissions::from_mode(0o666))?;
        let vip = Vip { more: format!("notify = \"{}\"\n", hook.display()), ..plain() };
        let meter = three(lab, &vip)?;
        let told = |line: &str| {
            wait::until(format!("the hook to be told {line:?}"), SOON, || {
                let text = fs::read_to_string(&log)?;
                ensure!(text.lines().any(|told| told.starts_with(line)), "{text}");
                Ok(())
            })
        };
        told("lb1 become-active ACTIVE 250 10.0.0.110/24")?;
        told("lb2 become-backup BACKUP 150 10.0.0.110/24")?;
        let at = lab.set_link(0, false)?;
        told("lb1 fault FAULT 250 10.0.0.110/24")?;
        told("lb2 become-active ACTIVE 150 10.0.0.110/24")?;
        lab.wait_quiet(1, &meter, SOON)?;
        lab.set_link(0, true)?;
        lab.wait_quiet(0, &meter, SOON)?;
        lab.stop(0)?;
        // Whoever leaves counts for the least.
        told("lb1 stop STOP ")?;
        // A hook that hangs holds nobody up.
        fs::write(&hook, "#!/bin/sh\nsleep 60\n")?;
        lab.start(0, &Software::Pointsman(vip), &Group::v3(100), &PRIORITIES)?;
        lab.wait_quiet(0, &meter, SOON)?;
        let stopped = Instant::now();
        lab.stop(0)?;
        lab.wait_quiet(1, &meter, SOON)?;
        let gap = meter.gap(stopped)?.length;
        ensure!(
            gap <= Duration::from_millis(60) + meter.stall(stopped),
            "{gap:?}, first fault {:?} ago",
            at.elapsed()
        );
        Ok(())
    })
}

#[test]
fn a_reload_keeps_the_address() -> Result<()> {
    lab::run(|lab| {
        let meter = three(lab, &plain())?;
        let at = Instant::now();
        // The priority: lb1 stays the best.
        let text = lab.read_pointsman(0)?;
        lab.write_pointsman(0, &text.replace("lb1 = 250", "lb1 = 200"))?;
        lab.daemon(0)?.reload()?;
        wait::until("adverts with the new priority", SOON, || {
            ensure!(!lab.watch.adverts(0, 200, at).is_empty(), "none");
            Ok(())
        })?;
        // A file with errors changes nothing.
        lab.write_pointsman(0, &text.replace("lb1 = 250", "lb1 = 256"))?;
        let broken = lab.daemon(0)?.reload()?;
        wait::throughout("lb1 holding", Duration::from_millis(500), || lab.has_only(0, VIRTUAL))?;
        ensure!(!lab.watch.adverts(0, 200, broken + Duration::from_millis(300)).is_empty(), "no adverts");
        // Another address, on all hosts: it appears, and the first one never leaves.
        for host in 0..HOSTS {
            let text = lab.read_pointsman(host)?.replace("lb1 = 256", "lb1 = 250");
            let more = text.replace("[\"10.0.0.110/24\"]", "[\"10.0.0.110/24\", \"10.0.0.111/24\"]");
            ensure!(more != text, "no addresses in\n{text}");
            lab.write_pointsman(host, &more)?;
        }
        for host in 0..HOSTS {
            lab.daemon(host)?.reload()?;
        }
        lab.wait_holder(0, SECOND_ADDRESS, SOON)?;
        let second = lab.meter(SECOND_ADDRESS)?;
        lab.wait_quiet(0, &second, SOON)?;
        ensure!(lab.watch.changes(VIRTUAL, at).is_empty(), "{}", lab.watch.story(VIRTUAL, at));
        let gap = meter.gap(at)?.length;
        ensure!(gap <= Duration::from_millis(60) + meter.stall(at), "{gap:?}");
        // And both move together.
        lab.stop(0)?;
        lab.wait_holder(1, VIRTUAL, SOON)?;
        lab.wait_holder(1, SECOND_ADDRESS, SOON)
    })
}

#[test]
fn what_was_left_behind_is_removed_at_the_start() -> Result<()> {
    lab::run(|lab| {
        let meter = three(lab, &plain())?;
        lab.stop(2)?;
        // As after a crash of something that leaves its address for ever.
        lab.add_address(2, VIRTUAL)?;
        wait::until("the address on lb3", SOON, || {
            ensure!(lab.watch.holders(VIRTUAL) == [0, 2], "{:?}", lab.watch.holders(VIRTUAL));
            Ok(())
        })?;
        let started = lab.start(2, &Software::Pointsman(plain()), &Group::v3(100), &PRIORITIES)?;
        lab.wait_holder(0, VIRTUAL, SOON)?;
        let left = lab.watch.when(2, VIRTUAL, false, started).context("it stayed")?;
        say(&format!("left over: removed after {:.0} ms", left.duration_since(started).as_secs_f64() * 1e3));
        lab.wait_quiet(0, &meter, SOON)
    })
}

#[test]
fn a_boot_before_the_network_is_there() -> Result<()> {
    lab::run(|lab| {
        lab.set_link(0, false)?;
        lab.set_carrier(1, false)?;
        for host in 0..HOSTS {
            lab.start(host, &Software::Pointsman(plain()), &Group::v3(100), &PRIORITIES)?;
        }
        let meter = lab.meter(VIRTUAL)?;
        lab.wait_quiet(2, &meter, SOON)?;
        lab.set_carrier(1, true)?;
        lab.wait_quiet(1, &meter, SOON)?;
        lab.set_link(0, true)?;
        lab.wait_quiet(0, &meter, SOON)
    })
}

const BUSY: &str = "for i in 1 2 3 4 5 6 7 8; do ip link add a$i type veth peer name b$i && ip link set a$i up && \
                    ip link set b$i up && ip address add 10.$i.0.1/24 dev a$i; done";

/// Whoever makes and removes network namespaces (containers do) keeps the kernel from everything else that concerns
/// addresses, for tenths of a second.
#[test]
fn a_busy_kernel_moves_nothing() -> Result<()> {
    lab::run(|lab| {
        let meter = three(lab, &plain())?;
        let workers = (0..HOSTS).map(|host| lab.daemon(host)?.worker()).collect::<Result<Vec<_>>>()?;
        let at = Instant::now();
        let over = at + Duration::from_secs(5);
        thread::scope(|scope| {
            let storm = || {
                let mut made = 0;
                while Instant::now() < over {
                    let status = Command::new("unshare").args(["--net", "sh", "-c", BUSY]).status()?;
                    ensure!(status.success(), "unshare: {status}");
                    made += 1;
                }
                Ok(made)
            };
            let storms = [scope.spawn(storm), scope.spawn(storm), scope.spawn(storm)];
            let made = storms.into_iter().map(|storm| storm.join().unwrap()).sum::<Result<u32>>()?;
            say(&format!("{made} network namespaces came and went"));
            ensure!(made > 20, "that is no storm");
            Ok(())
        })?;
        ensure!(lab.watch.changes(VIRTUAL, at).is_empty(), "{}", lab.watch.story(VIRTUAL, at));
        let now = (0..HOSTS).map(|host| lab.daemon(host)?.worker()).collect::<Result<Vec<_>>>()?;
        ensure!(now == workers, "a guard has killed its worker");
        lab.wait_quiet(0, &meter, SOON)
    })
}

//! `pointsman-vip` and keepalived in one virtual router: each takes over from the other, in every dialect that both speak.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::lab::{
    self, Group, HOSTS, Lab, Meter, PRIORITIES, SOON, Side, Software, Vip, say, wait,
};

/// Keepalived may leave a client with a wrong neighbour entry until it repeats its announcements, or the entry grows old.
const KEEPALIVED_REPAIRS: Duration = Duration::from_secs(40);

#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Pointsman,
    Keepalived,
}

fn pointsman() -> Software {
    Software::Pointsman(Vip { heartbeat_ms: None, preempt_delay_ms: 500, ..Vip::default() })
}

/// The two take turns: first, second, first.
fn hosts(first: First) -> [Software; HOSTS] {
    match first {
        First::Pointsman => [pointsman(), Software::Keepalived, pointsman()],
        First::Keepalived => [Software::Keepalived, pointsman(), Software::Keepalived],
    }
}

struct Mixed<'a> {
    lab: &'a mut Lab,
    group: Group,
    software: [Software; HOSTS],
    meter: Meter,
}

impl Mixed<'_> {
    /// Waits until the client is answered by `host`, which has the address, as the client knows.
    fn served_by(&self, host: usize) -> Result<()> {
        let address = self.meter.target().ip();
        wait::until(format!("the client to be served by lb{}", host + 1), KEEPALIVED_REPAIRS, || {
            ensure!(self.lab.watch.holders(address).contains(&host), "it has no address");
            self.lab.neighbour_is(host, address)?;
            let by = self.meter.answered_by(Duration::from_millis(50));
            ensure!(by == Some(host), "it is answered by {by:?}");
            Ok(())
        })
    }

    /// SIGKILL; what a killed keepalived leaves behind goes with its host.
    fn kill(&mut self, host: usize) -> Result<()> {
        self.lab.kill(host)?;
        if matches!(self.software.get(host), Some(Software::Keepalived)) {
            for (address, _) in &self.group.addresses {
                self.lab.remove_address(host, *address)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, host: usize) -> Result<()> {
        let software = self.software.get(host).context("no such host")?.clone();
        self.lab.start(host, &software, &self.group, &PRIORITIES)?;
        Ok(())
    }

    fn calm(&mut self, host: usize) -> Result<()> {
        self.lab.wait_holder(host, self.meter.target().ip(), SOON)?;
        self.served_by(host)
    }
}

/// Each takes over from the other when it is killed, when it leaves, when it returns, when its host vanishes and comes back.
fn take_turns(lab: &mut Lab, group: &Group, first: First) -> Result<()> {
    let software = hosts(first);
    let meter = lab.start_all(&software, group)?;
    let address = meter.target().ip();
    let mut mixed = Mixed { lab, group: group.clone(), software, meter };
    let begun = Instant::now();
    // Killed, one after the other.
    mixed.kill(0)?;
    mixed.served_by(1)?;
    mixed.kill(1)?;
    mixed.served_by(2)?;
    // They come back and take over, each from the other kind.
    mixed.start(1)?;
    mixed.calm(1)?;
    mixed.start(0)?;
    mixed.calm(0)?;
    // They leave in good order: priority 0 is heard, so it takes less than three intervals.
    let at = mixed.lab.stop(0)?;
    mixed.calm(1)?;
    let farewells = mixed.lab.watch.adverts(0, 0, at).len();
    let receivers = if group.unicast { HOSTS - 1 } else { 1 };
    ensure!(farewells == receivers, "{farewells} adverts of priority 0 to {receivers} receivers");
    let gap = mixed.meter.gap(at)?.length;
    let interval = Duration::from_millis(group.interval_ms.into());
    ensure!(
        gap < interval * 2 + mixed.meter.stall(at),
        "gap {gap:?}\n{}",
        mixed.lab.watch.story(address, at)
    );
    mixed.start(0)?;
    mixed.calm(0)?;
    // The host vanishes and comes back.
    mixed.lab.move_to(0, Side::Nowhere)?;
    mixed.served_by(1)?;
    let healed = mixed.lab.move_to(0, Side::Main)?;
    mixed.calm(0)?;
    let overlap = mixed.lab.watch.longest_overlap(address, healed);
    say(&format!("two holders for {:.0} ms after the heal", overlap.as_secs_f64() * 1e3));
    ensure!(overlap < interval + Duration::from_millis(150), "two holders for {overlap:?} after the heal");
    // The second leaves and returns: nothing moves.
    let at = Instant::now();
    mixed.lab.stop(1)?;
    mixed.start(1)?;
    mixed.lab.stop(2)?;
    mixed.start(2)?;
    // Longer than any of them waits for adverts.
    wait::throughout("lb1 holding alone", interval * 4 + Duration::from_millis(500), || {
        mixed.lab.has_only(0, address)
    })?;
    ensure!(mixed.lab.watch.changes(address, at).is_empty(), "{}", mixed.lab.watch.story(address, at));
    say(&format!("all turns taken in {:.0} s", begun.elapsed().as_secs_f64()));
    mixed.lab.check_running()
}

macro_rules! combinations {
    ($($name:ident: $first:ident, $group:expr;)*) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                lab::run(|lab| take_turns(lab, &$group, First::$first))
            }
        )*
    };
}

combinations! {
    v2_password_pointsman_first: Pointsman, Group::v2(Some("s3cr3t12"));
    v2_password_keepalived_first: Keepalived, Group::v2(Some("s3cr3t12"));
    v2_open_pointsman_first: Pointsman, Group::v2(None);
    v2_open_keepalived_first: Keepalived, Group::v2(None);
    v3_multicast_pointsman_first: Pointsman, Group::v3(100);
    v3_multicast_keepalived_first: Keepalived, Group::v3(100);
    v3_unicast_pointsman_first: Pointsman, Group { unicast: true, ..Group::v3(100) };
    v3_unicast_keepalived_first: Keepalived, Group { unicast: true, ..Group::v3(100) };
    v6_multicast_pointsman_first: Pointsman, Group::v6(100);
    v6_multicast_keepalived_first: Keepalived, Group::v6(100);
    v6_unicast_pointsman_first: Pointsman, Group { unicast: true, ..Group::v6(100) };
    v6_unicast_keepalived_first: Keepalived, Group { unicast: true, ..Group::v6(100) };
}

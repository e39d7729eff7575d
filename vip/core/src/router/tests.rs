//! The transitions of a virtual router, one by one: what it is told, what it does, in which order.

use std::collections::BTreeMap;

use pointsman_config::{NodeName, TrackProxy};

use super::*;
use crate::event::{Event, Wire};
use crate::node::{Node, NodeSettings};
use crate::note::{AlarmKind, Loss};
use crate::report::Sight;

const INTERVAL: Duration = Duration::from_millis(100);
const HEARTBEAT: Duration = Duration::from_millis(30);

fn at(millis: u64) -> Moment {
    Moment::from_start(Duration::from_millis(millis))
}

fn vip() -> VipName {
    VipName::new("vip").unwrap()
}

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

/// The address of the host with this number.
fn host(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, number])
}

fn settings(priority: u8) -> Settings {
    Settings {
        name: vip(),
        interface: "eth0".to_owned(),
        router_id: NonZeroU8::new(51).unwrap(),
        priority,
        addresses: vec!["10.0.0.100/24".parse().unwrap()],
        interval: INTERVAL,
        version_2: false,
        preempt: true,
        preempt_delay: Duration::from_secs(5),
        track: TrackProxy::Release,
        unicast: BTreeSet::new(),
    }
}

fn advert(priority: u8) -> Advert {
    Advert {
        router_id: NonZeroU8::new(51).unwrap(),
        priority,
        interval: INTERVAL,
        addresses: vec![IpAddr::from([10, 0, 0, 100])],
    }
}

/// One host, `lb1` with the address 10.0.0.1, and what it did.
struct Lab {
    node: Node,
    now: u64,
}

/// What was done, in few words.
fn words(actions: &[Action]) -> Vec<String> {
    let word = |action: &Action| match action {
        Action::Hold { .. } => Some("hold".to_owned()),
        Action::Release { .. } => Some("release".to_owned()),
        Action::Announce { .. } => Some("announce".to_owned()),
        Action::Advertise { priority, .. } => Some(format!("advert {priority}")),
        Action::Report(_) | Action::Note(Note::Peer { .. } | Note::Repaired { .. }) => None,
        Action::Note(Note::Transition(transition)) => {
            Some(format!("{} by {}", transition.to, transition.reason.label()))
        }
        Action::Note(Note::Alarm { alarm, .. }) => Some(format!("alarm {}", alarm.kind().as_str())),
        Action::Note(Note::AlarmOver { kind, .. }) => Some(format!("over {}", kind.as_str())),
    };
    actions.iter().filter_map(word).collect()
}

impl Lab {
    fn new(settings: Settings, peers: &[&str]) -> Self {
        let address = |number: usize| format!("10.0.0.{}:7001", number + 2).parse().unwrap();
        let peers = peers.iter().enumerate().map(|(number, name)| (node(name), address(number))).collect();
        let settings =
            NodeSettings { node: node("lb1"), routers: vec![settings], peers, heartbeat: HEARTBEAT };
        Self { node: Node::new(at(0), settings), now: 0 }
    }

    /// With its interface up.
    fn up(settings: Settings, peers: &[&str]) -> Self {
        let mut lab = Self::new(settings, peers);
        lab.tell(Event::Link { router: vip(), link: Link::Up { source: host(1) } });
        lab
    }

    /// Active, the neighbours told, everything quiet.
    fn active(settings: Settings, peers: &[&str]) -> Self {
        let mut lab = Self::up(settings, peers);
        lab.until(10_000);
        assert_eq!(lab.state(), State::Active);
        lab
    }

    fn state(&self) -> State {
        self.node.routers().next().unwrap().state()
    }

    fn tell(&mut self, event: Event) -> Vec<String> {
        words(&self.node.handle(at(self.now), event))
    }

    fn hear(&mut self, from: u8, priority: u8) -> Vec<String> {
        self.tell(Event::Advert { router: vip(), from: host(from), advert: advert(priority) })
    }

    /// Lets time pass, waking the node when it wants to be woken. Adverts and announcements that are repeated are left out.
    fn until(&mut self, end: u64) -> Vec<String> {
        let mut done = Vec::new();
        let mut last = None;
        while let Some(due) = self.node.deadline().filter(|due| *due <= at(end)) {
            assert!(Some(due) > last, "woken twice at {due:?}");
            last = Some(due);
            self.now = u64::try_from(due.since(Moment::ZERO).as_millis()).unwrap();
            // A deadline between two milliseconds.
            self.now += u64::from(at(self.now) < due);
            done.extend(words(&self.node.tick(at(self.now))));
        }
        self.now = end;
        done
    }

    /// The same without what is repeated.
    fn changes_until(&mut self, end: u64) -> Vec<String> {
        let repeated = |word: &String| word.starts_with("advert") || word == "announce";
        self.until(end).into_iter().filter(|word| !repeated(word)).collect()
    }

    fn connect(&mut self, peer: &str) {
        self.tell(Event::Wire { node: node(peer), wire: Wire::Connected });
    }

    fn report(&mut self, peer: &str, report: RouterReport, lost: &[&str]) -> Vec<String> {
        let sees = lost.iter().map(|name| (node(name), Sight::Lost)).collect();
        let report = Report { routers: BTreeMap::from([(vip(), report)]), sees };
        self.tell(Event::Report { node: node(peer), report })
    }

    fn status(&self) -> RouterStatus {
        self.node.status(at(self.now)).routers.into_iter().next().unwrap()
    }
}

fn says(number: u8, state: State, priority: u8) -> RouterReport {
    RouterReport { state, priority, fit: true, source: Some(host(number)), offer: None }
}

// ---- VRRP alone ------------------------------------------------------------------------------------------------------

#[test]
fn a_router_waits_for_its_interface_and_then_for_others() {
    let mut lab = Lab::new(settings(150), &[]);
    assert_eq!(lab.until(60_000), [""; 0], "nothing to do without an interface");
    let up = Event::Link { router: vip(), link: Link::Up { source: host(1) } };
    assert_eq!(lab.tell(up), ["backup by started"]);
    // 3 x 100 ms and a skew of 106/256 x 100 ms.
    assert_eq!(lab.until(60_341), [""; 0]);
    assert_eq!(lab.until(60_342), ["hold", "announce", "advert 150", "active by silence"]);
}

#[test]
fn an_owner_does_not_wait() {
    let mut lab = Lab::new(settings(255), &[]);
    let up = Event::Link { router: vip(), link: Link::Up { source: host(1) } };
    assert_eq!(lab.tell(up), ["hold", "announce", "advert 255", "active by owner"]);
}

#[test]
fn the_skew_of_version_2_is_counted_in_seconds() {
    let of = Settings { version_2: true, interval: Duration::from_secs(2), ..settings(128) };
    let mut lab = Lab::up(of, &[]);
    assert_eq!(lab.changes_until(6499), [""; 0]);
    assert_eq!(lab.changes_until(6500), ["hold", "active by silence"], "3 x 2 s and half a second");
}

#[test]
fn who_is_heard_is_waited_for() {
    let mut lab = Lab::up(settings(100), &[]);
    for now in (50..2000).step_by(100) {
        lab.until(now);
        lab.hear(2, 150);
    }
    assert_eq!(lab.state(), State::Backup);
    assert_eq!(lab.status().holder.map(|holder| (holder.address, holder.priority)), Some((host(2), 150)));
}

/// keepalived tells the neighbours nothing anew before it hears of somebody who may have held the addresses, too.
#[test]
fn a_stranger_who_holds_the_addresses_hears_of_us_once() {
    let mut lab = Lab::up(settings(100), &[]);
    assert_eq!(lab.hear(2, 50), [""; 0], "a lower one would step down");
    assert_eq!(lab.hear(2, 150), ["advert 100"]);
    assert_eq!(lab.hear(2, 150), [""; 0]);
    // Held while the wire was cut, and no word of it got out.
    lab.changes_until(1000);
    assert_eq!(lab.state(), State::Active);
    let down = Event::Link { router: vip(), link: Link::Down(LinkFault::NoCarrier("eth0".to_owned())) };
    lab.tell(down);
    lab.tell(Event::Link { router: vip(), link: Link::Up { source: host(1) } });
    assert_eq!(lab.hear(2, 150), ["advert 100"]);
    // Who steps down says it then.
    lab.changes_until(2000);
    assert_eq!(lab.hear(2, 150), ["release", "advert 100", "backup by outranked"]);
    assert_eq!(lab.hear(2, 150), [""; 0]);
}

/// Else we would take them, give way at the next advert, and take them again, for ever.
#[test]
fn what_a_better_stranger_holds_is_not_taken_from_a_worse_peer() {
    let of = Settings { preempt_delay: Duration::ZERO, ..settings(150) };
    let mut lab = Lab::up(of, &["lb2"]);
    lab.connect("lb2");
    assert_eq!(lab.hear(9, 200), ["advert 150"]);
    assert_eq!(lab.report("lb2", says(2, State::Active, 40), &[]), [""; 0]);
    let offer = RouterReport { offer: Some(node("lb1")), ..says(2, State::Active, 40) };
    assert_eq!(lab.report("lb2", offer, &[]), [""; 0]);
    // The stranger is heard no more.
    lab.now = 301;
    let taken = lab.report("lb2", says(2, State::Active, 40), &[]);
    assert_eq!(taken.last().map(String::as_str), Some("active by preempted"));
}

#[test]
fn our_own_kind_needs_no_introduction() {
    let mut lab = Lab::up(settings(100), &["lb2"]);
    lab.connect("lb2");
    lab.report("lb2", says(2, State::Active, 150), &[]);
    assert_eq!(lab.hear(2, 150), [""; 0]);
}

#[test]
fn the_interval_is_learned_from_the_holder() {
    let mut lab = Lab::up(settings(100), &[]);
    let slow = Advert { interval: Duration::from_secs(1), ..advert(150) };
    lab.tell(Event::Advert { router: vip(), from: host(2), advert: slow });
    assert_eq!(lab.until(3600), [""; 0]);
    assert_eq!(lab.changes_until(3610), ["hold", "active by silence"], "3 x 1 s and 156/256 of one");
}

#[test]
fn after_priority_0_only_the_skew_is_waited_for() {
    let mut lab = Lab::up(settings(100), &[]);
    lab.hear(2, 150);
    lab.until(100);
    assert_eq!(lab.hear(2, 0), [""; 0]);
    assert_eq!(lab.until(160), [""; 0]);
    assert_eq!(lab.changes_until(161), ["hold", "active by let-go"]);
}

#[test]
fn a_predecessor_that_lets_go_late_lets_go_of_nothing() {
    let mut lab = Lab::up(settings(50), &[]);
    lab.hear(2, 150);
    lab.hear(3, 100); // has taken over
    lab.hear(2, 0);
    assert_eq!(lab.until(350), [""; 0]);
}

#[test]
fn a_lower_priority_is_preempted_only_after_a_while() {
    let mut lab = Lab::up(settings(150), &[]);
    let mut preempted = None;
    for now in (50..8000).step_by(100) {
        if !lab.changes_until(now).is_empty() {
            preempted = Some(now);
            break;
        }
        lab.hear(2, 100);
    }
    // Its adverts count for five seconds, and then no more: the timer of the last one that did ends.
    assert!(preempted.is_some_and(|now| (5000..=5500).contains(&now)), "{preempted:?}");
}

#[test]
fn without_preemption_a_lower_priority_stays() {
    let mut lab = Lab::up(Settings { preempt: false, ..settings(150) }, &[]);
    for now in (50..8000).step_by(100) {
        assert_eq!(lab.until(now), [""; 0]);
        lab.hear(2, 100);
    }
}

#[test]
fn a_higher_priority_takes_them_and_is_told_that_we_were_here() {
    let mut lab = Lab::active(settings(100), &[]);
    assert_eq!(lab.hear(2, 150), ["release", "advert 100", "backup by outranked"]);
}

#[test]
fn between_equals_the_higher_address_wins() {
    let mut lab = Lab::active(settings(100), &[]);
    assert_eq!(lab.hear(2, 100), ["alarm same-priority", "release", "advert 100", "backup by outranked"]);
    let mut lab = Lab::active(settings(100), &[]);
    lab.tell(Event::Link { router: vip(), link: Link::Up { source: host(9) } });
    assert_eq!(lab.hear(2, 100), ["alarm same-priority", "advert 100", "announce"]);
}

#[test]
fn a_lower_priority_is_answered_at_once() {
    let mut lab = Lab::active(settings(150), &[]);
    lab.now += 20;
    assert_eq!(lab.hear(2, 100), ["advert 150", "announce"]);
    assert_eq!(lab.hear(2, 100), [""; 0], "but not without bounds");
    assert_eq!(lab.status().holders_seen, 2);
}

#[test]
fn who_does_not_give_way_is_an_alarm() {
    let mut lab = Lab::active(settings(150), &[]);
    let mut alarms = Vec::new();
    for now in (10_050..11_500).step_by(100) {
        alarms.extend(lab.changes_until(now));
        alarms.extend(lab.hear(2, 100).into_iter().filter(|word| word.starts_with("alarm")));
    }
    assert_eq!(alarms, ["alarm two-holders"], "said once");
    assert_eq!(lab.changes_until(20_000), ["over two-holders"]);
}

#[test]
fn somebody_elses_farewell_is_answered() {
    let mut lab = Lab::active(settings(150), &[]);
    lab.now += 20;
    assert_eq!(lab.hear(2, 0), ["advert 150", "announce"]);
}

#[test]
fn announcements_are_repeated_and_a_claim_repeats_them() {
    let mut lab = Lab::up(settings(150), &[]);
    let announced = |words: Vec<String>| words.iter().filter(|word| *word == "announce").count();
    assert_eq!(announced(lab.until(10_000)), 5);
    let claim = Event::Claimed {
        router: vip(),
        address: IpAddr::from([10, 0, 0, 100]),
        mac: Mac([2, 0, 0, 0, 0, 9]),
    };
    // Not at once: whoever has a right to it will say so in a moment, and must have the last word.
    assert_eq!(announced(lab.tell(claim.clone())), 0);
    assert_eq!(announced(lab.until(10_004)), 0);
    assert_eq!(announced(lab.until(10_005)), 1);
    assert_eq!(announced(lab.until(20_000)), 4);
    // A storm: bounded, and an alarm.
    let mut words = Vec::new();
    for now in 20_000..21_000 {
        words.extend(lab.until(now));
        words.extend(lab.tell(claim.clone()));
    }
    assert!(words.contains(&"alarm claimed-by-stranger".to_owned()));
    assert!(announced(words) <= 21);
}

#[test]
fn a_claim_while_somebody_else_holds_them_is_in_order() {
    let mut lab = Lab::up(settings(100), &[]);
    lab.hear(2, 150);
    let claim = Event::Claimed {
        router: vip(),
        address: IpAddr::from([10, 0, 0, 100]),
        mac: Mac([2, 0, 0, 0, 0, 2]),
    };
    assert_eq!(lab.tell(claim), [""; 0]);
}

#[test]
fn an_address_that_was_removed_is_put_back() {
    let mut lab = Lab::active(settings(150), &[]);
    let gone = Event::AddressGone { router: vip(), address: IpAddr::from([10, 0, 0, 100]) };
    assert_eq!(lab.tell(gone.clone()), ["hold", "announce"]);
    for _ in 0..2 {
        lab.tell(gone.clone());
    }
    assert_eq!(lab.tell(gone), ["alarm address-removed", "hold"]);
}

#[test]
fn other_addresses_are_an_alarm_and_a_stranger_counts_for_nothing() {
    let mut lab = Lab::active(settings(150), &[]);
    let mut theirs = advert(200);
    theirs.addresses.push(IpAddr::from([10, 0, 0, 101]));
    let hear = |advert: &Advert| Event::Advert { router: vip(), from: host(2), advert: advert.clone() };
    assert_eq!(
        lab.tell(hear(&theirs)),
        ["alarm other-addresses", "release", "advert 150", "backup by outranked"],
        "two hosts that hold the common address would be worse"
    );
    let mut lab = Lab::active(settings(150), &[]);
    theirs.addresses = vec![IpAddr::from([10, 0, 0, 200])];
    assert_eq!(lab.tell(hear(&theirs)), ["alarm collision"]);
    assert_eq!(lab.state(), State::Active);
}

#[test]
fn a_refused_packet_is_counted_and_told() {
    let mut lab = Lab::active(settings(150), &[]);
    let refused = Event::Rejected { router: vip(), from: host(2), reject: Reject::Checksum };
    assert_eq!(lab.tell(refused.clone()), ["alarm refused"]);
    assert_eq!(lab.tell(refused), [""; 0]);
    assert_eq!(lab.status().counters.adverts.rejected.get("checksum"), Some(&2));
}

#[test]
fn a_lost_interface_is_given_up_at_once_and_taken_up_as_at_the_start() {
    let mut lab = Lab::active(settings(150), &[]);
    let down = Event::Link { router: vip(), link: Link::Down(LinkFault::NoCarrier("eth0".to_owned())) };
    assert_eq!(lab.tell(down), ["release", "advert 0", "initialize by link-lost"]);
    assert_eq!(lab.until(30_000), [""; 0]);
    let up = Event::Link { router: vip(), link: Link::Up { source: host(1) } };
    assert_eq!(lab.tell(up), ["backup by started"]);
}

#[test]
fn a_process_that_was_stopped_does_not_believe_that_it_is_still_active() {
    let mut lab = Lab::active(settings(150), &[]);
    lab.now += 5000;
    assert_eq!(words(&lab.node.tick(at(lab.now))), ["release", "backup by paused"]);
    let mut lab = Lab::active(settings(150), &[]);
    lab.now += 250;
    assert_eq!(
        words(&lab.node.tick(at(lab.now))),
        ["hold", "advert 150"],
        "late, but before anybody has taken over"
    );
}

#[test]
fn who_slept_as_backup_has_not_heard_who_spoke_meanwhile() {
    let mut lab = Lab::up(settings(100), &[]);
    lab.hear(2, 150);
    lab.now = 3000;
    assert_eq!(words(&lab.node.tick(at(3000))), [""; 0]);
    assert_eq!(lab.state(), State::Backup);
}

// ---- Health, wishes, the end -----------------------------------------------------------------------------------------

fn unwell() -> Event {
    Event::Proxy(Proxy::Unwell { why: "it cannot reach its cluster".to_owned() })
}

#[test]
fn alone_an_unwell_host_asks_once_whether_somebody_else_is_there() {
    let mut lab = Lab::active(settings(150), &[]);
    assert_eq!(lab.tell(unwell()), ["release", "advert 0", "backup by unwell"]);
    assert_eq!(lab.changes_until(11_000), ["hold", "active by silence"], "nobody is: better we than nobody");
    assert_eq!(lab.changes_until(60_000), [""; 0], "and not again");
    assert_eq!(lab.status().priority, LAST_RESORT);
    assert_eq!(lab.hear(2, 50), ["release", "advert 1", "backup by outranked"], "anybody may have them");
}

#[test]
fn a_weight_lowers_the_priority_and_is_told_at_once() {
    let of = Settings { track: TrackProxy::Lower(NonZeroU8::new(60).unwrap()), ..settings(150) };
    let mut lab = Lab::active(of, &[]);
    assert_eq!(lab.tell(unwell()), ["advert 90"]);
    assert_eq!(lab.state(), State::Active);
    assert_eq!(lab.tell(Event::Proxy(Proxy::Well)), ["advert 150"]);
}

#[test]
fn an_owner_keeps_its_priority() {
    let mut lab = Lab::active(settings(255), &[]);
    assert_eq!(lab.tell(unwell()), [""; 0]);
    assert_eq!(lab.status().priority, 255);
}

#[test]
fn health_may_be_ignored() {
    let mut lab = Lab::active(Settings { track: TrackProxy::Ignore, ..settings(150) }, &[]);
    assert_eq!(lab.tell(unwell()), [""; 0]);
}

#[test]
fn at_the_end_the_addresses_go_before_priority_0() {
    let mut lab = Lab::active(settings(150), &[]);
    assert_eq!(lab.tell(Event::Stop), ["release", "advert 0", "initialize by stopped"]);
    assert!(lab.node.is_idle());
    assert_eq!(lab.until(60_000), [""; 0]);
}

// ---- With other hosts ------------------------------------------------------------------------------------------------

/// lb1 among lb2 (active, 150) and lb3 (backup, 50), all of which hear each other.
fn among(priority: u8) -> Lab {
    let mut lab = Lab::up(settings(priority), &["lb2", "lb3"]);
    lab.connect("lb2");
    lab.connect("lb3");
    settled(&mut lab);
    lab
}

fn settled(lab: &mut Lab) {
    lab.hear(2, 150);
    lab.report("lb2", says(2, State::Active, 150), &[]);
    lab.report("lb3", says(3, State::Backup, 50), &[]);
}

#[test]
fn the_heir_takes_over_at_once_when_enough_say_that_the_holder_has_ended() {
    let mut lab = among(100);
    assert_eq!(lab.tell(Event::Wire { node: node("lb2"), wire: Wire::Ended }), [""; 0], "one of three");
    assert_eq!(
        lab.report("lb3", says(3, State::Backup, 50), &["lb2"]),
        ["hold", "announce", "advert 100", "active by host-lost"]
    );
}

#[test]
fn who_is_not_the_heir_leaves_it_to_the_timers() {
    let mut lab = among(40);
    lab.tell(Event::Wire { node: node("lb2"), wire: Wire::Ended });
    assert_eq!(lab.report("lb3", says(3, State::Backup, 50), &["lb2"]), [""; 0]);
    // The heir does nothing; nor is it lost, for it goes on reporting.
    let mut done = Vec::new();
    for now in (10..500).step_by(10) {
        done.extend(lab.changes_until(now));
        lab.report("lb3", says(3, State::Backup, 50), &["lb2"]);
    }
    assert_eq!(done, ["hold", "active by silence"]);
}

#[test]
fn silence_alone_is_not_enough_without_a_third() {
    let mut lab = among(100);
    // Both fall silent: it is we who are cut off.
    let taken = lab.changes_until(340);
    assert_eq!(taken, [""; 0]);
    assert_eq!(lab.changes_until(400), ["hold", "active by silence"], "VRRP's timers go on");
}

#[test]
fn three_missing_heartbeats_and_the_word_of_a_third_are_enough() {
    let mut lab = among(100);
    let mut taken = Vec::new();
    for now in (10..=120).step_by(10) {
        taken.extend(lab.changes_until(now).into_iter().map(|word| (now, word)));
        let lost: &[&str] = if now >= 90 { &["lb2"] } else { &[] };
        let words = lab.report("lb3", says(3, State::Backup, 50), lost);
        taken.extend(words.into_iter().map(|word| (now, word)));
    }
    assert_eq!(taken.first(), Some(&(90, "hold".to_owned())), "{taken:?}");
}

#[test]
fn a_holder_that_says_that_it_holds_them_no_more_is_succeeded_at_once() {
    let mut lab = among(100);
    lab.until(30);
    let gone = RouterReport { state: State::Initialize, source: None, ..says(2, State::Initialize, 150) };
    // Its last advert still counts for somebody who may hold them: it came from the one that has let go.
    assert_eq!(lab.report("lb2", gone, &[]), ["hold", "announce", "advert 100", "active by host-lost"]);
}

#[test]
fn what_is_offered_is_taken_and_the_giver_then_lets_go() {
    let mut lab = among(100);
    lab.until(30);
    let offer =
        RouterReport { offer: Some(node("lb1")), priority: 1, fit: false, ..says(2, State::Active, 150) };
    assert_eq!(lab.report("lb2", offer, &[]), ["hold", "announce", "advert 100", "active by handed-over"]);
}

/// Found by random faults: what a host sends while its link is down waits in its own kernel, and all of it comes when it is back.
#[test]
fn old_reports_of_a_host_that_is_back_are_not_acted_upon() {
    let gone = || RouterReport { source: None, ..says(2, State::Initialize, 150) };
    let offer = || RouterReport { offer: Some(node("lb1")), fit: false, ..says(2, State::Active, 1) };
    for old in [gone(), offer()] {
        let mut lab = among(100);
        for now in (10..=200).step_by(10) {
            assert_eq!(lab.changes_until(now), [""; 0]);
            lab.report("lb3", says(3, State::Backup, 50), &[]);
            if now % 50 == 0 {
                lab.hear(2, 150); // its adverts arrive, its reports do not: it is silent, and holds them
            }
        }
        assert_eq!(lab.report("lb2", old, &[]), [""; 0]);
        assert_eq!(lab.report("lb2", says(2, State::Active, 150), &[]), [""; 0], "and here is the truth");
        assert_eq!(lab.changes_until(230), [""; 0]);
    }
}

#[test]
fn who_is_back_and_says_so_for_a_heartbeat_is_believed() {
    let mut lab = among(100);
    for now in (10..=200).step_by(10) {
        lab.until(now);
        lab.report("lb3", says(3, State::Backup, 50), &[]);
    }
    let gone = || RouterReport { source: None, ..says(2, State::Initialize, 150) };
    assert_eq!(lab.report("lb2", gone(), &[]), [""; 0]);
    assert_eq!(lab.changes_until(229), [""; 0]);
    let mut done = lab.changes_until(230);
    done.extend(lab.report("lb2", gone(), &[]));
    assert_eq!(done, ["hold", "active by host-lost"]);
}

#[test]
fn what_is_offered_to_another_is_not_taken() {
    let mut lab = among(100);
    let offer =
        RouterReport { offer: Some(node("lb3")), priority: 1, fit: false, ..says(2, State::Active, 150) };
    assert_eq!(lab.report("lb2", offer, &[]), [""; 0]);
}

/// lb1 active with priority 150, lb2 (100) and lb3 (50) in backup.
fn holding() -> Lab {
    let mut lab = Lab::active(settings(150), &["lb2", "lb3"]);
    lab.connect("lb2");
    lab.connect("lb3");
    lab.report("lb2", says(2, State::Backup, 100), &[]);
    lab.report("lb3", says(3, State::Backup, 50), &[]);
    lab
}

fn offered(lab: &mut Lab) -> Option<NodeName> {
    lab.node.routers().next().unwrap().report().offer
}

#[test]
fn a_wish_to_yield_is_an_offer_first() {
    let mut lab = holding();
    assert_eq!(lab.tell(Event::Yield { router: None }), [""; 0]);
    assert_eq!(offered(&mut lab), Some(node("lb2")));
    lab.now += 1;
    assert_eq!(
        lab.report("lb2", says(2, State::Active, 100), &[]),
        ["release", "advert 0", "backup by yielded"]
    );
    lab.hear(2, 100);
    assert_eq!(lab.status().priority, LAST_RESORT);
    assert_eq!(lab.tell(Event::Resume { router: None }), [""; 0], "not before five seconds of peace");
}

#[test]
fn the_heirs_advert_is_as_good_as_its_report() {
    let mut lab = holding();
    lab.tell(Event::Yield { router: None });
    let advert = Event::Advert { router: vip(), from: host(2), advert: advert(100) };
    let actions = lab.node.handle(at(lab.now), advert);
    assert_eq!(words(&actions), ["release", "advert 0", "backup by yielded"]);
    let said = actions.iter().any(|action| {
        let Action::Note(Note::Transition(transition)) = action else { return false };
        transition.reason == Reason::Yielded { to: Some(node("lb2")) }
    });
    assert!(said, "{actions:?}");
}

#[test]
fn an_heir_that_does_not_take_is_not_waited_for() {
    let mut lab = holding();
    lab.tell(Event::Yield { router: None });
    let end = lab.now + 50;
    assert_eq!(lab.until(end - 1), [""; 0], "nothing is said meanwhile");
    assert_eq!(lab.until(end), ["release", "advert 0", "backup by yielded"]);
}

#[test]
fn an_unwell_host_keeps_them_while_nobody_is_better() {
    let mut lab = holding();
    for (number, peer) in [(2, "lb2"), (3, "lb3")] {
        lab.report(peer, RouterReport { fit: false, priority: 1, ..says(number, State::Backup, 1) }, &[]);
    }
    assert_eq!(lab.tell(unwell()), [""; 0]);
    assert_eq!((lab.state(), offered(&mut lab)), (State::Active, None));
    lab.report("lb3", says(3, State::Backup, 50), &[]);
    assert_eq!(offered(&mut lab), Some(node("lb3")), "the first who is");
}

#[test]
fn the_end_of_the_process_is_an_offer_too() {
    let mut lab = holding();
    assert_eq!(lab.tell(Event::Stop), [""; 0]);
    assert!(!lab.node.is_idle());
    lab.now += 1;
    assert_eq!(
        lab.report("lb2", says(2, State::Active, 100), &[]),
        ["release", "advert 0", "initialize by stopped"]
    );
}

#[test]
fn a_lower_holder_is_preempted_by_the_heir_after_five_quiet_seconds() {
    let mut lab = Lab::up(settings(150), &["lb2"]);
    lab.connect("lb2");
    let mut taken = None;
    for now in (10..8000).step_by(10) {
        let words = lab.changes_until(now);
        if let Some(word) = words.last() {
            taken = Some((now, word.clone()));
            break;
        }
        lab.report("lb2", says(2, State::Active, 100), &[]);
        if now % 100 == 0 {
            lab.hear(2, 100);
        }
    }
    assert_eq!(taken, Some((5000, "active by preempted".to_owned())));
}

#[test]
fn a_report_of_a_higher_holder_is_enough_to_give_way() {
    let mut lab = Lab::active(settings(100), &["lb2"]);
    lab.connect("lb2");
    assert_eq!(lab.report("lb2", says(2, State::Active, 150), &[]), ["release", "backup by outranked"]);
}

#[test]
fn a_loser_that_steps_down_makes_the_winner_tell_the_neighbours() {
    let mut lab = holding();
    lab.until(20_000);
    lab.report("lb2", says(2, State::Active, 100), &[]);
    lab.now += 60;
    let words = lab.report("lb2", says(2, State::Backup, 100), &[]);
    assert!(words.contains(&"announce".to_owned()), "{words:?}");
}

#[test]
fn a_holder_whose_adverts_never_arrive_is_believed_and_shown() {
    let mut lab = Lab::up(settings(100), &["lb2"]);
    lab.connect("lb2");
    let mut said = Vec::new();
    for now in (10..3000).step_by(10) {
        said.extend(lab.changes_until(now));
        said.extend(lab.report("lb2", says(2, State::Active, 150), &[]));
    }
    assert_eq!(said, ["alarm adverts-blocked"]);
    assert_eq!(lab.state(), State::Backup);
    assert_eq!(AlarmKind::AdvertsBlocked.as_str(), "adverts-blocked");
}

#[test]
fn a_holder_whose_adverts_came_and_come_no_more_is_cut_off_from_the_clients() {
    let mut lab = Lab::up(settings(100), &["lb2"]);
    lab.connect("lb2");
    let mut taken = Vec::new();
    for now in (10..3000).step_by(10) {
        taken.extend(lab.changes_until(now).into_iter().map(|word| (now, word)));
        lab.report("lb2", says(2, State::Active, 150), &[]);
        if now <= 1000 && now % 100 == 0 {
            lab.hear(2, 150);
        }
    }
    assert_eq!(taken.len(), 2, "{taken:?}");
    assert!(taken.iter().all(|(now, _)| (1300..1400).contains(now)), "{taken:?}");
    // Its adverts are heard again: the higher priority has them.
    assert_eq!(lab.hear(2, 150), ["release", "backup by outranked"]);
}

#[test]
fn of_two_hosts_the_end_of_one_is_enough() {
    let mut lab = Lab::up(settings(100), &["lb2"]);
    lab.connect("lb2");
    lab.hear(2, 150);
    lab.report("lb2", says(2, State::Active, 150), &[]);
    let words = lab.tell(Event::Wire { node: node("lb2"), wire: Wire::Ended });
    assert_eq!(words, ["hold", "announce", "advert 100", "active by host-lost"]);
    let how = Reason::HostLost { node: node("lb2"), how: Loss::Ended, votes: 1 };
    assert_eq!(how.to_string(), "lb2 is lost: its process has ended");
}

#[test]
fn a_stranger_that_holds_them_is_not_succeeded_because_a_host_ended() {
    let mut lab = among(100);
    lab.until(10);
    lab.hear(9, 200); // a keepalived has taken over
    lab.tell(Event::Wire { node: node("lb2"), wire: Wire::Ended });
    assert_eq!(lab.report("lb3", says(3, State::Backup, 50), &["lb2"]), [""; 0]);
}

// ---- A new configuration ---------------------------------------------------------------------------------------------

fn reconfigured(lab: &mut Lab, settings: Settings) -> Vec<String> {
    let settings = NodeSettings {
        node: node("lb1"),
        routers: vec![settings],
        peers: BTreeMap::new(),
        heartbeat: HEARTBEAT,
    };
    let mut done = words(&lab.node.abandon(at(lab.now), &settings));
    done.extend(words(&lab.node.reconfigure(at(lab.now), settings).0));
    done
}

#[test]
fn a_new_priority_is_taken_in_place() {
    let mut lab = Lab::active(settings(150), &[]);
    assert_eq!(reconfigured(&mut lab, settings(120)), ["advert 120"]);
    assert_eq!(lab.state(), State::Active);
}

#[test]
fn a_new_address_is_put_beside_the_old_one() {
    let mut lab = Lab::active(settings(150), &[]);
    let mut more = settings(150);
    more.addresses.push("10.0.0.101/24".parse().unwrap());
    assert_eq!(reconfigured(&mut lab, more), ["hold", "announce"]);
}

#[test]
fn another_router_id_is_another_router() {
    let mut lab = Lab::active(settings(150), &[]);
    let other = Settings { router_id: NonZeroU8::new(52).unwrap(), ..settings(150) };
    assert_eq!(reconfigured(&mut lab, other), ["release", "advert 0", "initialize by reconfigured"]);
    assert_eq!(lab.state(), State::Initialize);
}

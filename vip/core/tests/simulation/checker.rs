//! What must hold at every moment.

use std::collections::BTreeMap;
use std::time::Duration;

use pointsman_vrrp::event::{Action, State};
use pointsman_vrrp::note::{Loss, Note, Reason, Transition};
use pointsman_vrrp::router::Router;
use pointsman_vrrp::time::Moment;

use crate::world::{Host, World, name_of};

/// A deadline that is past after this many ticks in a row keeps a core busy.
const BUSY: u32 = 2;

#[derive(Debug, Default)]
pub(crate) struct Checker {
    busy: BTreeMap<usize, u32>,
    /// Pairs of hosts that both hold the addresses and hear each other, and since when.
    besides: BTreeMap<(usize, usize), Moment>,
    /// Since when nobody holds the addresses though somebody could, who has been there for a while.
    nobody: Option<Moment>,
    /// When reports of the first host could not reach the second, most lately.
    deaf: BTreeMap<(usize, usize), Moment>,
    /// Since the last fault.
    pub(crate) transitions: Vec<(Moment, usize, Transition)>,
}

impl Checker {
    pub(crate) fn restarted(&mut self, host: usize) {
        self.busy.remove(&host);
    }

    pub(crate) fn ticked(&mut self, host: usize, now: Moment, deadline: Option<Moment>) {
        let busy = self.busy.entry(host).or_default();
        *busy = if deadline.is_some_and(|deadline| deadline <= now) { *busy + 1 } else { 0 };
        assert!(*busy < BUSY, "lb{host} wants to be woken at {deadline:?}, and it is {now:?}");
    }

    /// A host does something, and does or does not hold the addresses before it.
    pub(crate) fn did(&mut self, now: Moment, host: usize, holds: bool, action: &Action) {
        match action {
            Action::Announce { .. } => assert!(holds, "lb{host} announces what it does not hold"),
            Action::Advertise { priority: 0, .. } => {
                assert!(!holds, "lb{host} lets go of what it holds");
            }
            Action::Note(Note::Transition(transition)) => {
                assert_eq!(holds, transition.to == State::Active, "lb{host}: {transition:?}");
                assert_ne!(transition.from, transition.to, "lb{host}: {transition:?}");
                self.transitions.push((now, host, transition.clone()));
            }
            Action::Hold { .. }
            | Action::Release { .. }
            | Action::Advertise { .. }
            | Action::Report(_)
            | Action::Note(_) => {}
        }
    }
}

impl World {
    /// After each step.
    pub(crate) fn check(&mut self) {
        self.check_pairs();
        self.check_somebody();
        let pairs = (0..self.hosts.len()).flat_map(|from| (0..self.hosts.len()).map(move |to| (from, to)));
        for (from, to) in pairs.filter(|(from, to)| from != to) {
            if !self.hosts[from].runs() || !self.hosts[to].runs() || !self.reaches(from, to) {
                self.checker.deaf.insert((from, to), self.now);
            }
        }
    }

    /// Who claims before VRRP's timers has the word of more than half of all hosts, and they do not say so for nothing.
    pub(crate) fn check_votes(&self, host: usize, transition: &Transition) {
        let Reason::HostLost { node, how, votes } = &transition.reason else { return };
        if *how == Loss::LetGo {
            return;
        }
        let vips = self.hosts.iter().filter(|host| !host.keepalived).count();
        let enough = |votes: usize| votes > vips / 2 || (vips == 2 && *how == Loss::Ended);
        assert!(*votes < vips && enough(*votes), "lb{host} claims early with {votes} of {vips} votes");
        let lost = (0..self.hosts.len()).find(|number| name_of(*number) == *node).unwrap();
        // Three heartbeats are missing somewhere, and it takes a report to tell others so, which counts for three more.
        let lately = self.setup.heartbeat * 8 + Duration::from_millis(30);
        let is_deaf =
            |to: &usize| self.checker.deaf.get(&(lost, *to)).is_some_and(|at| self.now.since(*at) <= lately);
        let deaf = (0..self.hosts.len()).filter(|to| !self.hosts[*to].keepalived).filter(is_deaf).count();
        assert!(
            self.network.loss > 0 || enough(deaf),
            "lb{host}: {transition:?}, but {deaf} hosts did not hear it"
        );
    }

    /// Somebody holds the addresses, after a silence and an election at the latest.
    fn check_somebody(&mut self) {
        let bound = self.setup.interval * 8 + Duration::from_millis(300);
        let is_there =
            |host: &Host| host.runs() && host.link && !host.stopping && self.now.since(host.since) > bound;
        let held = self.hosts.iter().any(|host| host.runs() && host.holds);
        if held || !self.hosts.iter().any(is_there) {
            self.checker.nobody = None;
            return;
        }
        let since = *self.checker.nobody.get_or_insert(self.now);
        let waited = self.now.since(since.max(self.forged));
        assert!(waited <= bound, "nobody holds the addresses for {waited:?}");
    }

    /// Two that hear each other do not both hold the addresses for long.
    fn check_pairs(&mut self) {
        // Where adverts were lost and reports were not, adverts count and reports do not.
        let by_reports = self.setup.peers && !self.network.one_sided;
        let speaks = if by_reports { self.setup.heartbeat } else { self.setup.interval };
        let bound = speaks * 2 + Duration::from_millis(20);
        let vip = |host: &Host| !host.keepalived && host.runs();
        let count = self.hosts.len();
        for pair in (0..count).flat_map(|one| (one + 1..count).map(move |other| (one, other))) {
            let (one, other) = (&self.hosts[pair.0], &self.hosts[pair.1]);
            let hear = self.reaches(pair.0, pair.1) && self.reaches(pair.1, pair.0);
            let quiet = self.network.loss > 0
                || self.network.mute.contains(&pair.0)
                || self.network.mute.contains(&pair.1);
            let both = one.holds && other.holds && vip(one) && vip(other) && hear && !quiet;
            if !both {
                self.checker.besides.remove(&pair);
                continue;
            }
            let since = *self.checker.besides.entry(pair).or_insert(self.now);
            assert!(
                self.now.since(since) <= bound,
                "lb{} and lb{} both hold the addresses, and hear each other, for {:?}",
                pair.0,
                pair.1,
                self.now.since(since)
            );
        }
    }

    pub(crate) fn holders(&self) -> Vec<usize> {
        self.hosts.iter().filter(|host| host.powered && host.holds).map(|host| host.number).collect()
    }

    /// At rest there is one holder, and the client knows it.
    pub(crate) fn check_rest(&self) {
        let holders = self.holders();
        assert_eq!(holders.len(), 1, "at rest these hosts hold the addresses: {holders:?}");
        let holder = holders[0];
        assert!(self.hosts[holder].runs(), "the holder does not run");
        // Two keepalived between themselves leave a client behind; that is why there is pointsman-vip.
        let is_keepalived = |number: usize| self.hosts.get(number).is_some_and(|host| host.keepalived);
        let known = self.neighbour.is_some_and(is_keepalived) && is_keepalived(holder);
        assert!(
            self.neighbour == Some(holder) || known,
            "the client takes {:?} for the owner, and it is {holder}",
            self.neighbour
        );
        self.check_best(holder);
    }

    /// It is one that is fit, if there is one; and with preemption nobody is better.
    fn check_best(&self, holder: usize) {
        let rank = |host: &Host| {
            let unfit =
                host.yielded || (host.unwell && self.setup.track == pointsman_config::TrackProxy::Release);
            let priority = host.node().and_then(|node| node.routers().next()).map(Router::priority);
            (!unfit, priority.unwrap_or(host.priority))
        };
        let ours = rank(&self.hosts[holder]);
        // Without reports a host that is not fit cannot know that another one is, and without preemption nobody tells it.
        if !self.setup.peers && !self.setup.preempt {
            return;
        }
        for other in self.hosts.iter().filter(|host| host.runs() && host.link) {
            let theirs = rank(other);
            assert!(theirs.0 <= ours.0, "lb{holder} is not fit, and lb{} is", other.number);
            if self.setup.preempt {
                assert!(
                    theirs <= ours,
                    "lb{holder} {ours:?} holds, and lb{} {theirs:?} would be better",
                    other.number
                );
            }
        }
    }
}

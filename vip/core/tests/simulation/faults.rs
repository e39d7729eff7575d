//! Bad luck, and its end.

use std::net::IpAddr;
use std::time::Duration;

use pointsman_vrrp::event::{Event, Wire};

use crate::world::{Message, Program, World, source_of, vip};

/// None of the hosts.
const STRANGER: usize = 8;

impl World {
    /// Something goes wrong, or right again, and then some time passes.
    pub(crate) fn bad_luck(&mut self) {
        let host = self.dice.below(self.hosts.len());
        match self.dice.below(18) {
            0 => self.kill_all(host),
            1 | 2 => self.kill_worker(host),
            3 => self.power_off(host),
            4 => self.freeze(host),
            5 => self.unplug(host),
            6 => self.divide(),
            7 | 8 => self.heal(),
            9 => self.make_deaf(),
            10 => {
                let yielded = self.dice.one_in(2);
                self.set_yielded(host, yielded);
            }
            11 if self.hosts[host].keepalived => {}
            11 => {
                let unwell = self.dice.one_in(2);
                self.say(|_| format!("the proxy of lb{host} is unwell: {unwell}"));
                self.set_unwell(host, unwell);
            }
            12 => self.forge(),
            13 => self.take_away(host),
            14 => self.stop(host),
            15 | 16 => self.claim(),
            _ => {
                self.say(|_| format!("lb{host} is mute"));
                self.network.mute.insert(host);
                self.network.one_sided = true;
            }
        }
        let time = self.dice.one_of(&[1, 20, 200, 1000, 2500]);
        let time = self.dice.millis(0, time) + Duration::from_micros(10);
        self.run_for(time);
    }

    fn does_run(&self, host: usize) -> bool {
        !matches!(self.hosts[host].program, Program::None)
    }

    /// Guard and worker at once; the service manager starts them again.
    pub(crate) fn kill_all(&mut self, host: usize) {
        if !self.does_run(host) {
            return;
        }
        self.say(|_| format!("lb{host} is killed"));
        self.end(host, Wire::Ended);
        if !self.hosts[host].keepalived && self.hosts[host].holds {
            self.hosts[host].expires = Some(self.now + self.dice.millis(1400, 2000));
        }
        let wait = self.dice.millis(100, 3000);
        self.after(wait, Message::Restart { host });
    }

    pub(crate) fn kill_worker(&mut self, host: usize) {
        if self.hosts[host].keepalived || !self.does_run(host) {
            return;
        }
        self.say(|_| format!("the worker of lb{host} is killed"));
        self.end(host, Wire::Ended);
        let wait = self.dice.micros(100, 2000);
        self.after(wait, Message::Guard { host });
    }

    pub(crate) fn power_off(&mut self, host: usize) {
        self.say(|_| format!("lb{host} is switched off"));
        self.forget_connections(host);
        let host = &mut self.hosts[host];
        host.program = Program::None;
        host.powered = false;
        host.holds = false;
        host.expires = None;
        let number = host.number;
        let wait = self.dice.millis(500, 3000);
        self.after(wait, Message::Restart { host: number });
    }

    pub(crate) fn freeze(&mut self, host: usize) {
        if !self.hosts[host].runs() {
            return;
        }
        self.say(|_| format!("lb{host} is frozen"));
        let expires = self.now + self.dice.millis(1400, 2000);
        let state = &mut self.hosts[host];
        state.frozen = true;
        if state.holds && !state.keepalived {
            state.expires = Some(expires);
        }
        let time = self.dice.one_of(&[30, 200, 1000, 3000]);
        let wait = self.dice.millis(1, time);
        self.after(wait, Message::Thaw { host });
    }

    pub(crate) fn unplug(&mut self, host: usize) {
        if self.hosts[host].keepalived {
            return; // its address would stay without a program that takes it away
        }
        self.set_link(host, false);
        let wait = self.dice.millis(10, 3000);
        self.after(wait, Message::LinkUp { host });
    }

    /// Two halves that do not hear each other; the client is in one of them.
    fn divide(&mut self) {
        let halves: Vec<bool> = (0..=self.client()).map(|_| self.dice.one_in(2)).collect();
        self.divide_as(&halves);
    }

    pub(crate) fn divide_as(&mut self, halves: &[bool]) {
        self.say(|_| format!("a partition: {halves:?}"));
        let places = halves.len();
        for (one, other) in (0..places).flat_map(|one| (0..places).map(move |other| (one, other))) {
            if halves[one] != halves[other] {
                self.network.blocked.insert((one, other));
            }
        }
    }

    pub(crate) fn heal(&mut self) {
        self.say(|_| "everybody hears everybody".to_owned());
        self.network.blocked.clear();
        self.network.mute.clear();
    }

    /// One direction only.
    fn make_deaf(&mut self) {
        let (from, to) = (self.dice.below(self.hosts.len()), self.dice.below(self.hosts.len()));
        self.say(|_| format!("lb{to} does not hear lb{from}"));
        self.network.blocked.insert((from, to));
        self.network.one_sided = true;
    }

    pub(crate) fn set_yielded(&mut self, host: usize, yielded: bool) {
        if !self.hosts[host].runs() || self.hosts[host].keepalived {
            return;
        }
        self.say(|_| format!("lb{host} shall yield: {yielded}"));
        self.hosts[host].yielded = yielded;
        self.tell(host, if yielded { Event::Yield { router: None } } else { Event::Resume { router: None } });
    }

    /// A stranger sends adverts to some of the hosts.
    fn forge(&mut self) {
        let priority = self.dice.one_of(&[0, 1, 90, 254]);
        self.say(|_| format!("a stranger advertises priority {priority}"));
        for _ in 0..=self.dice.below(4) {
            let to = self.dice.below(self.hosts.len());
            let wait = self.dice.millis(0, 300);
            self.forged = self.forged.max(self.now + wait);
            self.after(wait, Message::Advert { from: source_of(STRANGER), to, priority });
        }
    }

    /// A stranger tells everybody that it has the address.
    pub(crate) fn claim(&mut self) {
        self.say(|_| "a stranger claims the address".to_owned());
        for _ in 0..=self.dice.below(4) {
            let wait = self.dice.millis(0, 300);
            for to in 0..=self.client() {
                self.after(wait, Message::Arp { from: STRANGER, to });
            }
        }
    }

    /// Somebody removes the addresses.
    fn take_away(&mut self, host: usize) {
        if self.hosts[host].runs() && self.hosts[host].holds && !self.hosts[host].keepalived {
            self.say(|_| format!("somebody removes the addresses of lb{host}"));
            self.hosts[host].holds = false;
            let address = IpAddr::from([10, 0, 0, 100]);
            self.tell(host, Event::AddressGone { router: vip(), address });
        }
    }

    /// SIGTERM.
    pub(crate) fn stop(&mut self, host: usize) {
        if !self.hosts[host].runs() {
            return;
        }
        self.say(|_| format!("lb{host} stops"));
        self.hosts[host].stopping = true;
        if let Program::Keepalived(program) = &self.hosts[host].program {
            let deeds = program.stop();
            self.perform(host, &deeds);
            self.end(host, Wire::Ended);
        } else {
            self.tell(host, Event::Stop);
            let incarnation = self.hosts[host].incarnation;
            self.after(Duration::from_millis(300), Message::End { host, incarnation });
        }
        let wait = self.dice.millis(400, 3000);
        self.after(wait, Message::Restart { host });
    }

    /// No more faults; hosts come back, or stay away for good; after a while nothing moves any more.
    pub(crate) fn quiet(&mut self) {
        self.say(|_| "no more faults".to_owned());
        self.heal();
        self.network.loss = 0;
        let left = self.dice.one_in(2);
        for host in 0..self.hosts.len() {
            // Some stay as they are.
            if left && self.dice.one_in(3) {
                continue;
            }
            if self.hosts[host].yielded {
                self.hosts[host].yielded = false;
                self.tell(host, Event::Resume { router: None });
            }
            self.set_unwell(host, false);
        }
        let interval = self.setup.interval;
        // Restarts and links, two elections, the delay of preemption and one more election.
        self.run_for(Duration::from_millis(9500) + interval * 12 + self.setup.preempt_delay * 2);
        self.checker.transitions.clear();
        self.check_rest();
        for _ in 0..6 {
            self.run_for(Duration::from_secs(1));
            self.check_rest();
        }
        let moved = &self.checker.transitions;
        assert!(moved.is_empty(), "it does not come to rest: {moved:?}");
    }
}

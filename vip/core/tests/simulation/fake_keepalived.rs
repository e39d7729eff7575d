//! What keepalived 2.2.7 does on the wire, as it was measured: version 3, multicast, no `nopreempt`.
//!
//! It speaks VRRP and nothing else, it never hears ARP, and it steps down in silence.

use std::net::IpAddr;
use std::time::Duration;

use pointsman_vrrp::time::Moment;

/// The announcements at once, and again after so long.
const AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct FakeKeepalived {
    priority: u8,
    source: IpAddr,
    own_interval: Duration,
    state: State,
}

#[derive(Debug)]
enum State {
    Backup { down_at: Moment, interval: Duration },
    Master { advert_at: Moment, again_at: Option<Moment> },
}

/// What it does, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Advertise(u8),
    Hold,
    Release,
    Announce,
}

impl FakeKeepalived {
    pub(crate) fn new(now: Moment, priority: u8, source: IpAddr, own_interval: Duration) -> Self {
        let state = State::Backup { down_at: now, interval: own_interval };
        let mut new = Self { priority, source, own_interval, state };
        new.wait(now, own_interval);
        new
    }

    pub(crate) fn is_master(&self) -> bool {
        matches!(self.state, State::Master { .. })
    }

    fn skew(&self, interval: Duration) -> Duration {
        interval * (256 - u32::from(self.priority)) / 256
    }

    fn wait(&mut self, now: Moment, interval: Duration) {
        self.state = State::Backup { down_at: now + interval * 3 + self.skew(interval), interval };
    }

    pub(crate) fn deadline(&self) -> Moment {
        match self.state {
            State::Backup { down_at, .. } => down_at,
            State::Master { advert_at, again_at } => again_at.map_or(advert_at, |again| again.min(advert_at)),
        }
    }

    pub(crate) fn tick(&mut self, now: Moment) -> Vec<Deed> {
        match &mut self.state {
            State::Backup { down_at, .. } if now >= *down_at => {
                let again_at = Some(now + AGAIN);
                self.state = State::Master { advert_at: now + self.own_interval, again_at };
                vec![Deed::Advertise(self.priority), Deed::Hold, Deed::Announce]
            }
            State::Backup { .. } => Vec::new(),
            State::Master { advert_at, again_at } => {
                let mut deeds = Vec::new();
                if again_at.is_some_and(|again| now >= again) {
                    *again_at = None;
                    deeds.push(Deed::Announce);
                }
                if now >= *advert_at {
                    *advert_at = now + self.own_interval;
                    deeds.push(Deed::Advertise(self.priority));
                }
                deeds
            }
        }
    }

    pub(crate) fn advert(
        &mut self,
        now: Moment,
        from: IpAddr,
        priority: u8,
        interval: Duration,
    ) -> Vec<Deed> {
        match &mut self.state {
            State::Backup { down_at, interval } if priority == 0 => {
                let interval = *interval;
                *down_at = now + interval * (256 - u32::from(self.priority)) / 256;
                Vec::new()
            }
            State::Backup { .. } if priority >= self.priority => {
                self.wait(now, interval);
                Vec::new()
            }
            State::Backup { .. } => Vec::new(),
            State::Master { advert_at, .. } if priority == 0 => {
                *advert_at = now + self.own_interval;
                vec![Deed::Advertise(self.priority)]
            }
            State::Master { .. } if (priority, from) > (self.priority, self.source) => {
                self.wait(now, interval);
                vec![Deed::Release]
            }
            State::Master { advert_at, again_at } => {
                *advert_at = now + self.own_interval;
                *again_at = Some(now + AGAIN);
                vec![Deed::Advertise(self.priority), Deed::Announce]
            }
        }
    }

    /// SIGTERM.
    pub(crate) fn stop(&self) -> Vec<Deed> {
        if self.is_master() { vec![Deed::Advertise(0), Deed::Release] } else { Vec::new() }
    }
}

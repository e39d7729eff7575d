//! The queue against a plain model, under random operations.

use super::*;

const RATE: u32 = 100;
const DIAL_PAUSE: Duration = Duration::from_millis(30);

#[derive(Clone, Debug)]
enum Op {
    /// A new connection arrives and would wait for this many milliseconds.
    Arrive(u64),
    /// One of those that were let through comes back.
    DialFails(prop::sample::Index),
    /// One of those that wait goes away.
    Leave(prop::sample::Index),
    Route(bool),
    /// So many milliseconds pass.
    Pass(u64),
    /// Time passes until the queue wants to be polled.
    PassUntilTimeout,
    MaxHeld(u32),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u64..3000).prop_map(Op::Arrive),
        2 => any::<prop::sample::Index>().prop_map(Op::DialFails),
        1 => any::<prop::sample::Index>().prop_map(Op::Leave),
        2 => any::<bool>().prop_map(Op::Route),
        2 => (0u64..50).prop_map(Op::Pass),
        1 => (0u64..4000).prop_map(Op::Pass),
        2 => Just(Op::PassUntilTimeout),
        1 => (0u32..12).prop_map(Op::MaxHeld),
    ]
}

/// What the model knows of a waiting connection. Keys are given in order of arrival.
#[derive(Clone, Copy)]
struct Waiting {
    deadline: Moment,
    pause_ends: Moment,
}

struct Model {
    queue: HoldQueue<u32>,
    now: Moment,
    max_held: usize,
    available: bool,
    /// Arrivals are paced at least until then.
    fresh_until: Moment,
    waiting: BTreeMap<u32, Waiting>,
    /// Let through, and perhaps coming back.
    dialling: Vec<(u32, Ticket)>,
    /// When connections were let through while pacing was on.
    /// Each with whether the rate was strict then.
    paced: Vec<(Moment, bool)>,
    next_key: u32,
    held: u32,
    settled: u32,
}

impl Model {
    fn new() -> Self {
        Self {
            queue: queue(8, RATE),
            now: Moment::ZERO,
            max_held: 8,
            available: false,
            fresh_until: Moment::ZERO,
            waiting: BTreeMap::new(),
            dialling: Vec::new(),
            paced: Vec::new(),
            next_key: 0,
            held: 0,
            settled: 0,
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Arrive(patience) => self.arrive(Duration::from_millis(*patience)),
            Op::DialFails(which) if !self.dialling.is_empty() => {
                let (key, ticket) = self.dialling.remove(which.index(self.dialling.len()));
                let deadline = ticket.deadline();
                let arrival = self.queue.come_back(self.now, key, ticket, DIAL_PAUSE);
                self.fresh_until = self.fresh_until.max(self.now + FRESH_FOR);
                self.entered(key, &arrival, Waiting { deadline, pause_ends: self.now + DIAL_PAUSE });
            }
            Op::Leave(which) if !self.waiting.is_empty() => {
                let key = *self.waiting.keys().nth(which.index(self.waiting.len())).unwrap();
                assert!(self.queue.leave(key).is_some());
                self.waiting.remove(&key);
                self.settled += 1;
            }
            Op::DialFails(_) | Op::Leave(_) => {}
            Op::Route(available) => {
                if *available && !self.available {
                    self.fresh_until = self.now + FRESH_FOR;
                }
                self.available = *available;
                self.queue.route(self.now, *available);
            }
            Op::Pass(millis) => self.now += Duration::from_millis(*millis),
            Op::PassUntilTimeout => {
                self.now = self.queue.poll_timeout().map_or(self.now, |moment| moment.max(self.now));
            }
            Op::MaxHeld(max_held) => {
                self.max_held = usize::try_from(*max_held).unwrap();
                self.queue.set_limits(self.now, limits(*max_held, RATE, 1));
            }
        }
        self.poll();
        self.check();
    }

    fn arrive(&mut self, patience: Duration) {
        let key = self.next_key;
        self.next_key += 1;
        let deadline = self.now + patience;
        let someone_is_ready = self.waiting.values().any(|waiting| waiting.pause_ends <= self.now);
        let is_paced = !self.waiting.is_empty() || self.now < self.fresh_until;
        let arrival = self.queue.arrive(self.now, key, deadline);
        if let Arrival::Pass(ticket) = arrival {
            assert!(self.available, "let through without a route");
            assert!(!someone_is_ready, "overtook those who wait");
            if is_paced {
                self.paced.push((self.now, self.queue.pace(self.now) == limits(1, RATE, 1)));
            }
            self.dialling.push((key, ticket));
            return;
        }
        self.entered(key, &arrival, Waiting { deadline, pause_ends: self.now });
    }

    fn entered(&mut self, key: u32, arrival: &Arrival, waiting: Waiting) {
        match arrival {
            Arrival::Held => {
                assert!(self.waiting.len() < self.max_held, "held more than max_held");
                self.waiting.insert(key, waiting);
                self.held += 1;
            }
            Arrival::Overflow => assert!(self.waiting.len() >= self.max_held, "refused with room left"),
            Arrival::Pass(_) => panic!("passed without a pause"),
        }
    }

    /// Polls as a caller does, until the queue has nothing more for now.
    fn poll(&mut self) {
        while self.queue.poll_timeout().is_some_and(|moment| moment <= self.now) {
            let batch = self.queue.poll(self.now);
            assert!(!batch.is_empty(), "asked to be polled for nothing");
            for (key, outcome) in batch {
                let waiting = self.waiting.remove(&key).expect("settled once only");
                self.settled += 1;
                match outcome {
                    Outcome::Release(ticket) => {
                        assert!(
                            self.available && waiting.deadline > self.now && waiting.pause_ends <= self.now
                        );
                        let earlier =
                            self.waiting.range(..key).find(|(_, other)| other.pause_ends <= self.now);
                        assert!(earlier.is_none(), "out of order");
                        self.paced.push((self.now, self.queue.pace(self.now) == limits(1, RATE, 1)));
                        self.dialling.push((key, ticket));
                    }
                    Outcome::Expire(ticket) => {
                        assert_eq!(ticket.deadline(), waiting.deadline);
                        assert!(waiting.deadline <= self.now, "expired too early");
                    }
                }
            }
        }
    }

    fn check(&self) {
        assert_eq!(self.queue.len(), self.waiting.len());
        assert_eq!(self.queue.is_empty(), self.waiting.is_empty());
        assert_eq!(self.held, self.settled + u32::try_from(self.waiting.len()).unwrap());
        assert!(self.waiting.values().all(|waiting| waiting.deadline > self.now), "an expired one is left");
        let next_deadline = self.waiting.values().map(|waiting| waiting.deadline).min();
        assert!(self.queue.poll_timeout() <= next_deadline || next_deadline.is_none());
        assert_eq!(self.queue.poll_timeout().is_none(), self.waiting.is_empty());
    }

    /// In any window there are at most `burst + window / interval` paced passages, as long as the rate is strict.
    fn check_rate(&self) {
        let limits = limits(1, RATE, 1);
        for (i, start) in self.paced.iter().enumerate() {
            let strict = self.paced[i..].iter().take_while(|(_, strict)| *strict);
            for (count, (end, _)) in (1u32..).zip(strict) {
                let start = &start.0;
                let needed = limits.interval() * count.saturating_sub(limits.burst());
                assert!(*end - *start >= needed, "{count} let through within {:?}", *end - *start);
            }
        }
    }
}

proptest! {
    #[test]
    fn the_rules_hold_after_every_step(ops in proptest::collection::vec(op(), 1..200)) {
        let mut model = Model::new();
        for op in &ops {
            model.apply(op);
        }
        model.check_rate();
    }

    /// With the route up and patience enough, everyone is let through in the time that the rate allows.
    #[test]
    fn nobody_starves(ops in proptest::collection::vec(op(), 0..100), patient in 1u32..50) {
        let mut model = Model::new();
        for op in &ops {
            model.apply(op);
        }
        model.apply(&Op::Route(false));
        model.apply(&Op::MaxHeld(100));
        for _ in 0..patient {
            model.apply(&Op::Arrive(3_600_000));
        }
        let start = model.now;
        let total = u32::try_from(model.waiting.len()).unwrap();
        model.apply(&Op::Route(true));
        let mut steps = 0;
        while !model.waiting.is_empty() {
            model.apply(&Op::PassUntilTimeout);
            steps += 1;
            prop_assert!(steps <= 2 * total + 2, "polled in vain");
        }
        let limits = limits(1, RATE, 1);
        prop_assert!(model.now - start <= DIAL_PAUSE + limits.interval() * (total + limits.burst()));
        // All quiet: the next one passes at once, and the one after it.
        model.apply(&Op::Pass(4000));
        let before = model.dialling.len();
        for _ in 0..20 {
            model.apply(&Op::Arrive(0));
        }
        prop_assert_eq!(model.dialling.len(), before + 20);
    }
}

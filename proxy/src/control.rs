//! The control task of one cluster: the shell around its topology, and the only writer of its routes.
//!
//! Everything that happens to the cluster comes through one bounded channel; the topology decides; the task
//! carries out what it says, in its order, and never waits for anybody in between. Clusters do not wait for
//! one another: each has a task of its own.
//!
//! Tasks: [`Control::run`] (owned by [`crate::cluster::Cluster`]); questions and probes run on the cluster's
//! tracker, bounded by one of each for every member. Cancel-safety: dropping the future between two events
//! loses nothing that was published.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::event::{Effect, Event};
use pointsman_core::time::Moment;
use pointsman_core::topology::Topology;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::ask::Asker;
use crate::clock::Clock;
use crate::probe::Prober;
use crate::routes::Routes;
use crate::state::{App, ClusterHandle};

/// Events that may wait for the control task. Sources and questions wait for room; sessions' reports are
/// dropped and counted instead.
pub const EVENTS: usize = 1024;

/// The description is made anew at each change, and at least this often.
const DESCRIBE_EVERY: Duration = Duration::from_millis(500);

/// What the control task works with.
#[derive(Debug)]
pub struct Control {
    /// Decides.
    pub topology: Topology,
    /// Where tables are published.
    pub routes: Arc<Routes>,
    /// Where the description goes.
    pub handle: Arc<ClusterHandle>,
    /// Where notes go.
    pub app: Arc<App>,
    /// Asks members.
    pub asker: Asker,
    /// Probes servers.
    pub prober: Prober,
    /// Tells the time.
    pub clock: Clock,
    /// Tells the source whether to look more often than in peace.
    pub uneasy: watch::Sender<bool>,
    /// What happens.
    pub events: mpsc::Receiver<Event>,
}

impl Control {
    /// Runs for ever; dropping the future ends it. The routes stay as they were published last.
    pub async fn run(mut self) -> Infallible {
        let mut described = self.step(Event::Tick, Moment::ZERO);
        loop {
            let event = self.next().await;
            described = self.step(event, described);
        }
    }

    /// The next thing that happens, or the tick that the topology asked for.
    async fn next(&mut self) -> Event {
        let now = self.clock.now();
        let timeout = self.topology.poll_timeout(now).min(now.mono + DESCRIBE_EVERY);
        let wake = self.clock.instant(timeout).map_or_else(|| Instant::now() + DESCRIBE_EVERY, Instant::from);
        tokio::select! {
            // `None` cannot come: this task holds a sender through its asker.
            event = self.events.recv() => event.unwrap_or(Event::Tick),
            () = sleep_until(wake) => Event::Tick,
        }
    }

    /// Handles one event. Takes and returns when the cluster was last described.
    fn step(&mut self, event: Event, described: Moment) -> Moment {
        let now = self.clock.now();
        let read_at = if let Event::View(view) = &event { Some(view.read_at) } else { None };
        let effects = self.topology.handle(now, event);
        let mut changed = false;
        for effect in effects {
            changed |= matches!(effect, Effect::Publish(_) | Effect::Note(_));
            let published = matches!(effect, Effect::Publish(_));
            self.carry_out(effect);
            if let (true, Some(read_at)) = (published, read_at) {
                self.app.metrics.routed(&self.handle.name, self.clock.moment().since(read_at));
            }
        }
        let uneasy = self.topology.is_uneasy(now.mono);
        self.uneasy.send_if_modified(|said| std::mem::replace(said, uneasy) != uneasy);
        if !changed && now.mono.since(described) < DESCRIBE_EVERY {
            return described;
        }
        self.handle.describe(self.topology.describe(now.mono));
        now.mono
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Publish(table) => self.routes.publish(table),
            Effect::Revoke(revocation) => self.routes.revoke(&revocation),
            Effect::Ask { member, question, deadline } => {
                self.handle.questions.to(question.witness()).add(1);
                self.asker.ask(member, question, deadline);
            }
            Effect::Probe { member, addresses, deadline } => {
                self.handle.questions.probes.add(1);
                self.prober.probe(member, addresses, deadline);
            }
            Effect::Note(note) => self.app.note(self.clock.now().wall, &self.handle.name, &note),
        }
    }
}

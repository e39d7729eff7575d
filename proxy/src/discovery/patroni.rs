//! Patroni's REST interface alone, where no store can be reached from here.
//!
//! Two kinds of question: *looks* (`GET /cluster`) go to the members that the file lists, in turns; when one of them does
//! not answer, also to those that the others name, so that a replaced host costs nothing. *Statuses* (`GET /patroni`) go to
//! each member that the last look named: they bring positions. Settings and history are asked seldom.
//!
//! In peace one look every 2.25 s, whoever's turn it is, and a status of each member every `loop_wait`, 6.75 s at the
//! longest: with three members less than half of what a load balancer's health checks cost, and a third with ten. Each
//! member is looked at every 250 ms while something happens: a primary is wanted, the last look brought news, a member
//! has fallen silent.
//!
//! Everything runs in one task: the calls are futures of [`run`]'s own and end with it. There is one call of each kind to
//! a member at most, each with a deadline and a connection of its own, so whoever hangs delays nobody. What the answers
//! mean together is [`Polls`]' business.
//!
//! Patroni reads its store to answer a look, so no answer is how a sick store shows here. Then the topology asks each
//! member for its status by itself. `/patroni` does not say where PostgreSQL listens: started in such a moment, there is
//! nobody to route to, and sessions are held until the first look is answered.

use std::convert::Infallible;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use pointsman_config::{Cluster, Endpoint, PatroniRest, Scheme};
use pointsman_core::event::Status;
use pointsman_core::patroni::{
    Asked, Polls, Verdict, parse_cluster, parse_config, parse_history, parse_status,
};
use pointsman_core::time::Moment;
use pointsman_core::view::{Address, ApiUrl, MemberName};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use self::call::{Answer, Call, Question};
use self::pace::Pace;
use self::peers::{Peer, Peers};
use super::{Heritage, Outlet, bequeath, inherited};
use crate::ask::Failure;
use crate::clock::Clock;

mod call;
mod pace;
mod peers;

/// Asks for ever.
pub(super) async fn run(
    cluster: &Cluster,
    config: &PatroniRest,
    outlet: Outlet<'_>,
    uneasy: watch::Receiver<bool>,
    heritage: &Heritage,
) -> Infallible {
    let listed = config.members.iter().map(api);
    let now = outlet.now();
    let mut source = Source {
        cluster,
        listed: listed.clone().collect(),
        endpoints: listed.map(|api| (api.clone(), Peer::new(api, &cluster.rest))).collect(),
        members: Peers::new(),
        outlet,
        uneasy,
        polls: inherited(&heritage.polls).unwrap_or_default(),
        heritage,
        told: false,
        pace: Pace::new(now),
        calls: FuturesUnordered::new(),
    };
    loop {
        source.turn().await;
    }
}

fn api(endpoint: &Endpoint) -> ApiUrl {
    let address = Address { host: endpoint.address.host().to_owned(), port: endpoint.address.port() };
    ApiUrl { tls: endpoint.scheme == Scheme::Https, address }
}

struct Source<'a> {
    cluster: &'a Cluster,
    outlet: Outlet<'a>,
    uneasy: watch::Receiver<bool>,
    /// As in the file, and as in [`super::SourceStats`].
    listed: Vec<ApiUrl>,
    /// Who is looked at: the listed ones, and those that the last look named besides.
    endpoints: Peers<ApiUrl>,
    /// Who is asked for a status.
    members: Peers<MemberName>,
    polls: Polls,
    heritage: &'a Heritage,
    /// A whole view was told since the start.
    told: bool,
    pace: Pace,
    calls: FuturesUnordered<BoxFuture<'static, Answer>>,
}

impl Source<'_> {
    /// Sends what is due, and waits for the next thing to happen.
    async fn turn(&mut self) {
        let now = self.outlet.now();
        let uneasy = *self.uneasy.borrow_and_update();
        self.pace.feel(uneasy, self.leader_silent_since(), now);
        self.send_due(now);
        if self.pace.is_lost(now) {
            let summary = self.summary();
            self.outlet.stats.connected.store(super::NOWHERE, Ordering::Relaxed);
            self.outlet.lost(summary).await;
        }
        let wake = self.wake();
        tokio::select! {
            Some(answer) = self.calls.next() => self.take(answer).await,
            // Its sender lives as long as the cluster; without it there is only the time.
            Ok(()) = self.uneasy.changed() => {}
            () = sleep_until(wake) => {}
        }
    }

    fn send_due(&mut self, now: Moment) {
        let spares = self.wants_spares();
        let listed = &self.listed;
        let usable = |api: &ApiUrl, _: &Peer| spares || listed.contains(api);
        let works = |api: &ApiUrl, peer: &Peer| usable(api, peer) && !peer.fails();
        let clock = self.outlet.stats.clock;
        while self.pace.look_at(self.listed.len()) <= now {
            let Some(whom) = self.endpoints.next(now, usable) else { break };
            if self.endpoints.get(&whom).is_some_and(Peer::fails) {
                self.outlet.stats.reconnects.fetch_add(1, Ordering::Relaxed);
            }
            self.pace.looked(now);
            self.calls.extend(call(&mut self.endpoints, &whom, Question::Look, clock));
        }
        while self.pace.status_at(self.members.len(), self.polls.loop_wait()) <= now {
            let Some(name) = self.members.next(now, |_, _| true) else { break };
            self.pace.asked_status(now);
            let question = Question::Status(name.clone());
            self.calls.extend(call(&mut self.members, &name, question, clock));
        }
        if self.pace.facts_at() <= now
            && let Some(whom) = self.endpoints.next(now, works)
        {
            let fact = self.pace.next_fact(now);
            self.calls.extend(call(&mut self.endpoints, &whom, fact, clock));
        }
    }

    /// When something is due next.
    fn wake(&self) -> Instant {
        let spares = self.wants_spares();
        let usable = |api: &ApiUrl, _: &Peer| spares || self.listed.contains(api);
        let works = |api: &ApiUrl, peer: &Peer| usable(api, peer) && !peer.fails();
        let looks = self.endpoints.free_at(usable).map(|at| at.max(self.pace.look_at(self.listed.len())));
        let gap = self.pace.status_at(self.members.len(), self.polls.loop_wait());
        let statuses = self.members.free_at(|_, _| true).map(|at| at.max(gap));
        let facts = self.endpoints.free_at(works).map(|at| at.max(self.pace.facts_at()));
        let lost = self.pace.lost_at().filter(|_| !self.outlet.lost);
        let next = [looks, statuses, facts, lost].into_iter().flatten().min();
        let at = next.and_then(|next| self.outlet.stats.clock.instant(next));
        at.map_or_else(|| Instant::now() + pace::LONGEST, Instant::from)
    }

    /// Whether those whom the file does not list are looked at, too.
    fn wants_spares(&self) -> bool {
        self.listed.iter().any(|api| self.endpoints.get(api).is_some_and(Peer::fails))
    }

    fn leader_silent_since(&self) -> Option<Moment> {
        self.members.get(self.polls.leader()?)?.fails_since()
    }

    async fn take(&mut self, Answer { question, asked, line, outcome }: Answer) {
        let now = asked.answered_at;
        self.outlet.stats.requests.add(1);
        match question {
            Question::Look => {
                self.endpoints.put_back(&asked.whom, &asked.whom, line);
                self.take_look(&asked, outcome).await;
            }
            Question::Config | Question::History => {
                self.endpoints.put_back(&asked.whom, &asked.whom, line);
                match (question, outcome) {
                    (Question::Config, Ok(body)) => self.polls.take_config(parse_config(&body)),
                    (_, Ok(body)) => self.polls.take_history(parse_history(&body)),
                    (_, Err(_)) => self.pace.wants_facts_again(now),
                }
                self.tell(now, false).await;
            }
            Question::Status(name) => {
                self.members.put_back(&name, &asked.whom, line);
                let status = outcome.and_then(|body| parse_status(&body, &self.cluster.scope, &name));
                self.take_status(&name, &asked, status);
                self.tell(now, false).await;
            }
        }
    }

    async fn take_look(&mut self, asked: &Asked, body: Result<Bytes, Failure>) {
        let now = asked.answered_at;
        let parsed = body.and_then(|body| parse_cluster(&body, &self.cluster.scope));
        let verdict = match parsed {
            Ok(answer) => self.polls.take_cluster(asked, answer),
            Err(failure) => return self.look_failed(&asked.whom, failure, now),
        };
        let cluster = &self.outlet.cluster.name;
        if let Some(was) = self.endpoints.get_mut(&asked.whom).and_then(Peer::answered) {
            info!(%cluster, endpoint = %asked.whom, was, "a member's Patroni answers again");
        }
        match verdict {
            Verdict::Counts { news } => {
                self.pace.heard(now, news);
                let index = self.listed.iter().position(|api| *api == asked.whom);
                self.outlet.stats.connected.store(index.unwrap_or(super::UNLISTED), Ordering::Relaxed);
                self.tell(now, true).await;
                self.know_peers();
            }
            Verdict::Overtaken => debug!(%cluster, endpoint = %asked.whom, "an answer was overtaken"),
            Verdict::Stale(why) => {
                debug!(%cluster, endpoint = %asked.whom, why, "an answer speaks of a time that is over");
                if let Some(peer) = self.endpoints.get_mut(&asked.whom) {
                    peer.is_stale(why);
                }
                self.tell(now, false).await;
            }
        }
    }

    fn look_failed(&mut self, whom: &ApiUrl, (kind, why): Failure, now: Moment) {
        let Some(peer) = self.endpoints.get_mut(whom) else { return };
        let first = !peer.fails();
        if peer.failed(kind, &why, now) {
            warn!(cluster = %self.outlet.cluster.name, endpoint = %whom, error = why, "a member's Patroni does not tell of the cluster");
        }
        if first {
            self.pace.stir(now);
        }
    }

    fn take_status(&mut self, name: &MemberName, asked: &Asked, status: Result<Status, Failure>) {
        let Some(peer) = self.members.get_mut(name) else { return };
        match status {
            Ok(status) => {
                peer.answered();
                self.polls.take_status(name, asked, status);
            }
            Err((kind, why)) => {
                if peer.failed(kind, &why, asked.answered_at) {
                    debug!(cluster = %self.outlet.cluster.name, member = %name, error = why, "a member gives no status");
                }
            }
        }
    }

    /// Says what is new; if nothing is, that the cluster is `alive`.
    async fn tell(&mut self, now: Moment, alive: bool) {
        // What is known of the past is told only while the present is.
        if !alive && self.outlet.lost {
            return;
        }
        match self.polls.settle(now) {
            Some(view) => {
                bequeath(&self.heritage.polls, &self.polls);
                self.outlet.view(view, now).await;
            }
            // What was inherited is told anew with the first answer: weights may have changed.
            None if alive && !self.told => self.outlet.view(self.polls.view().clone(), now).await,
            None if alive => self.outlet.alive(self.polls.revision()).await,
            None => {}
        }
        self.told |= alive;
    }

    /// Who is there now is asked from now on.
    fn know_peers(&mut self) {
        let apis = self.polls.members().filter_map(|member| Some((member.name.clone(), member.api.clone()?)));
        let members: Vec<(MemberName, ApiUrl)> = apis.collect();
        let listed = self.listed.iter().cloned();
        let named = members.iter().map(|(_, api)| api.clone());
        let endpoints: Vec<(ApiUrl, ApiUrl)> = listed.chain(named).map(|api| (api.clone(), api)).collect();
        self.endpoints.set(endpoints, &self.cluster.rest);
        self.members.set(members, &self.cluster.rest);
    }

    /// Why nobody tells of the cluster, for people.
    fn summary(&self) -> String {
        let peers = self.endpoints.iter().filter(|peer| self.listed.contains(&peer.api));
        let worst = peers.max_by_key(|peer| peer.rank());
        let text = worst.map_or_else(String::new, |peer| format!("{}: {}", peer.api, peer.why()));
        match self.listed.len() {
            1 => format!("Patroni does not tell of the cluster: {text}"),
            count => format!("none of the {count} members' Patroni tells of the cluster: {text}"),
        }
    }
}

/// A call over the line of a peer, if that is free.
fn call<K: Ord + Clone>(
    peers: &mut Peers<K>,
    key: &K,
    question: Question,
    clock: Clock,
) -> Option<BoxFuture<'static, Answer>> {
    let (whom, line) = peers.take(key, clock.moment())?;
    Some(Box::pin(Call { whom, line, question, clock }.answer()))
}

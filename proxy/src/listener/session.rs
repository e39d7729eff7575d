//! One client connection from its first byte until a server has taken it: one task each, on a core of the engine.
//!
//! first message → [grant → dial → ask, or hold] until a server has answered → [`established`] → relay.
//!                                              └► refused → one line, counters
//!
//! While nothing but start-up messages was sent, a failure of the server is invisible to the client: the
//! next candidate is tried, and when none is left the session goes back to the queue, to its old place and
//! with its old deadline. The client is watched all the time.
//!
//! Cancel-safety: dropping the future closes both sockets and gives every counted place back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_core::balance;
use pointsman_core::close::{CloseReason, Peer};
use pointsman_core::event::DialOutcome;
use pointsman_core::hold::{Outcome, Ticket};
use pointsman_core::route::Candidate;
use pointsman_core::startup::{FirstMessage, StartupError};
use pointsman_core::view::MemberName;

use super::admission::Admitted;
use super::client::{Client, ClientError};
use super::established::broken;
use super::holds::Entry;
use super::link::{Answer, Grant, Link, Question};
use super::record::{self, Tally};
use super::{Settings, Shared, cancel, established, refuse};
use crate::dial::DialError;
use crate::engine::{self, Side, Stream, timeout_at};
use crate::sessions::{LoginRef, Phase, SessionGuard};
use crate::stats::{Gauge, GaugeGuard, ListenerHeld, ListenerStats, ServerSessions, ServerStats};

/// The pauses of a session that comes back to the queue while the routes have not changed.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Serves a client that was let in, until its session is established or refused.
pub(crate) async fn serve(shared: Arc<Shared>, stream: Stream, session: SessionGuard, admitted: Admitted) {
    let _task = shared.tracker.token();
    let settings = shared.settings.load_full();
    let mut client = Client::new(stream);
    let mut start = Start::new(&shared, &settings, &session);
    let started = start.run(&mut client).await;
    let (unanswered, understood, tally) = (start.unanswered.take(), start.understood, start.tally);
    drop(start);
    let reason = match started {
        Ok(link) => {
            return established::hand_over(
                Arc::clone(&shared),
                &settings,
                session,
                admitted,
                tally,
                client,
                link,
            );
        }
        Err(reason) => reason,
    };
    session.set_phase(Phase::Closing);
    refused(&shared, &settings, client, unanswered, &reason, tally).await;
    // A health check connects and closes, or resets: it never sends a whole message.
    let left = matches!(reason, CloseReason::Closed(Peer::Client) | CloseReason::Reset(Peer::Client));
    let quiet = left && !understood;
    shared.stats.closed(&reason);
    record::write(&session, tally, &reason, settings.log_sessions, quiet);
}

/// Tells the client why, where it can be told.
async fn refused(
    shared: &Shared,
    settings: &Settings,
    mut client: Client,
    unanswered: Option<FirstMessage>,
    reason: &CloseReason,
    tally: Tally,
) {
    if settings.listener.refuse == pointsman_config::Refuse::Close {
        return;
    }
    // Who says nothing is not waiting for words either.
    let response =
        refuse::response(shared, reason, tally.held).filter(|_| *reason != CloseReason::StartupTimeout);
    let Some(response) = response else { return };
    if matches!(reason, CloseReason::BadStartup(_)) {
        refuse::answer_nonsense(&client, &response).await;
    } else {
        refuse::explain(&mut client, unanswered, &response).await;
    }
}

/// A session until a server has taken it.
struct Start<'a> {
    shared: &'a Shared,
    settings: &'a Settings,
    session: &'a SessionGuard,
    /// The message that the client waits on.
    unanswered: Option<FirstMessage>,
    /// It has sent a whole message.
    understood: bool,
    /// A server that has refused encryption and waits for the next message.
    link: Option<Link>,
    /// The place in the queue, from the first permission to dial.
    ticket: Option<Ticket>,
    /// Tried since the last permission.
    tried: Vec<MemberName>,
    /// The table that was picked from.
    generation: u64,
    pause: Duration,
    not_ready: bool,
    dial_started: Instant,
    tally: Tally,
}

impl<'a> Start<'a> {
    fn new(shared: &'a Shared, settings: &'a Settings, session: &'a SessionGuard) -> Self {
        Self {
            shared,
            settings,
            session,
            unanswered: None,
            understood: false,
            link: None,
            ticket: None,
            tried: Vec::new(),
            generation: 0,
            pause: FIRST_PAUSE,
            not_ready: false,
            dial_started: Instant::now(),
            tally: Tally::default(),
        }
    }

    /// Until a server has answered something that is the client's business.
    async fn run(&mut self, client: &mut Client) -> Result<Link, CloseReason> {
        loop {
            let message = self.next_message(client).await?;
            self.understood = true;
            if let FirstMessage::Cancel(request) = &message {
                return Err(self.cancel(request.encode()).await);
            }
            if let FirstMessage::Startup(startup) = &message {
                self.session.set_login(LoginRef {
                    user: startup.user().as_deref(),
                    database: startup.database().as_deref(),
                    application: startup.application_name().as_deref(),
                });
            }
            let question = Question::new(&message, client);
            let direct_tls = message == FirstMessage::DirectTls;
            self.unanswered = Some(message);
            let (answer, link) = self.answered(client, &question).await?;
            self.unanswered = None;
            self.count(&link, Side::Server, question.bytes().len());
            if direct_tls {
                client.forget_early(question.bytes().len());
            }
            match answer {
                Answer::Begun => return Ok(link),
                Answer::Refused => self.pass_refusal(client, link),
            }
        }
    }

    /// The client's next message. A server that waits for it with us may be lost meanwhile: never mind.
    async fn next_message(&mut self, client: &mut Client) -> Result<FirstMessage, CloseReason> {
        let deadline = engine::now() + self.settings.listener.startup_timeout;
        loop {
            tokio::select! {
                biased;
                reason = self.session.killed() => return Err(reason),
                message = timeout_at(deadline, client.next_message()) => {
                    return match message {
                        Ok(Ok(message)) => Ok(message),
                        Ok(Err(error)) => Err(self.client_failed(client, error)),
                        Err(_) => Err(CloseReason::StartupTimeout),
                    };
                }
                () = lost(self.link.as_ref()) => self.link = None,
            }
        }
    }

    /// A server's answer to the question, from whichever server gives one.
    async fn answered(
        &mut self,
        client: &mut Client,
        question: &Question,
    ) -> Result<(Answer, Link), CloseReason> {
        let session = self.session;
        let failed = tokio::select! {
            biased;
            reason = session.killed() => return Err(reason),
            answer = self.ask_until_answered(question) => return answer,
            error = client.gone() => error,
        };
        Err(self.client_failed(client, failed))
    }

    async fn ask_until_answered(&mut self, question: &Question) -> Result<(Answer, Link), CloseReason> {
        let patience = self.settings.listener.connect_timeout;
        loop {
            let (mut link, deadline) = match self.link.take() {
                Some(link) => {
                    self.dial_started = Instant::now();
                    (link, self.dial_started + patience)
                }
                None => self.connect().await?,
            };
            self.session.set_phase(Phase::Dialling);
            match link.ask(question, deadline).await {
                // Revoked at this very moment: the client has not seen the answer yet.
                Ok(_) if link.grant.fence.raised().is_some() => self.failed(&link.grant, &DialError::Revoked),
                Ok(answer) => {
                    self.served(&link);
                    return Ok((answer, link));
                }
                Err(error) => self.failed(&link.grant, &error),
            }
        }
    }

    /// A connection to a server, and the deadline of its first byte.
    async fn connect(&mut self) -> Result<(Link, Instant), CloseReason> {
        if self.ticket.is_none() {
            let entry = self.shared.holds.arrive(self.session.id, self.settings.listener.hold);
            self.wait(entry).await?;
        }
        loop {
            let Some(grant) = self.pick() else {
                self.come_back().await?;
                continue;
            };
            self.session.set_phase(Phase::Dialling);
            self.tally.tries += 1;
            self.dial_started = Instant::now();
            let deadline = self.dial_started + self.settings.listener.connect_timeout;
            match Link::dial(grant, deadline).await {
                Ok(link) => return Ok((link, deadline)),
                Err((grant, error)) => self.failed(&grant, &error),
            }
        }
    }

    /// Back to the queue: nobody of this table serves us.
    async fn come_back(&mut self) -> Result<(), CloseReason> {
        let Some(ticket) = self.ticket.take() else {
            return Err(CloseReason::Internal("dialled without a ticket"));
        };
        let pause = if self.shared.routes.load().generation() == self.generation {
            self.pause
        } else {
            self.pause = FIRST_PAUSE;
            Duration::ZERO
        };
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let entry = self.shared.holds.come_back(self.session.id, ticket, pause);
        self.wait(entry).await
    }

    /// Until we may dial.
    async fn wait(&mut self, entry: Entry<'_>) -> Result<(), CloseReason> {
        self.tried.clear();
        let waiting = match entry {
            Entry::Pass(ticket) => {
                self.ticket = Some(ticket);
                return Ok(());
            }
            Entry::Overflow => return Err(CloseReason::QueueFull),
            Entry::Vain(why) => return Err(CloseReason::HeldTooLong(Some(why))),
            Entry::Wait(waiting) => waiting,
        };
        self.session.set_phase(Phase::Held);
        let stats = &self.shared.stats;
        if self.tally.held.is_zero() {
            stats.held_total.add(1);
        }
        let clock = HeldClock::start(stats, &mut self.tally.held);
        let outcome = tokio::select! {
            biased;
            outcome = waiting.outcome() => outcome,
            () = self.shared.draining.cancelled() => return Err(CloseReason::Drained),
        };
        drop(clock);
        match outcome {
            Some(Outcome::Release(ticket)) => {
                self.ticket = Some(ticket);
                Ok(())
            }
            Some(Outcome::Expire(_)) => Err(self.expired()),
            None => Err(CloseReason::Internal("the hold queue is gone")),
        }
    }

    /// Why the time was up.
    fn expired(&self) -> CloseReason {
        match self.shared.no_route() {
            Some(no_route) => CloseReason::HeldTooLong(Some(no_route)),
            None if self.not_ready => CloseReason::ServerNotReady,
            None if self.tally.tries > 0 => CloseReason::DialFailed { tried: self.tally.tries },
            None => CloseReason::HeldTooLong(None),
        }
    }

    /// Chooses a member; everything about it is taken from one and the same published table.
    fn pick(&mut self) -> Option<Grant> {
        let published = self.shared.routes.load();
        self.generation = published.generation();
        let candidates = published.route(&self.shared.name)?.candidates.as_ref().ok()?;
        let counters = self.shared.counters(self.generation, candidates);
        let loaded: Vec<Loaded<'_>> = candidates
            .iter()
            .zip(&counters.servers)
            .map(|(candidate, stats)| Loaded { candidate, stats, load: stats.sessions.get() })
            .collect();
        let draw = self.shared.draw(self.session.client().ip());
        let policy = super::policy(self.settings.listener.balance);
        let chosen = balance::pick(policy, &loaded, draw, |one| self.tried.contains(&one.candidate.member))?;
        let Loaded { candidate, stats, .. } = loaded.get(chosen)?;
        let stats = Arc::clone(stats);
        Some(Grant {
            member: candidate.member.clone(),
            role: candidate.role,
            addresses: candidate.addresses.clone(),
            fence: published.fence(candidate.term)?.clone(),
            _load: Gauge::enter(ServerSessions(stats.clone())),
            stats,
        })
    }

    fn served(&mut self, link: &Link) {
        let Link { grant, server, .. } = link;
        self.tally.dialled = self.dial_started.elapsed();
        if self.session.granted().is_none_or(|granted| granted.member != grant.member) {
            grant.stats.dialled_in.record(self.tally.dialled);
            grant.stats.sessions_total.add(1);
        }
        if !link.received.is_empty() {
            self.shared.reports.dial(&grant.member, DialOutcome::Served);
        }
        self.session.set_granted(Some(grant.stats.granted(&grant.member, grant.role, *server)));
    }

    fn failed(&mut self, grant: &Grant, error: &DialError) {
        tracing::debug!(id = self.session.id.0, listener = %self.shared.name, member = %grant.member, "dial failed: {error}");
        self.tried.push(grant.member.clone());
        self.not_ready = matches!(error, DialError::NotReady(_));
        if let Some(outcome) = error.outcome() {
            self.shared.reports.dial(&grant.member, outcome);
        }
        if !matches!(error, DialError::Revoked) {
            grant.stats.dial_errors.add(1);
        }
    }

    /// The server speaks no encryption: the client may go on in the clear, and so may we.
    fn pass_refusal(&mut self, client: &Client, link: Link) {
        client.send(&link.received);
        self.count(&link, Side::Client, link.received.len());
        self.session.set_phase(Phase::Startup);
        self.link = Some(link);
    }

    async fn cancel(&mut self, request: Vec<u8>) -> CloseReason {
        self.session.set_phase(Phase::Cancelling);
        self.link = None;
        tokio::select! {
            biased;
            reason = self.session.killed() => reason,
            // libpq waits for our close; who does not wait still wants the query cancelled.
            () = cancel::broadcast(self.shared, request) => CloseReason::CancelDone,
        }
    }

    fn count(&self, link: &Link, to: Side, bytes: usize) {
        established::count(self.session, &self.shared.stats, &link.grant.stats, to, bytes);
    }

    fn client_failed(&self, client: &Client, error: ClientError) -> CloseReason {
        let left = self.session.phase() == Phase::Held;
        match error {
            ClientError::Closed | ClientError::Broken(_) if left => CloseReason::LeftWhileHeld,
            ClientError::Closed => CloseReason::Closed(Peer::Client),
            ClientError::Broken(error) => broken(Peer::Client, &error),
            ClientError::Startup(error) => CloseReason::BadStartup(error),
            ClientError::Flood => {
                let length = u32::try_from(client.early().len()).unwrap_or(u32::MAX);
                CloseReason::BadStartup(StartupError::TooLong { length })
            }
        }
    }
}

/// Measures a wait, also one that is given up.
struct HeldClock<'a> {
    stats: &'a ListenerStats,
    held: &'a mut Duration,
    began: Instant,
    _gauge: GaugeGuard<ListenerHeld>,
}

impl<'a> HeldClock<'a> {
    fn start(stats: &'a Arc<ListenerStats>, held: &'a mut Duration) -> Self {
        let gauge = Gauge::enter(ListenerHeld(Arc::clone(stats)));
        Self { stats, held, began: Instant::now(), _gauge: gauge }
    }
}

impl Drop for HeldClock<'_> {
    fn drop(&mut self) {
        let waited = self.began.elapsed();
        *self.held += waited;
        self.stats.held_for.record(waited);
    }
}

/// Waits until the link is lost; for ever when there is none.
async fn lost(link: Option<&Link>) {
    match link {
        Some(link) => link.lost().await,
        None => std::future::pending().await,
    }
}

/// A candidate as balancing sees it.
struct Loaded<'a> {
    candidate: &'a Candidate,
    stats: &'a Arc<ServerStats>,
    load: u64,
}

impl balance::Candidate for Loaded<'_> {
    fn key(&self) -> &str {
        self.candidate.member.as_str()
    }

    fn weight(&self) -> u32 {
        self.candidate.weight
    }

    fn load(&self) -> u32 {
        u32::try_from(self.load).unwrap_or(u32::MAX)
    }
}

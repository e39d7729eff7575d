//! A fixed list of servers, without any store.
//!
//! `probe = "sql"`: each member is asked over SQL, on a connection of its own that is kept, and a [`Survey`] makes views
//! of the answers. In peace each is asked every two seconds, not in step; all of them ten times a second while a primary
//! is wanted and there is none, and for some seconds after anything has changed. The questions are futures of the source
//! itself: one for each member, at most one of them on its way, each with its own deadline, so a member that hangs delays
//! nobody. `probe = "tcp"`: every member takes writes, whether it can be reached is found out by the topology's probes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use pointsman_config::{Cluster, Probe, Sql, StalePrimary, StaticMember, StaticMembers};
use pointsman_core::event::{Answer, AskError, Status, Witness};
use pointsman_core::sql::Failure;
use pointsman_core::survey::{News, Survey};
use pointsman_core::time::Moment;
use pointsman_core::view::{
    Address, ClusterView, MemberName, MemberRole, MemberState, MemberView, Replication, Revision, Tags,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};

use super::backoff::jitter;
use super::{Heritage, Outlet, bequeath, inherited};
use crate::ask::sql::Server;
use crate::clock::Clock;

/// How often each member is asked in peace, with up to an eighth more.
const PEACE: Duration = Duration::from_secs(2);
/// How often while something is wrong, or was just now.
const BRISK: Duration = Duration::from_millis(100);
/// For so long after something has changed.
const BRISK_FOR: Duration = Duration::from_secs(5);
/// How long an answer may take on a connection that works.
const DEADLINE: Duration = Duration::from_secs(1);
/// How long with a new connection, TLS and the password's proof: under load these take their time, and each failure means
/// to begin anew.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// A leader that answers without telling is kept for so long: the ttl of a leader key.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a source that has nothing to look at says that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// Runs for ever.
pub(super) async fn run(
    cluster: &Cluster,
    fixed: &StaticMembers,
    outlet: Outlet<'_>,
    uneasy: watch::Receiver<bool>,
    heritage: &Heritage,
) -> Infallible {
    match (fixed.probe, &cluster.sql) {
        (Probe::Sql, Some(sql)) => survey(cluster, sql, fixed, outlet, uneasy, heritage).await,
        // The configuration demands `sql` for the first.
        (Probe::Tcp, _) | (Probe::Sql, None) => stay(fixed, outlet).await,
    }
}

/// Every member takes writes, for ever.
async fn stay(fixed: &StaticMembers, mut outlet: Outlet<'_>) -> Infallible {
    let revision = Revision(1);
    let members = fixed.members.iter().map(|member| (name(member), writable(member, revision))).collect();
    let now = outlet.now();
    outlet.view(ClusterView { revision, members, ..ClusterView::default() }, now).await;
    loop {
        sleep(SIGN_OF_LIFE).await;
        outlet.alive(revision).await;
    }
}

fn name(member: &StaticMember) -> MemberName {
    MemberName::from(member.name.as_str())
}

fn address(member: &StaticMember) -> Address {
    Address { host: member.address.host().to_owned(), port: member.address.port() }
}

fn writable(member: &StaticMember, revision: Revision) -> MemberView {
    MemberView {
        name: name(member),
        addresses: [address(member)].into(),
        api: None,
        role: MemberRole::Writable,
        state: MemberState::Running,
        version: None,
        timeline: None,
        position: None,
        replay: None,
        replication: Replication::Unknown,
        tags: Tags::default(),
        weight: 1,
        revision,
    }
}

/// One member, with its connection.
struct Asked {
    member: MemberName,
    addresses: Arc<[Address]>,
    server: Server,
    clock: Clock,
    brisk: watch::Receiver<bool>,
    last: Instant,
    /// It is asked again without a pause.
    at_once: bool,
    /// Why it does not let us in, once that was said.
    denied: Option<String>,
}

struct Told {
    asked: Asked,
    at: Moment,
    answer: Result<Status, Failure>,
}

impl Asked {
    /// Waits until it is this member's turn, and asks it.
    async fn ask(mut self) -> Told {
        self.wait().await;
        self.last = Instant::now();
        let at = self.clock.moment();
        let deadline = if self.server.is_connected() { DEADLINE } else { CONNECT_DEADLINE };
        let asking = timeout(deadline, self.server.status(&self.addresses)).await;
        let answer = asking.unwrap_or_else(|_| {
            self.server.forget();
            Err((AskError::TimedOut, format!("no answer within {} s", deadline.as_secs())))
        });
        Told { asked: self, at, answer }
    }

    /// Into the log: what a person has to put right once, the rest for whoever looks closely.
    fn tell_why(&mut self, cluster: &Cluster, failure: Option<&Failure>) {
        let denied = failure.filter(|(kind, _)| *kind == AskError::Denied).map(|(_, why)| why.clone());
        match (&denied, failure) {
            (Some(why), _) if self.denied.as_ref() != Some(why) => {
                warn!(cluster = %cluster.name, member = %self.member, why, "a member does not let us in over SQL");
            }
            (_, Some((_, why))) => {
                debug!(cluster = %cluster.name, member = %self.member, why, "a member did not tell its role");
            }
            (_, None) => {}
        }
        self.denied = denied;
    }

    async fn wait(&mut self) {
        if std::mem::take(&mut self.at_once) {
            return;
        }
        let peace = PEACE.mul_f64(1.0 + jitter() / 8.0);
        loop {
            let brisk = *self.brisk.borrow_and_update();
            let due = self.last + if brisk { BRISK } else { peace };
            tokio::select! {
                () = sleep_until(due) => return,
                changed = self.brisk.changed() => if changed.is_err() {
                    return sleep_until(due).await; // nobody tells any more
                },
            }
        }
    }
}

async fn survey(
    cluster: &Cluster,
    sql: &Sql,
    fixed: &StaticMembers,
    mut outlet: Outlet<'_>,
    mut uneasy: watch::Receiver<bool>,
    heritage: &Heritage,
) -> Infallible {
    let patience = (cluster.stale_primary == StalePrimary::Hold).then_some(PATIENCE);
    let all = || fixed.members.iter().map(|member| (name(member), address(member)));
    let mut survey = Survey::new(all(), patience);
    if let Some(old) = inherited(&heritage.survey) {
        survey = survey.inheriting(&old);
    }
    let pace = watch::Sender::new(true);
    let clock = outlet.stats.clock;
    let asked = |(member, address)| Asked {
        member,
        addresses: [address].into(),
        server: Server::new(sql),
        clock,
        brisk: pace.subscribe(),
        last: Instant::now(),
        at_once: true,
        denied: None,
    };
    let mut questions: FuturesUnordered<_> = all().map(asked).map(Asked::ask).collect();
    let mut brisk_until = Instant::now() + BRISK_FOR;
    let mut first = true;
    loop {
        let brisk = *uneasy.borrow_and_update() || Instant::now() < brisk_until;
        pace.send_if_modified(|said| std::mem::replace(said, brisk) != brisk);
        let told = tokio::select! {
            Some(told) = questions.next() => told,
            () = sleep_until(brisk_until), if Instant::now() < brisk_until => continue,
            Ok(()) = uneasy.changed() => continue,
        };
        outlet.stats.requests.add(1);
        let Told { mut asked, at, answer } = told;
        asked.tell_why(cluster, answer.as_ref().err());
        let status = answer.as_ref().ok().cloned();
        let led = survey.leader().cloned();
        let news = survey.take(&asked.member, at, answer);
        if news == News::Roles {
            brisk_until = Instant::now() + BRISK_FOR;
        }
        if news != News::None {
            bequeath(&heritage.survey, &survey);
        }
        // What was inherited is told anew with the first answer: weights may have changed.
        let news = if first && status.is_some() { News::Roles } else { news };
        first &= status.is_none();
        tell(&mut outlet, &survey, news, status.is_some()).await;
        let leads = survey.leader() == Some(&asked.member);
        if let Some(status) = status.filter(|_| leads) {
            // On a connection that is open already this confirms it sooner than a question of the topology's own.
            let member = asked.member.clone();
            outlet.answer(Answer { member, by: Witness::Sql, asked_at: at, outcome: Ok(status) }).await;
        }
        // What it said before it was named does not count: it is asked again.
        asked.at_once = leads && led.as_ref() != Some(&asked.member);
        questions.push(asked.ask());
    }
}

/// What the answer has brought, to whoever decides.
async fn tell(outlet: &mut Outlet<'_>, survey: &Survey, news: News, answered: bool) {
    match (survey.silence(), survey.view()) {
        (Some(why), _) => outlet.lost(why).await,
        (None, Some(view)) if news != News::None => {
            let now = outlet.now();
            outlet.view(view.clone(), now).await;
        }
        (None, Some(view)) if answered => outlet.alive(view.revision).await,
        (None, _) => {}
    }
}

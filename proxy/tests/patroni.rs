//! Discovery by Patroni's REST interface alone, against fakes that hang, are slow, lie, or lag behind.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pointsman_core::view::{Lsn, Replication};
use support::fake::{FakeServer, closed_port, request, respond};
use support::source::Source;
use tokio::time::sleep;

/// What the members of a fake cluster say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    Fine,
    /// Takes questions, and never answers.
    Hung,
    Slow(Duration),
    /// Answers `/patroni` only: its store does not answer.
    Blind,
    /// Names this leader, on this timeline, whatever has happened.
    Stuck(usize, u32),
    /// Says only this, with this status.
    Says(u16, &'static str),
    /// Half of an answer.
    Half,
}

#[derive(Debug)]
struct Truth {
    leader: usize,
    timeline: u32,
    ports: Vec<u16>,
    moods: Vec<Mood>,
}

struct FakePatronis {
    truth: Arc<Mutex<Truth>>,
    looks: Arc<[AtomicUsize]>,
    servers: Vec<Option<FakeServer>>,
}

impl FakePatronis {
    /// Members n0, n1, …; n0 leads on timeline 1.
    async fn start(count: usize) -> Self {
        let truth = Truth { leader: 0, timeline: 1, ports: Vec::new(), moods: vec![Mood::Fine; count] };
        let truth = Arc::new(Mutex::new(truth));
        let looks: Arc<[AtomicUsize]> = (0..count).map(|_| AtomicUsize::new(0)).collect();
        let mut servers = Vec::new();
        for member in 0..count {
            let (truth, looks) = (Arc::clone(&truth), Arc::clone(&looks));
            let server = FakeServer::start(move |_, mut stream| {
                let (truth, looks) = (Arc::clone(&truth), Arc::clone(&looks));
                async move {
                    while let Some(head) = request(&mut stream).await {
                        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                        if path == "/cluster" {
                            looks[member].fetch_add(1, Ordering::SeqCst);
                        }
                        let mood = truth.lock().unwrap().moods[member];
                        match mood {
                            Mood::Hung => std::future::pending().await,
                            Mood::Blind if path == "/cluster" => std::future::pending().await,
                            Mood::Slow(time) => sleep(time).await,
                            Mood::Fine | Mood::Blind | Mood::Stuck(..) | Mood::Says(..) | Mood::Half => {}
                        }
                        let (status, body) = truth.lock().unwrap().answer(member, &path);
                        respond(&mut stream, status, &body).await;
                    }
                }
            })
            .await;
            servers.push(Some(server));
        }
        let ports = servers.iter().flatten().map(|server| server.port).collect();
        truth.lock().unwrap().ports = ports;
        Self { truth, looks, servers }
    }

    fn set(&self, member: usize, mood: Mood) {
        self.truth.lock().unwrap().moods[member] = mood;
    }

    fn lead(&self, leader: usize, timeline: u32) {
        let mut truth = self.truth.lock().unwrap();
        (truth.leader, truth.timeline) = (leader, timeline);
    }

    fn looks(&self, member: usize) -> usize {
        self.looks[member].load(Ordering::SeqCst)
    }

    /// Nobody listens there any more.
    fn kill(&mut self, member: usize) {
        self.servers[member] = None;
    }

    fn endpoint(&self, member: usize) -> String {
        format!("127.0.0.1:{}", self.truth.lock().unwrap().ports[member])
    }

    /// A source that asks all of them.
    fn source(&self) -> Source {
        let all: Vec<String> = (0..self.servers.len()).map(|member| self.endpoint(member)).collect();
        source(&all)
    }
}

fn source(members: &[String]) -> Source {
    Source::start_in(&format!("discovery = {{ patroni = {{ members = {members:?} }} }}"))
}

impl Truth {
    fn answer(&self, member: usize, path: &str) -> (u16, String) {
        match (self.moods[member], path) {
            (Mood::Says(status, text), _) => (status, text.to_owned()),
            (Mood::Half, _) => {
                let whole = self.cluster(self.leader, self.timeline);
                (200, whole[..whole.len() / 2].to_owned())
            }
            (Mood::Stuck(leader, timeline), "/cluster") => (200, self.cluster(leader, timeline)),
            (_, "/cluster") => (200, self.cluster(self.leader, self.timeline)),
            (_, "/patroni") => (200, self.status(member)),
            (_, "/config") => (200, r#"{"ttl":40,"loop_wait":7,"failsafe_mode":true}"#.to_owned()),
            (_, "/history") => {
                (200, r#"[[1,84283632,"no reason","2026-11-21T07:31:37+00:00","n1"]]"#.to_owned())
            }
            (_, other) => panic!("{other} is asked for"),
        }
    }

    fn cluster(&self, leader: usize, timeline: u32) -> String {
        let member = |(number, port): (usize, &u16)| {
            let (role, state) =
                if number == leader { ("leader", "running") } else { ("replica", "streaming") };
            format!(
                r#"{{"name":"n{number}","role":"{role}","state":"{state}","host":"127.0.0.1","port":5432,
                "api_url":"http://127.0.0.1:{port}/patroni","timeline":{timeline}}}"#
            )
        };
        let members: Vec<String> = self.ports.iter().enumerate().map(member).collect();
        format!(r#"{{"members":[{}],"scope":"demo"}}"#, members.join(","))
    }

    fn status(&self, member: usize) -> String {
        let (role, position) = if member == self.leader {
            ("primary", r#""location":1000"#)
        } else {
            ("replica", r#""received_location":900,"replayed_location":900"#)
        };
        let timeline = self.timeline;
        format!(
            r#"{{"state":"running","role":"{role}","xlog":{{{position}}},"timeline":{timeline},
            "replication_state":"streaming","patroni":{{"version":"4.1.5","scope":"demo","name":"n{member}"}}}}"#
        )
    }
}

#[tokio::test]
async fn it_makes_a_view_of_what_the_members_say() {
    let patronis = FakePatronis::start(3).await;
    let mut source = patronis.source();
    let view = source
        .view(|view| {
            let replayed = view.members.values().filter(|member| member.replay == Some(Lsn(900))).count();
            replayed == 2 && view.settings.ttl == 40 && !view.history.is_empty()
        })
        .await;
    assert_eq!(view.leader.as_ref().unwrap().member.as_str(), "n0");
    assert_eq!((view.settings.loop_wait, view.settings.failsafe), (7, true));
    assert_eq!((view.optime.unwrap().0, view.complaints.len()), (Lsn(1000), 0));
    let replica = &view.members[&"n1".into()];
    assert_eq!((replica.replication, replica.addresses[0].port), (Replication::Streaming, 5432));
    assert!(source.stats.connected().is_some());
}

/// Whoever hangs or is slow delays nobody.
#[tokio::test]
async fn a_hung_member_delays_nobody() {
    let patronis = FakePatronis::start(3).await;
    let mut source = patronis.source();
    source.leader("n0").await;
    patronis.set(0, Mood::Hung);
    patronis.set(2, Mood::Slow(Duration::from_millis(700)));
    source.uneasy.send(true).unwrap();
    for (leader, timeline) in [(1, 2), (2, 3), (1, 4)] {
        let changed = Instant::now();
        patronis.lead(leader, timeline);
        source.leader(&format!("n{leader}")).await;
        let took = changed.elapsed();
        println!("with one hung and one slow member a change was seen after {took:?}");
        assert!(took < Duration::from_millis(900), "{took:?}");
    }
    source.stays_for(Duration::from_secs(4)).await;
}

/// In peace, too, a hung member costs no more than its turn, and nobody is asked without need.
#[tokio::test]
async fn peace_with_a_hung_member() {
    let patronis = FakePatronis::start(3).await;
    let mut source = patronis.source();
    source.leader("n0").await;
    patronis.set(1, Mood::Hung);
    source.stays_for(Duration::from_secs(9)).await; // what it stirs up passes
    let before: Vec<usize> = (0..3).map(|member| patronis.looks(member)).collect();
    let alive = source.stays_for(Duration::from_secs(9)).await;
    let looks: Vec<usize> = (0..3).map(|member| patronis.looks(member) - before[member]).collect();
    assert!(alive >= 3, "{alive} signs of life");
    assert!(looks.iter().sum::<usize>() <= 9, "{looks:?} looks in nine seconds of peace");
}

/// One whose watch has died names an old leader for ever.
#[tokio::test]
async fn a_patroni_that_lives_in_the_past_is_named_and_not_believed() {
    let patronis = FakePatronis::start(3).await;
    patronis.lead(1, 5);
    patronis.set(2, Mood::Stuck(0, 4));
    let mut source = patronis.source();
    source.uneasy.send(true).unwrap();
    let view = source.view(|view| !view.complaints.is_empty()).await;
    assert!(
        view.complaints[0].problem.contains("lives on an old view of the store"),
        "{:?}",
        view.complaints
    );
    assert_eq!(view.leader.unwrap().member.as_str(), "n1");
    // It alone is no word of the cluster.
    patronis.set(0, Mood::Hung);
    patronis.set(1, Mood::Hung);
    let error = source.lost().await;
    assert!(error.starts_with("none of the 3 members' Patroni tells of the cluster: http://127."), "{error}");
    assert!(error.contains("it names n0 on timeline 4, and n1 leads since timeline 5"), "{error}");
    patronis.set(2, Mood::Fine);
    source.alive().await;
}

/// Patroni lives, its store does not: no answer to `/cluster`.
#[tokio::test]
async fn lost_when_nobody_tells_and_alive_again() {
    let mut patronis = FakePatronis::start(2).await;
    let mut source = patronis.source();
    source.leader("n0").await;
    (0..2).for_each(|member| patronis.set(member, Mood::Blind));
    let blind = Instant::now();
    let error = source.lost().await;
    assert!(error.contains("no answer within 2 s (it hangs, or does not reach its store)"), "{error}");
    assert!(blind.elapsed() < Duration::from_secs(7), "{:?}", blind.elapsed());
    assert_eq!((source.stats.connected(), source.stats.answers()), (None, Some(false)));
    (0..2).for_each(|member| patronis.set(member, Mood::Fine));
    source.alive().await;
    patronis.lead(1, 2);
    source.leader("n1").await;
    (0..2).for_each(|member| patronis.kill(member));
    let error = source.lost().await;
    assert!(error.contains("refused") || error.contains("reset") || error.contains("closed"), "{error}");
}

#[tokio::test]
async fn what_is_wrong_is_said_in_plain_words() {
    let patronis = FakePatronis::start(1).await;
    for (mood, wanted) in [
        (Mood::Half, "the answer is not JSON"),
        (Mood::Says(200, "{}"), "its members are missing"),
        (Mood::Says(200, r#"{"members":[],"scope":"other"}"#), "scope \"other\" answers"),
        (Mood::Says(401, "no auth header received"), "401 Unauthorized: check rest.user"),
        (Mood::Says(502, "<html>"), "the answer is not JSON"),
    ] {
        patronis.set(0, mood);
        let error = patronis.source().lost().await;
        assert!(error.contains(wanted), "{mood:?}: {error}");
    }
}

/// A host was replaced: the file still lists the old one. Those whom the others name are asked instead.
#[tokio::test]
async fn members_that_the_file_does_not_list_stand_in() {
    let mut patronis = FakePatronis::start(3).await;
    let gone = format!("127.0.0.1:{}", closed_port().await);
    let mut source = source(&[gone, patronis.endpoint(0)]);
    let view = source.leader("n0").await;
    assert_eq!(view.members.len(), 3);
    patronis.kill(0);
    patronis.lead(2, 2);
    source.leader("n2").await;
    source.stays_for(Duration::from_secs(4)).await;
    assert_eq!((source.stats.connected(), source.stats.answers()), (None, Some(true)));
}

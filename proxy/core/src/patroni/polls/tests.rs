use std::fmt::Write as _;

use proptest::prelude::*;

use super::super::parse_cluster;
use super::*;
use crate::view::Address;

const fn at(millis: u64) -> Moment {
    Moment::from_millis(millis)
}

fn api(number: u8) -> ApiUrl {
    ApiUrl { tls: false, address: Address { host: format!("10.0.0.{number}"), port: 8008 } }
}

fn asked(number: u8, from: u64, to: u64) -> Asked {
    Asked { whom: api(number), asked_at: at(from), answered_at: at(to) }
}

/// Three members on one timeline; `leader` 0: nobody leads.
fn body(leader: u8, timeline: u32, more: &str) -> String {
    let mut members = String::new();
    for number in 1..=3 {
        let role = if number == leader { "leader" } else { "replica" };
        let state = if number == leader { "running" } else { "streaming" };
        let comma = if number == 1 { "" } else { "," };
        write!(
            members,
            r#"{comma}{{"name":"n{number}","role":"{role}","state":"{state}","host":"10.0.0.{number}","port":5432,
            "api_url":"http://10.0.0.{number}:8008/patroni","timeline":{timeline}}}"#
        )
        .unwrap();
    }
    format!(r#"{{"members":[{members}],"scope":"demo"{more}}}"#)
}

fn cluster(leader: u8, timeline: u32) -> ClusterAnswer {
    parse_cluster(body(leader, timeline, "").as_bytes(), "demo").unwrap()
}

fn status(role: MemberRole, position: u64, timeline: u32) -> Status {
    Status {
        role,
        state: MemberState::Running,
        timeline: Some(Timeline(timeline)),
        position: Some(Lsn(position)),
        replication: if role == MemberRole::Replica { Replication::Streaming } else { Replication::Unknown },
        dcs_last_seen: None,
        failsafe_active: false,
    }
}

/// n1 leads on timeline 1; everybody has said so, at 100, 200 and 300 ms.
fn led_by_n1() -> Polls {
    let mut polls = Polls::new();
    for number in 1..=3 {
        let time = u64::from(number) * 100;
        let verdict = polls.take_cluster(&asked(number, time - 10, time), cluster(1, 1));
        assert_eq!(verdict, Verdict::Counts { news: number == 1 });
    }
    polls.settle(at(300)).unwrap();
    polls
}

const NEWS: Verdict = Verdict::Counts { news: true };

fn is_stale(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Stale(_))
}

#[test]
fn the_first_answer_makes_a_whole_view() {
    let mut polls = Polls::new();
    assert_eq!(polls.settle(at(1)), None);
    assert_eq!(polls.take_cluster(&asked(1, 0, 10), cluster(1, 4)), NEWS);
    let view = polls.settle(at(10)).unwrap();
    assert_eq!(view.leader, Some(LeaderKey { member: "n1".into(), revision: Revision(1) }));
    assert_eq!((view.members.len(), view.optime, view.sync.clone()), (3, None, None));
    assert_eq!(view.settings, ClusterSettings::default());
    assert_eq!(polls.settle(at(11)), None, "nothing has changed");
    assert_eq!(polls.take_cluster(&asked(2, 11, 20), cluster(1, 4)), Verdict::Counts { news: false });
    assert_eq!(polls.settle(at(20)), None, "nothing has changed");
}

#[test]
fn an_answer_that_was_asked_before_the_last_one_came_is_overtaken() {
    let mut polls = led_by_n1();
    assert_eq!(polls.take_cluster(&asked(2, 300, 320), cluster(2, 1)), NEWS);
    assert_eq!(polls.take_cluster(&asked(1, 319, 330), cluster(1, 1)), Verdict::Overtaken);
    assert_eq!(polls.leader().map(MemberName::as_str), Some("n2"));
    assert_eq!(polls.take_cluster(&asked(2, 320, 340), cluster(2, 1)), Verdict::Counts { news: false });
}

/// A Patroni that has not yet heard of the new leader names the old one, on the same timeline.
#[test]
fn an_old_leader_does_not_rise_again_by_the_word_of_who_is_late() {
    let mut polls = led_by_n1();
    assert_eq!(polls.take_cluster(&asked(2, 300, 310), cluster(2, 1)), NEWS);
    let view = polls.settle(at(310)).unwrap();
    assert_eq!(view.leader.as_ref().unwrap().revision, view.revision);
    assert!(is_stale(&polls.take_cluster(&asked(3, 310, 320), cluster(1, 1))));
    assert!(is_stale(&polls.take_cluster(&asked(1, 330, 340), cluster(1, 1))));
    assert_eq!(polls.settle(at(340)), None, "to be late for a moment is no reason to complain");
    // Who knows of the new one may say that the old one leads again.
    assert_eq!(polls.take_cluster(&asked(3, 350, 360), cluster(2, 1)), Verdict::Counts { news: false });
    assert_eq!(polls.take_cluster(&asked(3, 370, 380), cluster(1, 1)), NEWS);
    let again = polls.settle(at(380)).unwrap();
    assert_eq!(again.leader.unwrap(), LeaderKey { member: "n1".into(), revision: again.revision });
}

#[test]
fn a_lower_timeline_is_stale_and_is_complained_of() {
    let mut polls = Polls::new();
    polls.take_cluster(&asked(1, 0, 10), cluster(1, 5));
    polls.settle(at(10));
    let verdict = polls.take_cluster(&asked(2, 20, 30), cluster(2, 4));
    let Verdict::Stale(why) = verdict else { panic!("{verdict:?}") };
    assert_eq!(why, "it names n2 on timeline 4, and n1 leads since timeline 5");
    polls.take_cluster(&asked(2, 3_020, 3_030), cluster(2, 4));
    let view = polls.settle(at(3_030)).unwrap();
    assert_eq!(view.complaints.len(), 1);
    assert!(view.complaints[0].problem.contains("http://10.0.0.2:8008 lives on an old view"), "{view:?}");
    assert_eq!(view.leader.unwrap().member.as_str(), "n1");
    // It wakes up.
    polls.take_cluster(&asked(2, 4_000, 4_010), cluster(1, 5));
    assert_eq!(polls.settle(at(4_010)).unwrap().complaints, []);
}

#[test]
fn a_higher_timeline_counts_whoever_says_so() {
    let mut polls = led_by_n1();
    polls.take_cluster(&asked(2, 300, 310), cluster(2, 2));
    assert_eq!(polls.take_cluster(&asked(3, 320, 330), cluster(1, 3)), NEWS);
}

/// A second switchover right after the first: the new leader's entry is older than the first.
#[test]
fn who_knows_the_present_leader_may_name_one_with_an_old_entry() {
    let mut polls = led_by_n1();
    polls.take_cluster(&asked(2, 300, 310), cluster(2, 2));
    // What the member says itself of its timeline is no excuse: it may have led long ago, and follow now.
    polls.take_status(&"n3".into(), &asked(3, 400, 410), status(MemberRole::Replica, 5, 2));
    assert!(is_stale(&polls.take_cluster(&asked(3, 500, 510), cluster(3, 1))));
    polls.take_cluster(&asked(3, 520, 530), cluster(2, 2));
    assert_eq!(polls.take_cluster(&asked(3, 540, 550), cluster(3, 1)), NEWS);
}

#[test]
fn who_wakes_up_between_two_leaders_takes_none_away() {
    let mut polls = led_by_n1();
    assert_eq!(polls.take_cluster(&asked(2, 300, 310), cluster(0, 1)), NEWS);
    let view = polls.settle(at(310)).unwrap();
    assert_eq!(view.leader, None);
    // Late: still the old leader.
    assert!(is_stale(&polls.take_cluster(&asked(1, 310, 320), cluster(1, 1))));
    assert_eq!(polls.take_cluster(&asked(2, 330, 340), cluster(2, 1)), NEWS);
    // Late: nobody yet.
    assert!(is_stale(&polls.take_cluster(&asked(3, 350, 360), cluster(0, 1))));
    assert_eq!(polls.take_cluster(&asked(3, 370, 380), cluster(2, 2)), NEWS);
    assert_eq!(polls.take_cluster(&asked(3, 390, 400), cluster(0, 2)), NEWS);
}

#[test]
fn in_the_end_whoever_is_named_leads() {
    let mut polls = led_by_n1();
    polls.take_cluster(&asked(2, 300, 310), cluster(2, 7));
    assert!(is_stale(&polls.take_cluster(&asked(3, 30_000, 30_309), cluster(3, 1))));
    assert_eq!(polls.take_cluster(&asked(3, 30_000, 30_310), cluster(3, 1)), NEWS);
    // The timelines begin anew with it.
    assert!(!is_stale(&polls.take_cluster(&asked(2, 30_320, 30_330), cluster(3, 1))));
    assert_eq!(polls.take_cluster(&asked(1, 30_340, 30_350), cluster(2, 2)), NEWS);
}

/// What the topology's comparison rests on: a replica's position bears a later revision than the leader's it is compared
/// with, and was asked for after that had come.
#[test]
fn positions_are_in_order() {
    let mut polls = led_by_n1();
    polls.take_status(&"n1".into(), &asked(1, 400, 410), status(MemberRole::Primary, 1000, 1));
    let view = polls.settle(at(410)).unwrap();
    let (optime, revision) = view.optime.unwrap();
    assert_eq!((optime, revision), (Lsn(1000), view.revision));
    assert_eq!(view.members[&"n1".into()].position, Some(Lsn(1000)));
    assert_eq!(view.members[&"n1".into()].revision, view.leader.unwrap().revision, "it proves nothing");
    // Asked before the leader's had come: nobody knows which is older.
    polls.take_status(&"n2".into(), &asked(2, 409, 420), status(MemberRole::Replica, 900, 1));
    assert_eq!(polls.settle(at(420)), None);
    polls.take_status(&"n2".into(), &asked(2, 410, 430), status(MemberRole::Replica, 950, 1));
    let view = polls.settle(at(430)).unwrap();
    let replica = &view.members[&"n2".into()];
    assert_eq!((replica.replay, replica.position), (Some(Lsn(950)), Some(Lsn(950))));
    assert!(replica.revision > revision && view.optime == Some((Lsn(1000), revision)));
    // The same position again is a reading all the same.
    polls.take_status(&"n2".into(), &asked(2, 500, 510), status(MemberRole::Replica, 950, 1));
    let again = polls.settle(at(510)).unwrap();
    assert_eq!(again.members[&"n2".into()].revision, again.revision);
    // What is not read again is not known any more.
    let later = polls.settle(at(500 + 11_001)).unwrap();
    assert_eq!(later.members[&"n2".into()].replay, None);
}

#[test]
fn positions_end_with_their_leader() {
    let mut polls = led_by_n1();
    polls.take_status(&"n1".into(), &asked(1, 400, 410), status(MemberRole::Primary, 1000, 1));
    polls.take_status(&"n2".into(), &asked(2, 410, 420), status(MemberRole::Replica, 990, 1));
    polls.settle(at(420));
    polls.take_cluster(&asked(2, 430, 440), cluster(2, 1));
    let view = polls.settle(at(440)).unwrap();
    assert_eq!((view.optime, view.members[&"n2".into()].position), (None, None));
    // It has the key, and is not yet a primary.
    polls.take_status(&"n2".into(), &asked(2, 450, 460), status(MemberRole::Replica, 990, 1));
    assert_eq!(polls.settle(at(460)).and_then(|view| view.optime), None);
    polls.take_status(&"n2".into(), &asked(2, 470, 480), status(MemberRole::Primary, 1100, 2));
    let view = polls.settle(at(480)).unwrap();
    assert_eq!((view.optime.unwrap().0, view.members[&"n2".into()].timeline), (Lsn(1100), Some(Timeline(2))));
}

#[test]
fn a_leader_that_stops_has_no_position() {
    let mut polls = led_by_n1();
    let running = status(MemberRole::Primary, 1000, 1);
    polls.take_status(&"n1".into(), &asked(1, 400, 410), running.clone());
    polls.settle(at(410));
    let stopping = Status { state: MemberState::from_patroni("stopping"), position: None, ..running };
    polls.take_status(&"n1".into(), &asked(1, 420, 430), stopping);
    assert_eq!(polls.settle(at(430)).unwrap().members[&"n1".into()].position, None);
}

#[test]
fn nonsense_about_a_member_takes_nothing_away() {
    let mut polls = led_by_n1();
    let sick = body(1, 1, "").replacen("\"host\":\"10.0.0.2\"", "\"host\":\"10.0.0.2 or so\"", 1);
    let sick = parse_cluster(sick.as_bytes(), "demo").unwrap();
    assert_eq!(polls.take_cluster(&asked(1, 400, 410), sick.clone()), Verdict::Counts { news: false });
    let view = polls.settle(at(410)).unwrap();
    assert_eq!((view.members.len(), view.complaints[0].key.as_str()), (3, "members/n2"));
    polls.take_cluster(&asked(1, 420, 430), cluster(1, 1));
    assert_eq!(polls.settle(at(430)).unwrap().complaints, []);

    let mut polls = Polls::new();
    polls.take_cluster(&asked(1, 400, 410), sick);
    let view = polls.settle(at(410)).unwrap();
    assert_eq!((view.members.len(), view.complaints.len()), (2, 1));
}

#[test]
fn settings_come_from_both_answers() {
    let mut polls = led_by_n1();
    let mut config = ClusterSettings { ttl: 20, loop_wait: 3, paused: true, ..ClusterSettings::default() };
    config.failsafe = true;
    polls.take_config(Ok(config.clone()));
    let view = polls.settle(at(310)).unwrap();
    assert_eq!(view.settings, ClusterSettings { paused: false, ..config.clone() }, "/cluster is newer");
    let paused = parse_cluster(body(1, 1, ",\"pause\":true").as_bytes(), "demo").unwrap();
    assert_eq!(polls.take_cluster(&asked(1, 320, 330), paused), NEWS);
    assert_eq!(polls.settle(at(330)).unwrap().settings, config);
    polls.take_config(Err("it is not JSON".to_owned()));
    let view = polls.settle(at(340)).unwrap();
    assert_eq!((view.settings, view.complaints.len()), (config, 1));
    polls.take_history(Ok(vec![TimelineSwitch { timeline: Timeline(1), end: Lsn(7) }]));
    assert_eq!(polls.settle(at(350)).unwrap().history.len(), 1);
}

#[test]
fn standby_clusters_and_sync_standbys() {
    let mut polls = led_by_n1();
    let text = body(2, 1, "").replace("\"leader\"", "\"standby_leader\"");
    polls.take_cluster(&asked(2, 400, 410), parse_cluster(text.as_bytes(), "demo").unwrap());
    let view = polls.settle(at(410)).unwrap();
    assert!(view.settings.standby_cluster);
    assert_eq!(view.members[&"n2".into()].role, MemberRole::StandbyLeader);
    polls.take_status(&"n2".into(), &asked(2, 420, 430), status(MemberRole::StandbyLeader, 77, 1));
    assert_eq!(polls.settle(at(430)).unwrap().optime.unwrap().0, Lsn(77));
    // Without a leader it is what it was.
    polls.take_cluster(&asked(2, 440, 450), cluster(0, 1));
    assert!(polls.settle(at(450)).unwrap().settings.standby_cluster);
    // It is promoted, and becomes synchronous.
    let text = body(2, 2, "").replacen("\"replica\"", "\"quorum_standby\"", 1);
    polls.take_cluster(&asked(2, 460, 470), parse_cluster(text.as_bytes(), "demo").unwrap());
    let view = polls.settle(at(470)).unwrap();
    assert!(!view.settings.standby_cluster && view.settings.synchronous);
    let sync = view.sync.unwrap();
    assert_eq!((sync.leader, sync.standbys), (Some("n2".into()), ["n1".into()].into()));
}

#[test]
fn an_announcement_keeps_its_revision() {
    let mut polls = led_by_n1();
    let scheduled = |to: &str| {
        let more = format!(
            r#","scheduled_switchover":{{"at":"2026-11-21T23:30:00+00:00","from":"n1","to":"{to}"}}"#
        );
        parse_cluster(body(1, 1, &more).as_bytes(), "demo").unwrap()
    };
    polls.take_cluster(&asked(1, 400, 410), scheduled("n2"));
    let first = polls.settle(at(410)).unwrap();
    assert_eq!(first.announcement.as_ref().unwrap().revision, first.revision);
    polls.take_history(Ok(vec![TimelineSwitch { timeline: Timeline(1), end: Lsn(7) }]));
    let second = polls.settle(at(420)).unwrap();
    assert_eq!(second.announcement, first.announcement);
    polls.take_cluster(&asked(1, 430, 440), scheduled("n3"));
    let third = polls.settle(at(440)).unwrap();
    assert_eq!(third.announcement.unwrap().revision, third.revision);
}

/// One Patroni's view of the store: how far it has read the true story.
#[derive(Clone, Debug)]
enum Step {
    /// The leader changes: 0 is nobody.
    Lead(u8),
    /// A Patroni reads on, to the present.
    Read(u8),
    /// It is asked for, and answers after so many ms, with what it had read when it was asked.
    Ask(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0..=3_u8).prop_map(Step::Lead),
        4 => (1..=3_u8).prop_map(Step::Read),
        4 => (1..=3_u8, 1..50_u8).prop_map(|(number, late)| Step::Ask(number, late)),
    ]
}

proptest! {
    /// However late some of them are: who was seen to lead, and seen to be followed by another, does not come back by the
    /// word of somebody late. (Who led for so short a time that nobody told of it may be taken for a new leader.)
    #[test]
    fn the_story_is_told_in_its_order(steps in prop::collection::vec(step(), 1..120)) {
        let mut story = vec![(1_u8, 1_u32)];
        let mut read = [0_usize; 4];
        let mut polls = led_by_n1(); // of what was before nobody knows
        let mut told = 0;
        let mut terms = BTreeSet::from([0]);
        let mut now = 301;
        for step in steps {
            match step {
                Step::Lead(leader) => {
                    let (last, timeline) = story[story.len() - 1];
                    if leader != last {
                        story.push((leader, timeline + u32::from(leader != 0)));
                    }
                }
                Step::Read(number) => read[usize::from(number)] = story.len() - 1,
                Step::Ask(number, late) => {
                    let (leader, timeline) = story[read[usize::from(number)]];
                    let question = asked(number, now, now + u64::from(late));
                    let verdict = polls.take_cluster(&question, cluster(leader, timeline));
                    now += u64::from(late) + 1;
                    if matches!(verdict, Verdict::Counts { .. }) {
                        // The same leader again is no step back; it may have led more than once.
                        let is = read[usize::from(number)];
                        let back = is < told && story[is].0 != story[told].0;
                        prop_assert!(!back || terms.insert(is), "{is} after {told} of {story:?}");
                        terms.insert(is);
                        told = if back { is } else { is.max(told) };
                    }
                    let before = polls.revision();
                    let view = polls.settle(at(now));
                    prop_assert!(view.is_none_or(|view| view.revision > before && view.leader.is_none_or(|key| key.revision <= view.revision)));
                }
            }
        }
    }
}

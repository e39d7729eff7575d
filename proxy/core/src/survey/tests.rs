use proptest::prelude::*;

use super::*;
use crate::view::Lsn;

#[expect(clippy::unnecessary_wraps, reason = "an answer may also be a failure")]
fn primary(timeline: u32) -> Result<Status, Failure> {
    Ok(Status {
        role: MemberRole::Primary,
        state: MemberState::Running,
        timeline: Some(Timeline(timeline)),
        position: Some(Lsn(1000)),
        replication: Replication::Unknown,
        dcs_last_seen: None,
        failsafe_active: false,
    })
}

fn replica(position: u64) -> Result<Status, Failure> {
    let status = primary(1)?;
    let replication = Replication::Streaming;
    Ok(Status { role: MemberRole::Replica, position: Some(Lsn(position)), replication, ..status })
}

fn fails(kind: AskError) -> Result<Status, Failure> {
    Err((kind, "test".to_owned()))
}

fn name(number: usize) -> MemberName {
    MemberName::from(format!("pg{number}").as_str())
}

/// Two or more members and a clock.
struct Bench {
    survey: Survey,
    now: Moment,
}

impl Bench {
    fn new(members: usize) -> Self {
        let address = |port| Address { host: "10.0.0.1".to_owned(), port };
        let members = (1..=members).map(|number| (name(number), address(5000)));
        Self { survey: Survey::new(members, Some(Duration::from_secs(30))), now: Moment::from_millis(1000) }
    }

    fn says(&mut self, number: usize, answer: Result<Status, Failure>) -> News {
        self.now += Duration::from_secs(1);
        self.survey.take(&name(number), self.now, answer)
    }

    fn leader(&self) -> Option<&str> {
        self.survey.view().and_then(|view| view.leader.as_ref()).map(|key| key.member.as_str())
    }

    fn member(&self, number: usize) -> &MemberView {
        &self.survey.view().unwrap().members[&name(number)]
    }

    fn complaints(&self) -> Vec<&str> {
        self.survey.view().unwrap().complaints.iter().map(|complaint| complaint.problem.as_str()).collect()
    }

    /// pg1 leads on timeline 1, pg2 follows.
    fn steady() -> Self {
        let mut bench = Self::new(2);
        bench.says(1, primary(1));
        bench.says(2, replica(900));
        assert_eq!(bench.leader(), Some("pg1"));
        assert!(bench.complaints().is_empty());
        bench
    }
}

#[test]
fn nobody_is_named_before_each_member_answered_or_failed_twice() {
    let mut bench = Bench::new(3);
    bench.says(1, primary(1));
    assert_eq!(bench.survey.view(), None);
    bench.says(3, fails(AskError::TimedOut));
    bench.says(2, primary(2));
    assert_eq!(bench.survey.view(), None, "one failure says little");
    bench.says(3, fails(AskError::TimedOut));
    assert_eq!(bench.leader(), Some("pg2"));
    assert_eq!(bench.member(3).state.as_str(), "unreachable");
}

#[test]
fn nothing_is_told_while_nobody_has_answered() {
    let mut bench = Bench::new(2);
    for _ in 0..2 {
        bench.says(1, fails(AskError::Refused));
        bench.says(2, fails(AskError::Refused));
    }
    assert_eq!(bench.survey.view(), None);
    assert_eq!(bench.survey.silence().unwrap(), "no member answers: pg1: test; pg2: test");
    bench.says(2, replica(1));
    assert_eq!(bench.survey.silence(), None);
    assert_eq!(bench.leader(), None);
}

#[test]
fn a_silent_leader_stays_named_until_another_is_promoted() {
    let mut bench = Bench::steady();
    let key = bench.survey.view().unwrap().leader.clone();
    assert_eq!(bench.says(1, fails(AskError::Refused)), News::Roles);
    assert_eq!(bench.member(1).state, MemberState::Running);
    bench.says(1, fails(AskError::Refused));
    assert_eq!(bench.member(1).state.as_str(), "unreachable");
    bench.says(2, replica(1000));
    assert_eq!(bench.survey.view().unwrap().leader, key);
    bench.says(2, primary(2));
    assert_eq!(bench.leader(), Some("pg2"));
    let end = TimelineSwitch { timeline: Timeline(1), end: Lsn(1000) };
    assert_eq!(bench.survey.view().unwrap().history, [end]);
    // The old one comes back to life.
    assert_eq!(bench.says(1, primary(1)), News::Roles);
    assert_eq!(bench.leader(), Some("pg2"));
    let complaint = "pg1 says that it is a primary on timeline 1, while pg2 is on timeline 2: nothing is sent to it; \
                     stop it or make it a standby";
    assert_eq!(bench.complaints(), [complaint]);
    // Even when the new one is silent.
    bench.says(2, fails(AskError::TimedOut));
    bench.says(1, primary(1));
    assert_eq!(bench.leader(), Some("pg2"));
    assert!(bench.complaints()[0].contains("while pg2 was on timeline 2"));
    // Until that one says that it follows.
    bench.says(2, replica(1));
    assert_eq!(bench.leader(), Some("pg1"));
    assert!(bench.complaints().is_empty());
}

#[test]
fn a_leader_in_recovery_leads_no_more() {
    let mut bench = Bench::steady();
    bench.says(1, replica(1000));
    assert_eq!(bench.leader(), None);
    let before = bench.survey.view().unwrap().revision;
    bench.says(1, primary(3));
    assert_eq!(bench.leader(), Some("pg1"));
    assert!(bench.survey.view().unwrap().leader.as_ref().unwrap().revision > before);
}

#[test]
fn on_the_same_timeline_the_incumbent_stays() {
    let mut bench = Bench::steady();
    bench.says(2, primary(1));
    assert_eq!(bench.leader(), Some("pg1"));
    assert!(bench.complaints()[0].contains("pg1 led before and stays"), "{:?}", bench.complaints());
    bench.says(1, fails(AskError::Refused));
    bench.says(2, primary(1));
    assert_eq!(bench.leader(), Some("pg1"));
}

#[test]
fn without_an_incumbent_nobody_is_named_of_two() {
    let mut bench = Bench::new(2);
    bench.says(1, primary(4));
    bench.says(2, primary(4));
    assert_eq!(bench.leader(), None);
    assert!(bench.complaints()[0].contains("none led before"), "{:?}", bench.complaints());
    bench.says(1, fails(AskError::Refused));
    assert_eq!(bench.leader(), None);
    bench.says(1, replica(1));
    assert_eq!(bench.leader(), Some("pg2"));
}

#[test]
fn a_promotion_that_was_missed_makes_the_key_new() {
    let mut bench = Bench::steady();
    let before = bench.survey.view().unwrap().leader.clone().unwrap();
    bench.says(1, primary(2));
    let after = bench.survey.view().unwrap().leader.clone().unwrap();
    assert_eq!(before.member, after.member);
    assert!(after.revision > before.revision);
}

#[test]
fn positions_are_news_and_what_stands_still_is_none() {
    let mut bench = Bench::steady();
    let optime = bench.survey.view().unwrap().optime.unwrap();
    assert_eq!(optime.0, Lsn(1000));
    assert_eq!(bench.says(2, replica(900)), News::None);
    assert_eq!(bench.says(1, primary(1)), News::None);
    assert_eq!(bench.says(2, replica(950)), News::Positions);
    assert!(bench.member(2).revision > optime.1, "a lag is read against an earlier position of the leader");
    assert_eq!(bench.member(2).replay, Some(Lsn(950)));
    assert_eq!(bench.member(1).replay, None);
    assert_eq!(bench.member(1).revision, Revision(0), "the key of a primary proves nothing");
}

#[test]
fn late_answers_and_strangers_count_for_nothing() {
    let mut bench = Bench::steady();
    let late = bench.now.earlier_by(Duration::from_secs(5));
    assert_eq!(bench.survey.take(&name(2), late, primary(9)), News::None);
    assert_eq!(bench.survey.take(&name(7), bench.now, primary(9)), News::None);
    assert_eq!(bench.leader(), Some("pg1"));
}

#[test]
fn a_leader_that_answers_without_telling_is_kept_for_a_while() {
    let mut bench = Bench::steady();
    for _ in 0..28 {
        bench.says(1, fails(AskError::Denied));
    }
    assert_eq!(bench.member(1).state, MemberState::Running);
    assert_eq!(
        bench.complaints(),
        ["pg1 answers, but does not tell whether it is a primary: it does not let us in; the log says why"]
    );
    for _ in 0..3 {
        bench.says(1, fails(AskError::Denied));
    }
    assert_eq!(bench.member(1).state.as_str(), "denied");
    assert_eq!(bench.leader(), Some("pg1"));
    bench.says(2, fails(AskError::NotReady));
    bench.says(2, fails(AskError::NotReady));
    assert_eq!(bench.member(2).state.as_str(), "not ready");
}

/// What a member may answer: nothing, in recovery, or primary on one of four timelines.
fn answers() -> impl Strategy<Value = (usize, Result<Status, Failure>)> {
    let answer = prop_oneof![
        2 => prop_oneof![Just(AskError::Refused), Just(AskError::Denied), Just(AskError::TimedOut)].prop_map(fails),
        2 => (900_u64..905).prop_map(replica),
        3 => (1_u32..5).prop_map(primary),
    ];
    (1_usize..=3, answer)
}

proptest! {
    #[test]
    fn the_rules_hold_for_any_answers(steps in prop::collection::vec(answers(), 0..60)) {
        let mut bench = Bench::new(3);
        let mut last: [Option<Result<Status, Failure>>; 3] = [None, None, None];
        let mut words: [Option<Status>; 3] = [None, None, None];
        let mut failures = [0, 0, 0];
        for (number, answer) in steps {
            let before = bench.survey.view().cloned();
            let news = bench.says(number, answer.clone());
            if let Ok(status) = &answer {
                words[number - 1] = Some(status.clone());
            } else {
                failures[number - 1] += 1;
            }
            last[number - 1] = Some(answer);
            let claims = |index: usize| words[index].as_ref().filter(|word| word.writable()).and_then(|word| word.timeline);
            let highest = (0..3).filter_map(claims).max();
            let after = bench.survey.view().cloned();
            prop_assert_eq!(after.is_some(), (0..3).all(|index| words[index].is_some() || failures[index] >= FALL) && words.iter().any(Option::is_some)
                || before.is_some());
            let Some(view) = after else { continue };
            // Whatever changed has a new revision, and only then.
            let revision = before.as_ref().map_or(Revision(0), |view| view.revision);
            prop_assert_eq!(before.as_ref() != Some(&view), view.revision > revision);
            prop_assert!(news != News::None || before.as_ref() == Some(&view));
            let incumbent = before.and_then(|view| view.leader);
            let holders: Vec<usize> = (0..3).filter(|index| highest.is_some() && claims(*index) == highest).collect();
            if let Some(key) = &view.leader {
                    let index = (0..3).find(|index| name(index + 1) == key.member).unwrap();
                    prop_assert!(holders.contains(&index), "on a lower timeline, or in recovery");
                    let stays = incumbent.as_ref().is_some_and(|old| old.member == key.member);
                    prop_assert!(stays || holders.len() == 1, "one of two");
                    prop_assert!(stays || last[index].as_ref().unwrap().is_ok(), "named while silent");
                    prop_assert!(stays == incumbent.is_some_and(|old| old == *key) || key.revision == view.revision);
            } else {
                    let silent = |index: &usize| last[*index].as_ref().unwrap().is_err();
                    prop_assert!(holders.len() != 1 || holders.iter().all(silent), "nobody, though one is clear");
                    let held = incumbent.and_then(|key| (0..3).find(|index| name(index + 1) == key.member));
                    prop_assert!(!held.is_some_and(|held| holders.contains(&held)), "an incumbent was dropped");
            }
            let live = |index: usize| last[index].as_ref().unwrap().is_ok() && claims(index).is_some();
            let rivals = (0..3).filter(|index| live(*index)).count();
            prop_assert!(rivals < 2 || view.complaints.iter().any(|complaint| complaint.problem.contains("primary on timeline")
                || complaint.problem.contains("a primary on timeline")));
        }
    }
}

/// A reload makes a new survey. Whoever answers first must not lead on an old timeline because the leader is slow just then.
#[test]
fn a_new_survey_knows_what_the_old_one_knew() {
    let mut old = Bench::new(2);
    old.says(1, primary(1));
    old.says(2, primary(2));
    assert_eq!(old.leader(), Some("pg2"));

    let mut new = Bench::new(3);
    new.survey = new.survey.inheriting(&old.survey);
    assert_eq!(new.leader(), Some("pg2"));
    new.says(1, primary(1));
    for _ in 0..5 {
        new.says(2, fails(AskError::TimedOut));
        new.says(3, fails(AskError::Refused));
        assert_eq!(new.leader(), Some("pg2"), "a claim stands until it is withdrawn");
    }

    // Who is out of the list is forgotten.
    let mut without = Bench::new(1);
    without.survey = without.survey.inheriting(&old.survey);
    assert_eq!(without.leader(), None);
    without.says(1, primary(1));
    assert_eq!(without.leader(), Some("pg1"));
}

//! "Replicas": who is fit for reads.

use super::bench::{Bench, name, says, writable};
use crate::event::DialOutcome;
use crate::view::{
    Lsn, MemberRole, MemberState, MemberView, Replication, Revision, Tags, Timeline, TimelineSwitch,
};
use pointsman_config::{Bytes, Fallback};

fn not_streaming(view: &mut MemberView) {
    view.replication = Replication::NotStreaming;
}

fn streaming(view: &mut MemberView) {
    view.replication = Replication::Streaming;
}

#[test]
fn a_member_must_run() {
    Bench::steady().role("n2", MemberRole::Replica, "starting").expect("replicas", &["n3"]);
}

#[test]
fn a_member_must_be_present() {
    Bench::steady().delete_member("n2").expect("replicas", &["n3"]);
}

#[test]
fn a_member_that_calls_itself_primary_and_does_not_lead_is_no_replica() {
    let mut bench = Bench::steady();
    bench.role("n2", MemberRole::Primary, "running").expect("replicas", &["n3"]).expect("any", &["n1", "n3"]);
}

#[test]
fn a_member_must_pass_health_and_comes_back_by_itself() {
    let mut bench = Bench::steady();
    bench.server("n2", false).after(3_000).expect("replicas", &["n3"]);
    bench.server("n2", true).after(3_000).expect("replicas", &["n2", "n3"]);
    bench.dial("n2", DialOutcome::Refused).expect("replicas", &["n2", "n3"]);
    bench.dial("n2", DialOutcome::TimedOut).expect("replicas", &["n3"]);
}

#[test]
fn a_tagged_member_is_left_out() {
    let tags = Tags { noloadbalance: true, ..Tags::default() };
    let mut bench = Bench::steady();
    bench.member("n2", |view| view.tags = tags).expect("replicas", &["n3"]).expect("any", &["n1", "n3"]);
}

#[test]
fn a_member_must_stream_unless_its_patroni_cannot_say() {
    let mut bench = Bench::steady();
    bench.member("n2", not_streaming).after(14_000).expect("replicas", &["n3"]);
    bench.member("n2", |view| view.replication = Replication::Unknown).expect("replicas", &["n2", "n3"]);
}

/// A key tells of one look of Patroni's; it takes what the next one sees, a `loop_wait` later, to exclude.
#[test]
fn a_replica_is_not_dropped_for_what_one_look_saw() {
    let mut bench = Bench::steady();
    bench.after(2_500).member("n2", not_streaming).member("n3", not_streaming);
    bench.after(10_000).expect("replicas", &["n2", "n3"]);
    bench.member("n3", streaming).after(2_900).expect("replicas", &["n2", "n3"]);
    bench.after(200).expect("replicas", &["n3"]);
    bench.member("n2", streaming).expect("replicas", &["n2", "n3"]);
}

/// It is the time that counts, not how often the key is written: Patroni looks again at once when a key changes.
#[test]
fn a_second_key_in_a_row_neither_shortens_nor_lengthens_that() {
    let mut bench = Bench::steady();
    for replay in 0..10 {
        bench.member("n2", |view| {
            not_streaming(view);
            view.replay = Some(Lsn(replay));
        });
        bench.expect("replicas", &["n2", "n3"]).after(1_290);
    }
    bench.expect("replicas", &["n2", "n3"]).after(200).expect("replicas", &["n3"]);
}

#[test]
fn who_never_streamed_is_not_waited_for() {
    let mut bench = Bench::steady();
    bench.delete_member("n2").after(700_000);
    let mut newcomer = bench.store.members[&name("n3")].clone();
    (newcomer.name, newcomer.replication) = (name("n4"), Replication::NotStreaming);
    bench.put(newcomer).expect("replicas", &["n3"]).after(5_000).expect("replicas", &["n3"]);
}

#[test]
fn nor_is_who_comes_back_from_a_restart() {
    let mut bench = Bench::steady();
    bench.member("n2", |view| view.replication = Replication::Unknown).role(
        "n2",
        MemberRole::Replica,
        "starting",
    );
    bench.after(20_000).expect("replicas", &["n3"]);
    bench.member("n2", |view| {
        not_streaming(view);
        view.state = MemberState::Running;
    });
    bench.expect("replicas", &["n3"]).member("n2", streaming).expect("replicas", &["n2", "n3"]);
}

#[test]
fn one_look_excuses_neither_an_old_timeline_nor_lag() {
    let mut bench = Bench::steady();
    bench.member("n1", |view| view.timeline = Some(Timeline(2)));
    bench
        .member("n3", |view| (view.timeline, view.replication) = (Some(Timeline(2)), Replication::Streaming));
    bench.member("n2", not_streaming).expect("replicas", &["n3"]);
    let mut bench = Bench::steady();
    bench.configure("replicas", |listener| listener.max_lag = Some(Bytes(100)));
    bench.member("n2", not_streaming);
    lag(&mut bench, 2_000, 1_500);
    lag(&mut bench, 3_000, 2_500);
    bench.expect("replicas", &["n3"]).expect("any", &["n1", "n2", "n3"]);
}

/// Patroni's replicas let go of their primary as soon as they find no leader key, and turn to it at their next look.
#[test]
fn who_lets_go_of_a_leader_that_takes_its_key_anew_has_30_s() {
    let mut bench = Bench::steady();
    bench.leader("n1").member("n2", not_streaming).member("n3", not_streaming).after(100);
    bench.expect_primary("n1").after(29_000).expect("replicas", &["n2", "n3"]);
    bench.after(1_100).expect("replicas", &["n1"]);
}

/// In a paused cluster they do not.
#[test]
fn who_stops_streaming_from_a_paused_leader_without_a_key_is_not_excused_for_long() {
    let mut bench = Bench::steady();
    bench.write(|store, _| store.settings.paused = true).no_leader().expect_primary("n1");
    bench.member("n2", not_streaming).after(12_000).expect("replicas", &["n2", "n3"]);
    bench.after(1_100).expect_primary("n1").expect("replicas", &["n3"]);
}

#[test]
fn a_member_must_be_on_the_leaders_timeline() {
    let mut bench = Bench::steady();
    bench.member("n1", |view| view.timeline = Some(Timeline(2))).expect("replicas", &["n1"]);
    bench.member("n3", |view| view.timeline = Some(Timeline(2))).expect("replicas", &["n3"]);
}

#[test]
fn after_a_change_of_leader_its_followers_have_30_s() {
    let mut bench = Bench::steady();
    bench.word("n2", writable()).leader("n2").member("n3", not_streaming);
    bench
        .member("n2", |view| (view.role, view.timeline) = (MemberRole::Primary, Some(Timeline(2))))
        .after(100);
    bench.expect_primary("n2").expect("replicas", &["n3"]);
    bench.after(29_000).expect("replicas", &["n3"]).after(1_000).expect("replicas", &["n2"]);
}

#[test]
fn a_doubt_in_between_does_not_end_the_grace() {
    let mut bench = Bench::steady();
    bench.word("n2", writable()).leader("n2").member("n3", not_streaming).after(100);
    bench.dial("n2", DialOutcome::Refused).after(5_000).expect_primary("n2").expect("replicas", &["n3"]);
    bench.after(24_000).expect("replicas", &["n3"]).after(2_000).expect("replicas", &["n2"]);
}

#[test]
fn the_grace_is_not_for_one_that_did_not_follow_before() {
    let mut bench = Bench::steady();
    bench.member("n3", not_streaming).after(20_000).expect("replicas", &["n2"]);
    bench.word("n2", writable()).leader("n2").after(100).expect("replicas", &["n2"]);
}

#[test]
fn the_grace_is_not_for_one_beyond_the_point_where_the_timelines_parted() {
    let mut bench = Bench::steady();
    bench.word("n2", writable()).leader("n2");
    bench.write(|store, _| store.history.push(TimelineSwitch { timeline: Timeline(1), end: Lsn(1_000) }));
    bench.expect("replicas", &["n3"]);
    bench.member("n3", |view| view.replay = Some(Lsn(1_001))).after(100).expect("replicas", &["n2"]);
}

#[test]
fn while_there_is_nobody_to_follow_nobody_is_blamed_for_it() {
    let mut bench = Bench::steady();
    bench.server("n1", false).silent("n1").after(4_000);
    bench.member("n2", not_streaming).member("n3", not_streaming).after(20_000);
    bench.expect_no_primary("pending").expect("replicas", &["n2", "n3"]);
    bench.no_leader().after(1_000).expect("replicas", &["n2", "n3"]);
    bench.leader("n2").after(1_000).expect("replicas", &["n3"]);
}

fn lag(bench: &mut Bench, optime: u64, replay: u64) {
    bench.write(|store, revision| store.optime = Some((Lsn(optime), revision)));
    bench.member("n2", |view| view.replay = Some(Lsn(replay)));
}

#[test]
fn lag_needs_two_readings_to_exclude_and_one_to_return() {
    let mut bench = Bench::steady();
    bench.configure("replicas", |listener| listener.max_lag = Some(Bytes(100)));
    lag(&mut bench, 2_000, 1_500);
    bench.expect("replicas", &["n2", "n3"]);
    lag(&mut bench, 3_000, 2_500);
    bench.expect("replicas", &["n3"]).expect("any", &["n1", "n2", "n3"]).expect_revoked(&[]);
    lag(&mut bench, 4_000, 3_950);
    bench.expect("replicas", &["n2", "n3"]);
}

#[test]
fn a_position_is_compared_with_an_earlier_optime_only() {
    let mut bench = Bench::steady();
    bench.configure("replicas", |listener| listener.max_lag = Some(Bytes(100)));
    lag(&mut bench, 1_000, 1_000);
    for optime in [2_000, 3_000, 4_000] {
        // The snapshot brings a newer optime together with a key that was written before it.
        let behind = optime - 1_000;
        bench.write(|store, revision| {
            let written = Revision(revision.0 + 1);
            store.revision = written;
            store.optime = Some((Lsn(optime), written));
            let key = store.members.get_mut(&name("n2")).unwrap();
            (key.replay, key.revision) = (Some(Lsn(behind)), revision);
        });
        bench.expect("replicas", &["n2", "n3"]);
    }
}

#[test]
fn without_a_limit_lag_does_not_matter() {
    let mut bench = Bench::steady();
    lag(&mut bench, 1 << 40, 1);
    lag(&mut bench, 1 << 41, 1 << 20);
    bench.expect("replicas", &["n2", "n3"]);
}

#[test]
fn a_store_whose_revisions_begin_anew_is_read_anew() {
    let mut bench = Bench::steady();
    bench.configure("replicas", |listener| listener.max_lag = Some(Bytes(100)));
    lag(&mut bench, 2_000, 1_500);
    lag(&mut bench, 3_000, 2_500);
    bench.expect("replicas", &["n3"]);
    (bench.store.revision, bench.store.optime) = (Revision(0), None);
    bench.leader("n1");
    lag(&mut bench, 4_000, 4_000);
    bench.expect("replicas", &["n2", "n3"]);
    lag(&mut bench, 5_000, 4_000);
    lag(&mut bench, 6_000, 4_500);
    bench.expect("replicas", &["n3"]);
}

#[test]
fn without_replicas_the_primary_stands_in_or_nobody() {
    let mut bench = Bench::steady();
    bench.delete_member("n2").delete_member("n3").expect("replicas", &["n1"]);
    bench
        .configure("replicas", |listener| listener.fallback = Fallback::None)
        .expect_none("replicas", "no-replica");
    bench.configure("replicas", |listener| listener.fallback = Fallback::Primary);
    bench.no_leader().expect_none("replicas", "no-replica");
}

#[test]
fn sync_is_the_named_standby_and_async_are_the_others() {
    let mut bench = Bench::steady();
    bench.expect("sync", &["n1"]).sync(&["n2"]).expect("sync", &["n2"]).expect("async", &["n3"]);
}

#[test]
fn the_last_sync_standby_stands_in_while_the_store_names_none() {
    let mut bench = Bench::steady();
    bench.sync(&["n2"]);
    bench.after(200_000); // a quiet store: no snapshot for minutes, then null
    bench.sync(&[]).expect("sync", &["n2"]).after(14_000).expect("sync", &["n2"]);
    bench.after(1_100).expect("sync", &["n1"]);
}

#[test]
fn but_only_if_it_streams() {
    let mut bench = Bench::steady();
    bench.sync(&["n2"]).sync(&[]).member("n2", not_streaming).expect("sync", &["n1"]);
}

/// A primary that crashes and is restarted in place: nobody streams meanwhile, nor for some seconds afterwards,
/// and reads go on all the time.
#[test]
fn a_leader_that_restarts_in_place_takes_no_replica_with_it() {
    let mut bench = Bench::steady();
    bench.word("n1", says(MemberRole::Primary, "starting")).dial("n1", DialOutcome::NotReady);
    bench.expect_no_primary("pending");
    bench
        .after(1_000)
        .member("n2", not_streaming)
        .member("n3", not_streaming)
        .expect("replicas", &["n2", "n3"]);
    bench.word("n1", writable()).after(1_000).expect_primary("n1").expect("replicas", &["n2", "n3"]);
    bench.after(5_000).expect("replicas", &["n2", "n3"]);
    bench.member("n2", |view| view.replication = Replication::Streaming);
    bench.after(30_000).expect("replicas", &["n2"]);
}

/// Patroni does not write a member key anew that has not changed: a replica that stands still says nothing.
#[test]
fn a_position_that_stands_still_is_read_too() {
    let mut bench = Bench::steady();
    bench.configure("replicas", |listener| listener.max_lag = Some(Bytes(1_000)));
    lag(&mut bench, 1_000, 1_000);
    bench.write(|store, revision| store.optime = Some((Lsn(50_000), revision)));
    // n3 keeps up and says so; n2 is stuck and silent; the leader is quiet again.
    bench.member("n3", |view| view.replay = Some(Lsn(50_000)));
    bench.after(9_000).expect("replicas", &["n2", "n3"]);
    bench.after(20_000).expect("replicas", &["n3"]);
    let lag_of = |bench: &Bench, member: &str| {
        let members = bench.topology.describe(bench.now.mono).members;
        members.into_iter().find(|status| status.name == name(member)).and_then(|status| status.lag_bytes)
    };
    assert_eq!((lag_of(&bench, "n2"), lag_of(&bench, "n3")), (Some(49_000), Some(0)));
    // It catches up.
    bench.member("n2", |view| view.replay = Some(Lsn(50_000))).expect("replicas", &["n2", "n3"]);
    bench.after(60_000).expect("replicas", &["n2", "n3"]);
}

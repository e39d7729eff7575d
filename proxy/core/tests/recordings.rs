//! Recordings of real Patroni clusters, story through the whole of the core: keys in, routes out.
//!
//! Keys come when they came. A recording holds no questions to the members' Patroni, so what they answer is a
//! model: a server takes writes from a given moment on, until another one.

#![expect(clippy::unwrap_used, reason = "a test: what is known cannot be missing")]

mod support;

#[path = "recordings/player.rs"]
mod player;

use player::{Played, Player};
use pointsman_core::route::RevokeReason;

#[test]
fn a_steady_cluster_routes_to_its_leader_and_never_to_a_noloadbalance_member() {
    for (recording, replicas) in [("steady", "n2,n3"), ("tags", "n2")] {
        let mut player = Player::on(recording);
        player.writable("n1", 0, None);
        let story = player.wait(30_000);
        assert_eq!(story.at("primary", 29_000), "n1", "{recording}");
        assert_eq!(story.at("replicas", 29_000), replicas, "{recording}");
        assert_eq!(story.revoked, [], "{recording}");
    }
}

#[test]
fn patroni_3_0_with_its_old_words_is_routed_too() {
    let mut player = Player::on("debian-3.0.2");
    player.writable("n1", 0, None);
    let story = player.wait(30_000);
    assert_eq!(story.at("primary", 29_000), "n1");
    assert_eq!(story.at("replicas", 29_000), "n2,n3"); // whether they stream is not known, and allowed
}

#[test]
fn a_switchover_holds_from_its_announcement_until_the_new_leader_takes_writes() {
    let mut player = Player::on("sync");
    player.apply("sync");
    player.writable("n2", 0, Some(900)).writable("n1", 2_600, None);
    let story = player.play("sync-switchover");
    let named = story.key("leader", 0);
    assert_eq!(named, 2_372);
    assert_eq!(story.at("primary", -1), "n2");
    assert_eq!(story.at("primary", 0), "switchover-announced"); // the key `failover` is the first line
    assert_eq!(story.at("primary", 2_300), "leader-key-gone");
    assert_eq!(story.at("primary", named), "pending");
    assert_eq!(story.at("primary", 2_599), "pending");
    let first = story.first("primary", "n1");
    assert!((2_600..2_650).contains(&first), "{first}");
    story.only_before("primary", "n2", 0);
    // Its sessions end when the new leader is named, or before, because it says itself that it is no primary.
    assert_eq!(story.revoked_of("n2"), [(named, RevokeReason::LeaderChanged)]);
    // Reads stay where they were until there is a better place.
    assert_eq!(story.at("replicas", 2_300), "n1");
    assert_eq!(story.at("replicas", 9_500), "n2");
    assert_eq!(story.at("sync", 9_500), "n2");
    story.never("n3");
}

#[test]
fn a_pause_does_not_keep_a_stopped_primary() {
    let mut player = Player::on("pause");
    player.writable("n1", 0, Some(6_000)).writable("n2", 12_200, None);
    let story = player.play("pause");
    let (gone, named) = (story.gone("leader"), story.key("leader", 0));
    assert_eq!((gone, named), (6_075, 11_984));
    assert_eq!(story.at("primary", gone - 100), "n1");
    assert_ne!(story.at("primary", gone + 200), "n1"); // its member key says that it has stopped
    assert_eq!(story.at("primary", 11_000), "leader-key-gone");
    assert_eq!(story.at("primary", named), "pending");
    let first = story.first("primary", "n2");
    assert!((12_200..12_250).contains(&first), "{first}");
    assert_eq!(story.revoked_of("n1"), [(named, RevokeReason::LeaderChanged)]);
    // There was nobody to follow: n2 is not blamed for it.
    assert_eq!(story.at("replicas", 11_000), "n2");
}

#[test]
fn a_pause_keeps_a_primary_that_speaks_for_itself() {
    let mut player = Player::on("pause");
    player.writable("n1", 0, None);
    let story = player.play_until("pause", 6_075);
    assert_eq!(story.at("primary", 6_074), "n1");
    assert_eq!(story.at("primary", 6_075), "n1"); // without a key
}

#[test]
fn patroni_killed_alone_two_servers_take_writes_and_one_is_routed_to() {
    let mut player = Player::on("kill-patroni-only");
    player.writable("n1", 0, None).dies("n1", 3_000).writable("n2", 20_576, None);
    let story = player.play("kill-patroni-only");
    let (gone, named) = (story.gone("leader"), story.key("leader", 0));
    assert_eq!(story.at("primary", gone - 1), "n1"); // its Patroni is dead, its server is not
    assert_eq!(story.at("primary", gone), "leader-key-gone");
    assert_eq!(story.at("primary", named), "pending");
    let first = story.first("primary", "n2");
    assert!((20_576..20_626).contains(&first), "{first}");
    assert_eq!(story.at("primary", 40_000), "n2");
    assert_eq!(story.revoked_of("n1"), [(named, RevokeReason::LeaderChanged)]);
    story.only_before("primary", "n1", gone);
    story.never("n3");
}

#[test]
fn a_stopped_standby_is_drained_and_comes_back_by_itself() {
    let mut player = Player::on("sync");
    player.apply("sync");
    player.apply("sync-switchover");
    player.writable("n1", 0, None);
    let story = player.play("standby-stopped");
    assert_eq!(story.at("replicas", 5_800), "n2");
    assert_eq!(story.at("replicas", 5_884), "n1"); // n3 is tagged: the primary stands in
    assert_eq!(story.at("replicas", 22_500), "n1"); // starting
    assert_eq!(story.at("replicas", 22_611), "n2");
    assert_eq!(story.at("sync", 2_400), "n2"); // the store names none, the last one still streams
    assert_eq!(story.at("sync", 22_700), "n1");
    assert_eq!(story.at("sync", 26_000), "n2");
    assert_eq!(story.at("primary", 26_000), "n1");
    assert_eq!(story.revoked, []);
    story.never("n3");
}

#[test]
fn a_demotion_and_promotion_without_any_leader_event() {
    // The store was restarted: n2 had demoted itself, its key stayed, and it takes writes again later.
    let mut player = Player::on("kill-patroni-only");
    player.apply("kill-patroni-only");
    player.writable("n2", 0, Some(-1_000)).writable("n2", 1_900, None);
    let story = player.play("dcs-restart");
    assert_eq!(story.at("primary", -2_000), "n2");
    assert_eq!(story.at("primary", 852), "pending");
    assert_eq!(story.at("primary", 1_800), "pending");
    let again = story.first_after("primary", "n2", 0);
    assert!((1_900..1_950).contains(&again), "{again}");
    assert!(
        matches!(story.revoked[..], [(at, ref member, RevokeReason::Demoted)] if at < 852 && member == "n2")
    );
}

#[test]
fn a_store_that_is_down_takes_nothing_away() {
    let mut player = Player::on("steady");
    player.writable("n1", 0, None);
    let story = player.play("dcs-down-failsafe-on");
    let end = story.end;
    assert!(end > 10_000);
    assert_eq!((story.at("primary", end).as_str(), story.at("replicas", end).as_str()), ("n1", "n2,n3"));
    assert_eq!(story.revoked, []);

    let mut player = Player::on("steady");
    player.writable("n1", 0, Some(3_000));
    let story = player.play("dcs-down-failsafe-off");
    assert_eq!(story.at("primary", 2_900), "n1");
    assert_eq!(story.at("primary", 4_200), "pending"); // it demoted itself: its own word
    assert_eq!(story.at("replicas", 4_200), "n2,n3");
    assert_eq!(story.revoked_of("n1").len(), 1);
}

#[test]
fn a_store_that_comes_back_without_keys_moves_nobody() {
    // It hung for longer than the ttl. The replicas find no leader key, let go of their primary, which goes on in failsafe
    // mode, and write into their keys that they do not stream: n2 after 323 ms, n3 after 4 s.
    for unseen in [1, 30, 100, 200] {
        let mut player = Player::on("dcs-back-failsafe-on");
        player.writable("n1", 0, None);
        let story = player.play_return("dcs-back-failsafe-on", 25_000, unseen);
        assert!(story.end > 28_000);
        let reads = story.all("replicas", 0);
        assert!(reads.iter().eq(["n2,n3"]), "the first read was after {unseen} ms: {reads:?}");
        assert_eq!(story.at("primary", story.end), "n1");
        assert_eq!(story.revoked, []);
    }
}

#[test]
fn a_cluster_whose_primary_was_killed_in_a_pause_has_none() {
    let mut player = Player::on("pause-postgres-killed");
    let story: Played = player.wait(20_000);
    assert_eq!(story.first("primary", "n1"), i64::MAX);
    story.never("n3");
}

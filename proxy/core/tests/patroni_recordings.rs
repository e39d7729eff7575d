//! Everything that real Patroni clusters were seen to write is understood, without a complaint.

mod support;

use pointsman_core::patroni::{Keyspace, parse_cluster, parse_config, parse_history, parse_status};
use pointsman_core::view::{
    Lsn, MemberName, MemberRole, MemberState, Replication, Revision, Timeline, TimelineSwitch,
};
use support::recording::{self, Change};

/// The state of a recording's `kv.txt`.
fn keyspace(name: &str) -> Keyspace {
    let stored = recording::stored(name);
    let revision = stored.iter().map(|key| key.revision).max().unwrap_or_default();
    let mut keys = Keyspace::new();
    let all = stored.iter().map(|key| (key.key.as_str(), key.value.as_bytes(), Revision(key.revision)));
    keys.replace_all(Revision(revision), all);
    keys
}

fn member(name: &str) -> MemberName {
    name.into()
}

#[test]
fn every_recorded_state_is_understood() {
    let mut seen = 0;
    for name in recording::all() {
        if recording::stored(&name).is_empty() {
            continue;
        }
        let view = keyspace(&name).view();
        assert_eq!(view.complaints, [], "{name}");
        assert_eq!(view.members.len(), 3, "{name}");
        assert!(view.optime.is_some() && view.system_id.is_some(), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 9);
}

#[test]
fn every_recorded_change_is_understood() {
    let mut changes = 0;
    for name in recording::all() {
        let mut keys = Keyspace::new();
        for (revision, timed) in (1..).zip(recording::watched(&name)) {
            match timed.change {
                Change::Put { key, value } => keys.put(&key, value.as_bytes(), Revision(revision)),
                Change::Delete { key } => keys.delete(&key, Revision(revision)),
                Change::StoreDown { .. } => continue,
            }
            changes += 1;
            // A watch alone does not know the members that were there before it began.
            let mut complaints = keys.view().complaints;
            complaints.retain(|complaint| !complaint.problem.contains("no usable member key"));
            assert_eq!(complaints, [], "{name} at {:?}", timed.at);
        }
    }
    assert!(changes > 100, "only {changes} changes were found");
}

#[test]
fn every_recorded_answer_is_understood() {
    let mut answers = 0;
    for name in recording::all() {
        for answer in recording::rest(&name) {
            let Some(body) = answer.body.filter(|_| answer.path == "/patroni") else { continue };
            let status = parse_status(body.as_bytes(), "demo", &member(&answer.member));
            let status = status.unwrap_or_else(|error| panic!("{name}, {}: {error:?}", answer.member));
            assert_ne!(status.role, MemberRole::Unknown, "{name}: {body}");
            assert!(status.dcs_last_seen.is_some(), "{name}: {body}");
            assert_eq!(status.position.is_some(), status.state == MemberState::Running, "{name}: {body}");
            answers += 1;
        }
    }
    assert!(answers >= 20, "only {answers} answers were found");
}

/// Recordings in which nothing happened between the keys and the answers.
const STILL: [&str; 4] = ["debian-3.0.2", "steady", "sync", "tags"];

/// `GET /cluster` says what the keys say.
#[test]
fn every_recorded_cluster_is_understood() {
    let mut answers = 0;
    for name in recording::all() {
        for answer in recording::rest(&name) {
            let Some(body) = answer.body.filter(|_| answer.status == 200) else { continue };
            match answer.path.as_str() {
                "/cluster" => answers += 1,
                "/config" => {
                    let ttl = parse_config(body.as_bytes()).unwrap().ttl;
                    assert!([10, 20, 30].contains(&ttl), "{name}: {body}");
                    continue;
                }
                "/history" => {
                    parse_history(body.as_bytes()).unwrap_or_else(|why| panic!("{name}: {why}: {body}"));
                    continue;
                }
                _ => continue,
            }
            says_what_the_keys_say(&name, body.as_bytes());
        }
    }
    assert!(answers >= 20, "only {answers} answers were found");
    let scheduled = recording::file("scheduled", "cluster.json").unwrap();
    let scheduled = parse_cluster(scheduled.as_bytes(), "demo").unwrap().scheduled.unwrap();
    assert_eq!(scheduled.scheduled_at, Some(1_795_303_800_000));
}

fn says_what_the_keys_say(name: &str, body: &[u8]) {
    let cluster = parse_cluster(body, "demo").unwrap_or_else(|why| panic!("{name}: {why:?}"));
    let view = keyspace(name).view();
    assert_eq!(cluster.leader, view.leader.map(|key| key.member), "{name}");
    assert_eq!(cluster.paused, view.settings.paused, "{name}");
    let standbys = view.sync.map(|sync| sync.standbys).unwrap_or_default();
    assert!(cluster.standbys.is_empty() || cluster.standbys == standbys, "{name}");
    for (member, entry) in cluster.members {
        let entry = entry.unwrap_or_else(|why| panic!("{name}, {member}: {why}"));
        let key = &view.members[&member];
        assert_eq!((&entry.addresses, &entry.api), (&key.addresses, &key.api), "{name}, {member}");
        if !STILL.contains(&name) {
            continue;
        }
        assert_eq!((&entry.state, &entry.tags), (&key.state, &key.tags), "{name}, {member}");
        let leads = cluster.leader.as_ref() == Some(&member);
        assert!(leads || entry.replication == key.replication, "{name}, {member}");
    }
}

#[test]
fn a_steady_cluster_of_patroni_4() {
    let view = keyspace("steady").view();
    assert_eq!(view.revision, Revision(31));
    let leader = view.leader.as_ref().unwrap();
    assert_eq!((leader.member.as_str(), leader.revision), ("n1", Revision(8)));
    assert_eq!(view.optime, Some((Lsn(84_307_568), Revision(28))));
    assert_eq!((view.settings.ttl, view.settings.loop_wait, view.settings.paused), (30, 10, false));
    assert_eq!(view.system_id.as_deref(), Some("7710522097598104786"));
    let (primary, replica) = (&view.members[&member("n1")], &view.members[&member("n2")]);
    assert_eq!((primary.role, primary.replication), (MemberRole::Primary, Replication::Unknown));
    assert_eq!((replica.role, replica.replication), (MemberRole::Replica, Replication::Streaming));
    assert_eq!(replica.addresses[0].to_string(), "127.9.0.12:5432");
    assert_eq!(replica.api.as_ref().unwrap().to_string(), "http://127.9.0.12:8008");
    assert_eq!((replica.replay, replica.timeline), (Some(Lsn(84_307_568)), Some(Timeline(1))));
    assert_eq!(
        (replica.version.as_deref(), replica.weight, replica.revision),
        (Some("4.1.5"), 1, Revision(30))
    );
}

#[test]
fn a_cluster_of_patroni_3_0() {
    let view = keyspace("debian-3.0.2").view();
    let (primary, replica) = (&view.members[&member("n1")], &view.members[&member("n2")]);
    assert_eq!((primary.role, replica.role), (MemberRole::Primary, MemberRole::Replica));
    assert_eq!((replica.replication, replica.replay), (Replication::Unknown, Some(Lsn(84_159_008))));
    let answers = recording::rest("debian-3.0.2");
    let answer = answers.iter().find(|answer| answer.path == "/patroni" && answer.member == "n1").unwrap();
    let status = parse_status(answer.body.as_deref().unwrap().as_bytes(), "demo", &member("n1")).unwrap();
    assert!(status.writable());
    let answer = answers.iter().find(|answer| answer.path == "/patroni" && answer.member == "n2").unwrap();
    let status = parse_status(answer.body.as_deref().unwrap().as_bytes(), "demo", &member("n2")).unwrap();
    assert_eq!((status.role, status.replication), (MemberRole::Replica, Replication::Unknown));
}

#[test]
fn sync_history_pause_and_tags() {
    let view = keyspace("sync").view();
    let sync = view.sync.unwrap();
    assert_eq!((sync.leader, sync.standbys), (Some(member("n2")), [member("n1")].into()));
    assert!(view.settings.synchronous);
    assert_eq!(view.history, [TimelineSwitch { timeline: Timeline(1), end: Lsn(84_283_632) }]);
    let tags = &view.members[&member("n3")].tags;
    assert!(tags.noloadbalance && tags.nofailover);
    assert_eq!((tags.all["priority"].as_str(), tags.all["nosync"].as_str()), ("5", "true"));
    assert!(keyspace("pause").view().settings.paused);
}

#[test]
fn a_switchover_is_seen_in_its_order() {
    let mut keys = Keyspace::new();
    let mut story = Vec::new();
    for (revision, timed) in (1..).zip(recording::watched("sync-switchover")) {
        let before = keys.view();
        match timed.change {
            Change::Put { key, value } => keys.put(&key, value.as_bytes(), Revision(revision)),
            Change::Delete { key } => keys.delete(&key, Revision(revision)),
            Change::StoreDown { error } => panic!("{error}"),
        }
        let after = keys.view();
        if before.announcement.is_some() != after.announcement.is_some() {
            story.push(if after.announcement.is_some() { "announced" } else { "cleared" });
        }
        if let (None, Some(leader)) = (before.leader, &after.leader) {
            assert_eq!(leader.member, member("n1"));
            story.push("named");
        }
        let old = after.members.get(&member("n2"));
        if old.is_some_and(|old| old.position.is_none()) && !story.contains(&"no position") {
            story.push("no position");
        }
    }
    assert_eq!(story, ["announced", "no position", "named", "cleared"]);
}

#[test]
fn failsafe_mode_and_a_scheduled_switchover() {
    let text = recording::file("dcs-down-failsafe-on", "patroni.txt").unwrap();
    let bodies: Vec<_> = text.lines().filter(|line| line.starts_with('{')).collect();
    assert_eq!(bodies.len(), 2);
    for (body, name) in bodies.iter().zip(["n1", "n2"]) {
        let status = parse_status(body.as_bytes(), "demo", &member(name)).unwrap();
        assert!(status.failsafe_active);
        assert_eq!(status.dcs_last_seen, Some(1_795_247_409));
    }
    let text = recording::file("scheduled", "failover-key.txt").unwrap();
    let value = text.lines().nth(1).unwrap();
    let mut keys = Keyspace::new();
    keys.put("failover", value.as_bytes(), Revision(7));
    let announcement = keys.view().announcement.unwrap();
    assert_eq!((announcement.leader, announcement.candidate), (Some(member("n2")), Some(member("n1"))));
    assert_eq!(announcement.scheduled_at, Some(1_795_303_800_000)); // date -d 2026-11-21T23:30:00Z +%s
}

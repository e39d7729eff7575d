//! The topology as people see it.

use std::time::Duration;

use crate::status::{AnswerStatus, ClusterStatus, MemberStatus, PrimaryStatus, RouteStatus, StoreStatus};
use crate::time::Moment;
use crate::view::MemberName;

use super::Topology;
use super::member::Member;
use super::primary::{Owner, Standing};

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Topology {
    /// The cluster at this moment.
    pub fn describe(&self, now: Moment) -> ClusterStatus {
        ClusterStatus {
            cluster: self.cluster.clone(),
            generation: self.table.generation,
            store: self.describe_store(now),
            settings: self.view.as_ref().map(|view| view.settings.clone()).unwrap_or_default(),
            leader: self.view.as_ref().and_then(|view| view.leader.as_ref()).map(|key| key.member.clone()),
            primary: self.describe_primary(now),
            members: self
                .members
                .iter()
                .map(|(name, member)| self.describe_member(name, member, now))
                .collect(),
            routes: self.describe_routes(),
            alarms: self.alarms(now),
            complaints: self
                .complaints
                .iter()
                .filter(|complaint| !complaint.key.is_empty())
                .cloned()
                .collect(),
        }
    }

    fn describe_store(&self, now: Moment) -> StoreStatus {
        let state = match (&self.store.lost, self.store.last_alive) {
            (Some(_), _) => "lost",
            (None, Some(_)) => "alive",
            (None, None) => "never",
        };
        StoreStatus {
            state,
            age_ms: self.store.last_alive.map(|at| millis(now.since(at))),
            error: self.store.lost.as_ref().map(|(_, error)| error.clone()),
            revision: self.revision().0,
            views: self.store.views,
        }
    }

    fn describe_primary(&self, now: Moment) -> PrimaryStatus {
        let routed = self.primary(now);
        let owner = self.owner.as_ref();
        let state = match (&routed, owner.map(|owner| owner.standing)) {
            (Ok(_), _) => "confirmed",
            (Err(_), Some(Standing::Pending { .. })) => "pending",
            (Err(_), Some(Standing::Confirmed { .. })) => "held",
            (Err(_), None) => "none",
        };
        let confirmed_by = owner.and_then(|owner| match owner.standing {
            Standing::Confirmed { by, .. } => Some(by),
            Standing::Pending { .. } => None,
        });
        PrimaryStatus {
            state,
            member: owner.map(|owner| owner.member.clone()),
            since_ms: owner.map_or(0, |owner| millis(now.since(owner.since()))),
            confirmed_by,
            confirmed_ms: owner.and_then(Owner::last_confirmed).map(|at| millis(now.since(at))),
            why_not: routed.err(),
        }
    }

    fn describe_member(&self, name: &MemberName, member: &Member, now: Moment) -> MemberStatus {
        let view = &member.view;
        let leader = self.view.as_ref().and_then(|view| view.leader.as_ref());
        let serves = self
            .table
            .routes
            .iter()
            .filter_map(|(listener, route)| {
                let candidates = route.candidates.as_ref().ok()?;
                let candidate = candidates.iter().find(|candidate| candidate.member == *name)?;
                Some((listener.clone(), candidate.role))
            })
            .collect();
        MemberStatus {
            name: name.clone(),
            addresses: view.addresses.to_vec(),
            api: view.api.clone(),
            present: member.present(),
            leader: leader.is_some_and(|key| key.member == *name),
            role: view.role,
            state: view.state.clone(),
            timeline: view.timeline,
            replication: view.replication,
            position: view.replay.or(view.position),
            lag_bytes: member.lag.bytes(),
            sync: self.is_sync(name, now),
            tags: view.tags.clone(),
            weight: view.weight,
            version: view.version.as_deref().map(str::to_owned),
            health: member.health.label(),
            admin: member.admin,
            answer: member.answer.as_ref().map(|answer| AnswerStatus {
                age_ms: millis(now.since(answer.asked_at)),
                by: answer.by,
                status: answer.outcome.as_ref().ok().cloned(),
                error: answer.outcome.as_ref().err().copied(),
            }),
            serves,
            excluded: self.excluded(name, member, now),
        }
    }

    fn describe_routes(&self) -> Vec<RouteStatus> {
        let describe =
            |(listener, route): (&pointsman_config::ListenerName, &crate::route::Route)| RouteStatus {
                listener: listener.clone(),
                target: route.target,
                candidates: route
                    .candidates
                    .as_ref()
                    .map(|candidates| candidates.iter().map(|candidate| candidate.member.clone()).collect())
                    .unwrap_or_default(),
                why_not: route.candidates.as_ref().err().cloned(),
            };
        self.table.routes.iter().map(describe).collect()
    }

    /// What wants a person now.
    fn alarms(&self, now: Moment) -> Vec<String> {
        let mut alarms = Vec::new();
        if let Some((since, error)) = &self.store.lost {
            let seconds = now.since(*since).as_secs();
            let routes = if self.view.is_some() && !self.remembered { "; the last routes stay" } else { "" };
            alarms.push(format!("the source has been silent for {seconds} s ({error}){routes}"));
        }
        if self.is_stale(now)
            && let Some(owner) = &self.owner
        {
            alarms.push(format!("nobody has confirmed the leader {} for longer than its ttl", owner.member));
        }
        if let Some(unknown) = &self.unknown_leader {
            alarms.push(format!("the leader key names {unknown}, whom no member key describes"));
        }
        let claims = self.members.iter().filter(|(_, member)| member.claims(now).is_some());
        let claims: Vec<&str> = claims.map(|(name, _)| name.as_str()).collect();
        if claims.len() > 1 {
            alarms.push(format!("{} say at the same time that they are primary", claims.join(" and ")));
        }
        let contradictions =
            self.members.iter().filter_map(|(name, member)| Some((name, member.contradiction(now)?)));
        alarms.extend(contradictions.map(|(name, contradiction)| format!("{name}: {contradiction}")));
        let denied = self.members.iter().filter(|(_, member)| member.denies_us(now) && self.policy.sql);
        alarms
            .extend(denied.map(|(name, _)| format!("{name} does not let us in over SQL; the log says why")));
        let of_cluster = self.complaints.iter().filter(|complaint| complaint.key.is_empty());
        alarms.extend(of_cluster.map(|complaint| complaint.problem.clone()));
        if let Some(owner) = &self.owner
            && self.view.as_ref().is_some_and(|view| view.leader.is_none())
            && self.leads_without_key(owner, now)
        {
            let paused = self.view.as_ref().is_some_and(|view| view.settings.paused);
            let why = if paused { "the cluster is paused" } else { "the source has come back" };
            alarms.push(format!("{why} without a leader key; {} still takes writes", owner.member));
        }
        alarms
    }
}

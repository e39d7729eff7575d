//! The cluster as people and scripts see it: the dashboard, `pointsman status`, `/api/v1/status`, metrics.
//!
//! Made by [`crate::topology::Topology::describe`]; nothing decides by it. Times are ages in milliseconds
//! at the moment of making.

use pointsman_config::{ClusterName, ListenerName, Target};
use serde::Serialize;

use crate::event::{AdminMode, AskError, Status, Witness};
use crate::route::{GrantRole, NoRoute};
use crate::view::{
    Address, ApiUrl, ClusterSettings, Complaint, Lsn, MemberName, MemberRole, MemberState, Replication, Tags,
    Timeline,
};

/// One cluster at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterStatus {
    /// Its name in the configuration.
    pub cluster: ClusterName,
    /// Of the route table that was in force.
    pub generation: u64,
    /// The discovery source.
    pub store: StoreStatus,
    /// Dynamic configuration, as last read.
    pub settings: ClusterSettings,
    /// The member that the leader key names, as last read.
    pub leader: Option<MemberName>,
    /// The primary, or why there is none.
    pub primary: PrimaryStatus,
    /// Every known member, by name.
    pub members: Vec<MemberStatus>,
    /// Every listener, by name.
    pub routes: Vec<RouteStatus>,
    /// What is wrong now and wants a person: contradictions, a lost store, a stale leader. In sentences.
    pub alarms: Vec<String>,
    /// What could not be understood in the store.
    pub complaints: Vec<Complaint>,
}

/// The condition of the discovery source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoreStatus {
    /// `never` (not reached yet), `alive`, `lost`.
    pub state: &'static str,
    /// Since its last sign of life.
    pub age_ms: Option<u64>,
    /// Why it is lost.
    pub error: Option<String>,
    /// Revision of the last snapshot.
    pub revision: u64,
    /// Snapshots that were taken since the start.
    pub views: u64,
}

/// The primary as routed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PrimaryStatus {
    /// `confirmed` (routed to), `pending` (being asked), `held` (confirmed, but a switchover was announced
    /// or it is out for maintenance), `none`.
    pub state: &'static str,
    /// Who it is, or would be.
    pub member: Option<MemberName>,
    /// Since the state began.
    pub since_ms: u64,
    /// `rest`, `sql` or `member-key`.
    pub confirmed_by: Option<&'static str>,
    /// Since the last confirmation.
    pub confirmed_ms: Option<u64>,
    /// Why new sessions are not routed to it.
    pub why_not: Option<NoRoute>,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberStatus {
    /// Its name.
    pub name: MemberName,
    /// Where PostgreSQL answers.
    pub addresses: Vec<Address>,
    /// Where Patroni answers.
    pub api: Option<ApiUrl>,
    /// Its key is in the store now.
    pub present: bool,
    /// The leader key names it.
    pub leader: bool,
    /// Role by its key.
    pub role: MemberRole,
    /// State by its key.
    pub state: MemberState,
    /// Timeline by its key.
    pub timeline: Option<Timeline>,
    /// Whether it streams, by its key.
    pub replication: Replication,
    /// Written or replayed position by its key.
    pub position: Option<Lsn>,
    /// How far it was behind at the last reading, in bytes.
    pub lag_bytes: Option<u64>,
    /// It is a synchronous standby.
    pub sync: bool,
    /// Its tags.
    pub tags: Tags,
    /// Its weight.
    pub weight: u32,
    /// Patroni's version.
    pub version: Option<String>,
    /// `up`, `down`, `unknown`: whether its PostgreSQL answers connections.
    pub health: &'static str,
    /// What an operator wishes.
    pub admin: AdminMode,
    /// Its last answer to a question, if it was asked.
    pub answer: Option<AnswerStatus>,
    /// The listeners that send new sessions to it, and as what.
    pub serves: Vec<(ListenerName, GrantRole)>,
    /// Why it takes no new read sessions, if it does not.
    pub excluded: Option<String>,
}

/// A member's last answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AnswerStatus {
    /// Since it was asked.
    pub age_ms: u64,
    /// Whose word it was.
    pub by: Witness,
    /// What it said.
    pub status: Option<Status>,
    /// Why it said nothing.
    pub error: Option<AskError>,
}

/// One listener's route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteStatus {
    /// The listener.
    pub listener: ListenerName,
    /// Its target.
    pub target: Target,
    /// The members that new sessions go to.
    pub candidates: Vec<MemberName>,
    /// Why there are none.
    pub why_not: Option<NoRoute>,
}

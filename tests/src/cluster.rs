//! A whole cluster: etcd or Consul, and members with streaming replication.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hyper::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::addresses::Addresses;
use crate::consul::Consul;
use crate::etcd::{Etcd, EtcdGuard};
use crate::http;
use crate::member::{Member, MemberOptions};
use crate::site::Site;
use crate::wait;

/// Patroni's scope: the cluster's name, unless its options say another.
pub const SCOPE: &str = "main";
/// Patroni's namespace: where the scope is kept in the store.
pub const NAMESPACE: &str = "/service/";

const BOOTSTRAP_DEADLINE: Duration = Duration::from_secs(60);
const READY_DEADLINE: Duration = Duration::from_secs(90);

/// One cluster at a time in a process: several would take each other's time and falsify what is measured.
static TURN: Semaphore = Semaphore::const_new(1);

/// How a cluster is made. The defaults suit tests: Patroni as quick as it can be, no fsync.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Patroni's scope: the cluster's name.
    pub scope: String,
    /// Which part of the site's addresses it lives on: 0, 1, … for clusters beside each other.
    pub place: u8,
    /// Number of members; their names are `pg1`, `pg2`, …
    pub members: u8,
    /// Number of etcd nodes: 1 to 3.
    pub etcd_nodes: u8,
    /// etcd with TLS on both sides and users. Patroni's side of it belongs into `patroni`.
    pub etcd_guard: Option<EtcdGuard>,
    /// Number of Consul servers, 1 to 3, in place of etcd. 0: etcd.
    pub consul_servers: u8,
    /// Patroni's `ttl`: how long a leader that has vanished keeps its key. Patroni 4 refuses less than 20 s.
    pub ttl: Duration,
    /// Patroni's `loop_wait`.
    pub loop_wait: Duration,
    /// Patroni's `retry_timeout`.
    pub retry_timeout: Duration,
    /// Patroni's `synchronous_mode`: `false`, `true` or `"quorum"`.
    pub synchronous_mode: Value,
    /// Patroni's `failsafe_mode`.
    pub failsafe_mode: bool,
    /// PostgreSQL's `fsync`.
    pub fsync: bool,
    /// Laid over Patroni's configuration file of every member, as a JSON merge patch (RFC 7396).
    pub patroni: Value,
    /// Laid over Patroni's dynamic configuration (`bootstrap.dcs`), as a JSON merge patch.
    pub dynamic: Value,
    /// What is special about the first, second, … member.
    pub member_options: Vec<MemberOptions>,
    /// Told what happens while the cluster starts.
    pub progress: fn(&str),
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            scope: SCOPE.to_owned(),
            place: 0,
            members: 3,
            etcd_nodes: 1,
            etcd_guard: None,
            consul_servers: 0,
            ttl: Duration::from_secs(20),
            loop_wait: Duration::from_secs(3),
            retry_timeout: Duration::from_secs(5),
            synchronous_mode: json!(false),
            failsafe_mode: false,
            fsync: false,
            patroni: json!({}),
            dynamic: json!({}),
            member_options: Vec::new(),
            progress: |_| {},
        }
    }
}

impl ClusterOptions {
    /// Patroni's dynamic configuration, which the first member writes to the store.
    pub(crate) fn dynamic_configuration(&self) -> Value {
        let mut configuration = json!({
            "ttl": self.ttl.as_secs(),
            "loop_wait": self.loop_wait.as_secs(),
            "retry_timeout": self.retry_timeout.as_secs(),
            "synchronous_mode": self.synchronous_mode,
            "failsafe_mode": self.failsafe_mode,
            "postgresql": {
                "use_pg_rewind": true,
                "parameters": { "max_connections": 500 },
            },
        });
        merge(&mut configuration, &self.dynamic);
        configuration
    }
}

/// A JSON merge patch (RFC 7396): objects are merged, `null` removes, anything else replaces.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// A running cluster. Dropping it ends it and leaves nothing behind.
#[derive(Debug)]
pub struct Cluster {
    /// etcd; without nodes when the cluster stands on Consul.
    pub etcd: Etcd,
    scope: String,
    consul: Option<Consul>,
    members: Vec<Member>,
    /// Directory and addresses. After the servers: it ends what they leave.
    pub site: Arc<Site>,
    /// `None`: it lives on the turn of the cluster that it was started beside.
    _turn: Option<SemaphorePermit<'static>>,
}

impl Cluster {
    /// Starts a cluster on addresses of its own and waits until all of it is ready.
    pub async fn start(options: &ClusterOptions) -> Result<Self> {
        let turn = TURN.acquire().await?;
        Self::build(Arc::new(Site::new(Addresses::reserve()?)?), Some(turn), options).await
    }

    /// Starts a cluster in `site` and waits until all of it is ready.
    pub async fn start_in(site: Site, options: &ClusterOptions) -> Result<Self> {
        let turn = TURN.acquire().await?;
        Self::build(Arc::new(site), Some(turn), options).await
    }

    /// Starts a second cluster in the same site, with an etcd of its own, and waits until all of it is ready. The options
    /// must name another scope and another place than those of the first, which must outlive this one.
    pub async fn start_beside(&self, options: &ClusterOptions) -> Result<Self> {
        ensure!(options.scope != self.scope, "two clusters of one scope");
        Self::build(Arc::clone(&self.site), None, options).await
    }

    async fn build(
        site: Arc<Site>,
        turn: Option<SemaphorePermit<'static>>,
        options: &ClusterOptions,
    ) -> Result<Self> {
        let (etcd, consul) = start_store(&site, options).await?;
        let scope = options.scope.clone();
        let mut cluster = Self { etcd, consul, scope, members: Vec::new(), site, _turn: turn };
        cluster.write_patronictl_configuration()?;
        (options.progress)("making the first member, pg1");
        cluster.add_member(0, options)?;
        cluster.wait_bootstrapped().await?;
        for index in 1..options.members {
            cluster.add_member(index, options)?;
        }
        (options.progress)("copying it to the other members, waiting for them to stream");
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    fn add_member(&mut self, index: u8, options: &ClusterOptions) -> Result<()> {
        let special = options.member_options.get(usize::from(index)).cloned().unwrap_or_default();
        let store = self.store(usize::from(index))?;
        let member = Member::start(&self.site, index, &store, options, &special)?;
        self.members.push(member);
        Ok(())
    }

    /// The first member alone: the others can copy it as soon as it is primary.
    async fn wait_bootstrapped(&mut self) -> Result<()> {
        let (etcd, consul, scope) = (&self.etcd, self.consul.as_ref(), &self.scope);
        let member = self.members.first_mut().context("a cluster has a member")?;
        let ready = wait::until("the first member to become primary", BOOTSTRAP_DEADLINE, async || {
            member.check_running()?;
            read_key(etcd, consul, scope, "leader").await?.context("nobody holds the leader key")?;
            member.status().await?.check_leader()
        });
        ready.await.with_context(|| member.server().tail())
    }

    /// Waits until one member is leader and writable, every other one streams on its timeline, and any of them may lead
    /// next.
    pub async fn wait_ready(&self) -> Result<()> {
        let ready = wait::until("every member to run and stream", READY_DEADLINE, async || {
            let leader = self.leader().await?;
            let status = self.member(&leader)?.status().await?;
            status.check_leader()?;
            for member in self.members.iter().filter(|member| member.name() != leader) {
                member.status().await?.check_replica_of(&status)?;
            }
            self.check_eligible().await
        });
        ready.await.with_context(|| self.tails())
    }

    /// An error, unless the store knows every member. A store that was away for a ttl has forgotten them all, and until
    /// they have written their keys again Patroni's leader may put down itself alone as who takes part in failsafe mode.
    /// If it died then, none of the others would ever stand for election.
    async fn check_eligible(&self) -> Result<()> {
        for member in &self.members {
            let key = self.get_key(&format!("members/{}", member.name())).await?;
            key.with_context(|| format!("the store does not know {}", member.name()))?;
        }
        let config = self.get_key("config").await?.unwrap_or_default();
        let config: Value = serde_json::from_str(&config).context("config")?;
        if config.get("failsafe_mode") == Some(&json!(true)) {
            let key = self.get_key("failsafe").await?.context("there is no key failsafe")?;
            let named: Value = serde_json::from_str(&key).context("failsafe")?;
            let all = self.members.iter().all(|member| named.get(member.name()).is_some());
            ensure!(all, "failsafe mode is without some: {named}");
        }
        Ok(())
    }

    /// Who holds the leader key; an error when nobody does.
    pub async fn leader(&self) -> Result<String> {
        self.get_key("leader").await?.context("nobody holds the leader key")
    }

    /// Waits until `name` holds the leader key and is writable.
    pub async fn wait_leader(&self, name: &str, deadline: Duration) -> Result<()> {
        let member = self.member(name)?;
        let led = wait::until(format!("{name} to lead"), deadline, async || {
            let leader = self.leader().await?;
            ensure!(leader == name, "{leader} leads");
            member.status().await?.check_primary()
        });
        led.await.with_context(|| self.tails())
    }

    /// Waits until anybody but `name` leads and is writable; answers who.
    pub async fn wait_other_leader(&self, name: &str, deadline: Duration) -> Result<String> {
        let led = wait::until(format!("another member than {name} to lead"), deadline, async || {
            let leader = self.leader().await?;
            ensure!(leader != name, "{name} still leads");
            self.member(&leader)?.status().await?.check_primary()?;
            Ok(leader)
        });
        led.await.with_context(|| self.tails())
    }

    /// Waits until the leader key names anybody but `name`, writable or not; answers when that was seen.
    pub async fn wait_key_moved(&self, name: &str, deadline: Duration) -> Result<Instant> {
        wait::until(format!("the leader key to leave {name}"), deadline, async || {
            let leader = self.leader().await?;
            ensure!(leader != name, "{name} still leads");
            Ok(Instant::now())
        })
        .await
    }

    /// All members, in the order of their names.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member called `name`.
    pub fn member(&self, name: &str) -> Result<&Member> {
        self.members
            .iter()
            .find(|member| member.name() == name)
            .with_context(|| format!("there is no member {name}"))
    }

    /// The member called `name`, to kill or restart it.
    pub fn member_mut(&mut self, name: &str) -> Result<&mut Member> {
        let found = self.members.iter_mut().find(|member| member.name() == name);
        found.with_context(|| format!("there is no member {name}"))
    }

    /// The first member that is not the leader.
    pub async fn a_replica(&self) -> Result<String> {
        let leader = self.leader().await?;
        let replica = self.members.iter().find(|member| member.name() != leader);
        Ok(replica.context("there is no replica")?.name().to_owned())
    }

    /// A planned switchover to `candidate` through Patroni's REST API; returns when Patroni says that it is done.
    pub async fn switchover(&self, candidate: &str) -> Result<()> {
        let leader = self.leader().await?;
        let body = json!({ "leader": leader, "candidate": candidate });
        let answer =
            http::send_slow(self.member(&leader)?.rest_place(), Method::POST, "/switchover", &body).await?;
        let done = answer.status == 200;
        ensure!(done, "switchover to {candidate}: {} {}\n{}", answer.status, answer.body, self.tails());
        Ok(())
    }

    /// Kills Patroni and PostgreSQL of `name`, and waits until they are gone.
    pub async fn kill_member(&mut self, name: &str) -> Result<()> {
        self.member_mut(name)?.kill().await
    }

    /// Starts a killed member again, on its old data.
    pub async fn restart_member(&mut self, name: &str) -> Result<()> {
        let member = self.members.iter_mut().find(|member| member.name() == name);
        member.with_context(|| format!("there is no member {name}"))?.restart(&self.site).await
    }

    /// Stops Patroni and PostgreSQL of `name` in their tracks.
    pub fn freeze_member(&self, name: &str) -> Result<()> {
        self.member(name)?.freeze()
    }

    /// Lets a frozen member go on.
    pub fn thaw_member(&self, name: &str) -> Result<()> {
        self.member(name)?.thaw()
    }

    /// A fast shutdown of PostgreSQL alone; Patroni starts it again, unless the cluster is paused.
    pub fn stop_postgres(&self, name: &str) -> Result<()> {
        self.member(name)?.signal_postmaster(Signal::INT)
    }

    /// A crash of PostgreSQL alone; Patroni starts it again, unless the cluster is paused.
    pub fn crash_postgres(&self, name: &str) -> Result<()> {
        self.member(name)?.signal_postmaster(Signal::KILL)
    }

    /// Kills node `index` of etcd, starts it again on its data, and does not wait: alone it may have no quorum.
    pub async fn restart_etcd(&mut self, index: usize) -> Result<()> {
        self.etcd.restart(&self.site, index).await
    }

    /// Changes Patroni's dynamic configuration, as `patronictl edit-config` does.
    pub async fn configure(&self, patch: &Value) -> Result<()> {
        // Any Patroni takes it, and there may be no leader.
        let mut refused = String::new();
        for member in &self.members {
            match http::send(member.rest_place(), Method::PATCH, "/config", patch).await {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => refused = format!("{} {}", answer.status, answer.body),
                Err(error) => refused = format!("{error:#}"),
            }
        }
        bail!("config {patch}: {refused}")
    }

    /// Patroni leaves the cluster alone from now on; waits until every member knows.
    pub async fn pause(&self) -> Result<()> {
        self.set_pause(true).await
    }

    /// Ends [`Cluster::pause`].
    pub async fn resume(&self) -> Result<()> {
        self.set_pause(false).await
    }

    async fn set_pause(&self, pause: bool) -> Result<()> {
        self.configure(&json!({ "pause": pause })).await?;
        let known = wait::until("every member to see the pause", Duration::from_secs(30), async || {
            for member in &self.members {
                ensure!(member.status().await?.is_paused() == pause, "{} does not", member.name());
            }
            Ok(())
        });
        known.await.with_context(|| self.tails())
    }

    /// Writes `value` to the key `name` of this cluster (`leader`, `members/pg1`, …).
    pub async fn put_key(&self, name: &str, value: &str) -> Result<()> {
        let key = self.key(name);
        match &self.consul {
            Some(consul) => consul.put(key.trim_start_matches('/'), value).await,
            None => self.etcd.put(&key, value).await,
        }
    }

    /// The value of the key `name` of this cluster; `None` when there is none.
    pub async fn get_key(&self, name: &str) -> Result<Option<String>> {
        read_key(&self.etcd, self.consul.as_ref(), &self.scope, name).await
    }

    /// Deletes the key `name` of this cluster; in etcd only.
    pub async fn delete_key(&self, name: &str) -> Result<()> {
        self.etcd.delete(&self.key(name)).await
    }

    fn key(&self, name: &str) -> String {
        format!("{NAMESPACE}{}/{name}", self.scope)
    }

    /// Consul; an error when the cluster stands on etcd.
    pub fn consul(&self) -> Result<&Consul> {
        self.consul.as_ref().context("the cluster stands on etcd")
    }

    /// Consul, to hurt it.
    pub fn consul_mut(&mut self) -> Result<&mut Consul> {
        self.consul.as_mut().context("the cluster stands on etcd")
    }

    /// Kills Consul's server `index`, starts it again on its data, and does not wait: alone it may have no quorum.
    pub async fn restart_consul(&mut self, index: usize) -> Result<()> {
        let consul = self.consul.as_mut().context("the cluster stands on etcd")?;
        consul.restart(&self.site, index).await
    }

    /// What Patroni of member `index` is told of its store.
    fn store(&self, index: usize) -> Result<Value> {
        match &self.consul {
            Some(consul) => consul.patroni(index),
            None => Ok(self.etcd.patroni()),
        }
    }

    /// The address of PostgreSQL of the present leader.
    pub async fn leader_address(&self) -> Result<SocketAddr> {
        Ok(self.member(&self.leader().await?)?.postgres())
    }

    /// What `patronictl -c` wants.
    pub fn patronictl_configuration(&self) -> PathBuf {
        let name = if self.scope == SCOPE {
            "patronictl.yml".to_owned()
        } else {
            format!("patronictl-{}.yml", self.scope)
        };
        self.site.directory().join(name)
    }

    fn write_patronictl_configuration(&self) -> Result<()> {
        let mut settings = json!({ "scope": self.scope, "namespace": NAMESPACE });
        merge(&mut settings, &self.store(0)?);
        Ok(std::fs::write(self.patronictl_configuration(), settings.to_string())?)
    }

    /// The ends of all logs, for error messages.
    pub fn tails(&self) -> String {
        let tails: Vec<String> = self.members.iter().map(|member| member.server().tail()).collect();
        tails.join("\n")
    }

    /// An error when one of the members' Patroni has ended.
    pub fn check_running(&mut self) -> Result<()> {
        for member in &mut self.members {
            if let Err(error) = member.check_running() {
                bail!("{error}\n{}", member.server().tail());
            }
        }
        Ok(())
    }
}

async fn start_store(site: &Site, options: &ClusterOptions) -> Result<(Etcd, Option<Consul>)> {
    if options.consul_servers > 0 {
        (options.progress)("starting Consul");
        let consul = Consul::start(site, options.consul_servers, options.members).await?;
        return Ok((Etcd::none(), Some(consul)));
    }
    (options.progress)("starting etcd");
    let guard = options.etcd_guard.as_ref();
    Ok((Etcd::start(site, options.place, options.etcd_nodes, guard).await?, None))
}

async fn read_key(etcd: &Etcd, consul: Option<&Consul>, scope: &str, name: &str) -> Result<Option<String>> {
    let key = format!("{NAMESPACE}{scope}/{name}");
    match consul {
        Some(consul) => consul.get(key.trim_start_matches('/')).await,
        None => etcd.get(&key).await,
    }
}

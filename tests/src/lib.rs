//! Clusters made of real servers, for the end-to-end tests, the demo and the benchmarks.
//!
//! [`Cluster::start`] brings up etcd or Consul and a number of Patroni + PostgreSQL members on a /24 of loopback addresses that no
//! other run uses; [`Pointsman`] and [`HaProxy`] are started in front of it; [`stopwatch`] measures what a client sees
//! while the leader changes. Everything lives in one [`Site`]: when it is dropped, or its process dies in any way, every
//! process is ended and every file, shared memory segment and address goes with it.
//!
//! Tasks: this crate starts none that outlive the call that started them, save those of values that end them when they are
//! dropped: [`sql::Client`], [`Clients`], [`Watchers`], [`stopwatch::Traffic`], [`FakeNetwork`].

pub mod addresses;
pub mod balancer;
pub mod browser;
pub mod clients;
pub mod cluster;
pub mod consul;
pub mod etcd;
pub mod haproxy;
pub mod http;
pub mod lab;
pub mod member;
pub mod network;
pub mod pki;
pub mod plain;
pub mod pointsman;
pub mod process;
pub mod shared;
pub mod site;
pub mod sql;
pub mod stopwatch;
pub mod tools;
pub mod wait;
pub mod watchers;

pub use addresses::{Addresses, Ports6};
pub use balancer::Balancer;
pub use clients::Clients;
pub use cluster::{Cluster, ClusterOptions};
pub use consul::Consul;
pub use etcd::{EtcdGuard, EtcdUser};
pub use haproxy::{HaProxy, HaProxyChecks};
pub use member::MemberOptions;
pub use network::{FakeNetwork, Weather};
pub use pki::Pki;
pub use plain::Plain;
pub use pointsman::Pointsman;
pub use site::Site;
pub use watchers::Watchers;

/// Prints a measurement, also when the test passes: `println!` is only shown when it fails.
pub fn say(line: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    Ok(writeln!(std::io::stdout(), "  {line}")?)
}

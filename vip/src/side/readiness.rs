//! How the proxy on this host is: its `GET /ready`, ten times a second, over loopback.
//!
//! The proxy closes the connection after each of its health answers, so each reading is a connection of its own: that is how a
//! balancer outside would see it, too. What readings add up to is [`pointsman_vrrp::health`]'s business.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use pointsman_config::{Config, TrackProxy};
use pointsman_vrrp::event::Proxy;
use pointsman_vrrp::health::{Health, Reading};
use pointsman_vrrp::time::Moment;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::Shared;

/// Between two readings.
const EVERY: Duration = Duration::from_millis(100);

/// For the whole answer.
const DEADLINE: Duration = Duration::from_millis(300);

/// An answer has a few sentences.
const LARGEST: usize = 64 << 10;

/// The labels of readings.
pub(super) const LABELS: [&str; 4] = ["ready", "sick", "away", "hung"];

const fn label(reading: &Reading) -> &'static str {
    match reading {
        Reading::Ready => "ready",
        Reading::Sick { .. } => "sick",
        Reading::Away { .. } => "away",
        Reading::Hung => "hung",
    }
}

/// Reads on and on, and passes on what changes.
pub(super) async fn follow(shared: Shared, news: mpsc::Sender<Proxy>) -> Infallible {
    let start = Instant::now();
    let moment = || Moment::from_start(start.elapsed());
    let mut beat = interval(EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut followed: Option<(SocketAddr, Health)> = None;
    loop {
        beat.tick().await;
        let address = whom(&shared.config.borrow());
        let Some(address) = address else {
            if followed.take().is_some() {
                // Nobody asks any more: what was bad then must not stay so for ever.
                let _ = news.send(Proxy::Well).await; // else the router thread is gone, and so are we soon
            }
            continue;
        };
        if followed.as_ref().is_none_or(|(of, _)| *of != address) {
            followed = Some((address, Health::new(moment())));
        }
        let reading = read(address).await;
        shared.counters.reading(label(&reading));
        let verdict = followed.as_mut().and_then(|(_, health)| health.read(moment(), &reading));
        if let Some(proxy) = verdict {
            match &proxy {
                Proxy::Well => tracing::info!("the proxy serves"),
                Proxy::Unwell { why } => tracing::warn!("the proxy does not serve: {why}"),
            }
            let _ = news.send(proxy).await;
        }
    }
}

/// Where the proxy of this host answers. `None`: nobody wants to know, or there is no proxy on this host.
fn whom(config: &Config) -> Option<SocketAddr> {
    let wanted = config.vips.iter().any(|vip| vip.track.proxy != TrackProxy::Ignore);
    let address = config.admin.bind.first().filter(|_| wanted && !config.listeners.is_empty())?;
    let ip = match address.ip() {
        IpAddr::V4(ip) => IpAddr::V4(if ip.is_unspecified() { Ipv4Addr::LOCALHOST } else { ip }),
        IpAddr::V6(ip) => IpAddr::V6(if ip.is_unspecified() { Ipv6Addr::LOCALHOST } else { ip }),
    };
    Some(SocketAddr::new(ip, address.port()))
}

/// What the proxy says of itself; what is not there in an older one has its default.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Verdict {
    life: String,
    starting: bool,
    why: Vec<String>,
}

async fn read(address: SocketAddr) -> Reading {
    let answer = timeout(DEADLINE, exchange(address)).await;
    let (status, body) = match answer {
        Err(_) => return Reading::Hung,
        Ok(Err(why)) => return Reading::Away { why },
        Ok(Ok(answer)) => answer,
    };
    match status {
        StatusCode::OK => Reading::Ready,
        StatusCode::SERVICE_UNAVAILABLE => unready(&serde_json::from_slice(&body).unwrap_or_default()),
        other => Reading::Away { why: format!("what answers at {address} is not pointsman: {other}") },
    }
}

fn unready(verdict: &Verdict) -> Reading {
    let why = match verdict.why.as_slice() {
        [] => "it does not say why".to_owned(),
        why => why.join("; "),
    };
    let away = verdict.starting || !matches!(verdict.life.as_str(), "ready" | "");
    if away { Reading::Away { why } } else { Reading::Sick { why } }
}

async fn exchange(address: SocketAddr) -> Result<(StatusCode, Bytes), String> {
    let nobody = |error: io::Error| format!("nobody answers at {address}: {error}");
    let broke = |error: hyper::Error| format!("the connection to {address} broke: {error}");
    let stream = TcpStream::connect(address).await.map_err(nobody)?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broke)?;
    let request = Request::get("/ready").header("host", "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let asked = async {
        let answer = sender.send_request(request).await.map_err(broke)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST).collect().await;
        let body = body.map_err(|error| format!("the connection to {address} broke: {error}"))?;
        Ok((status, body.to_bytes()))
    };
    // The connection is driven beside the question; its errors reach that as well.
    let driven = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        biased;
        answer = asked => answer,
        never = driven => match never {},
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Config {
        let vip =
            "[[vips]]\ninterface = \"eth0\"\nrouter_id = 1\npriority = 100\naddresses = [\"10.0.0.1/24\"]\n";
        let text = format!("node = \"lb1\"\n{text}\n{vip}");
        Config::parse(&text, "x", Path::new("/")).unwrap()
    }

    const PROXY: &str = "[clusters.main]\ndiscovery = { etcd = { endpoints = [\"http://10.0.0.1:2379\"] } }\n\
        [[listeners]]\nbind = \"0.0.0.0:5000\"\ntarget = \"primary\"\n";

    #[test]
    fn the_first_admin_address_is_asked_over_loopback() {
        for (bind, asked) in [
            ("\"0.0.0.0:7000\"", "127.0.0.1:7000"),
            ("[\"[::]:7001\", \"0.0.0.0:7000\"]", "[::1]:7001"),
            ("\"10.0.0.11:7000\"", "10.0.0.11:7000"),
        ] {
            let config = config(&format!("{PROXY}[admin]\nbind = {bind}"));
            assert_eq!(whom(&config), Some(asked.parse().unwrap()), "{bind}");
        }
    }

    #[test]
    fn a_host_without_a_proxy_asks_nobody() {
        assert_eq!(whom(&config("")), None);
    }

    #[test]
    fn a_proxy_that_starts_or_drains_is_away() {
        let verdict =
            |life: &str, starting| Verdict { life: life.to_owned(), starting, why: vec!["x".to_owned()] };
        let why = "x".to_owned();
        assert_eq!(unready(&verdict("ready", false)), Reading::Sick { why: why.clone() });
        for verdict in [verdict("ready", true), verdict("draining", false), verdict("starting", false)] {
            assert_eq!(unready(&verdict), Reading::Away { why: why.clone() });
        }
        assert!(matches!(unready(&Verdict::default()), Reading::Sick { .. }));
    }
}

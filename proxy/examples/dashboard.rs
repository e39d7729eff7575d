//! Serves a made-up state, to look at the dashboard without a cluster:
//! `cargo run -p pointsman --example dashboard -- [ADDRESS] [MEMBERS] [trouble]`. `VIP_CONFIG=FILE`: with the pointsman-vip that
//! runs with this configuration.

use std::net::SocketAddr;
use std::time::Duration;

use pointsman::admin::Admin;
use pointsman_core::event::{Event, Loudness, What};
use tokio_util::sync::CancellationToken;

#[path = "../tests/common/mod.rs"]
mod common;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address: SocketAddr = arguments.next().as_deref().unwrap_or("127.0.0.1:7000").parse()?;
    let members: usize = arguments.next().as_deref().unwrap_or("3").parse()?;
    let trouble = arguments.next().is_some();
    let socket = std::env::temp_dir().join(format!("pointsman-example-{}.sock", address.port()));
    let admin = Admin::bind(&pointsman_config::Admin {
        bind: vec![address],
        users: Vec::new(),
        socket: socket.clone(),
    })?;
    println!("http://{address}/ and {}", socket.display());

    let mut made_up = common::made_up(members);
    if let Some(file) = std::env::var_os("VIP_CONFIG") {
        let config =
            pointsman_config::Config::load(file.as_ref()).map_err(|errors| anyhow::anyhow!("{errors}"))?;
        made_up.app.vip.set_socket(&config);
    }
    if members > 0 {
        made_up.switchover();
        for client in 0..40 {
            made_up.session("primary", client, "pg1", 5432);
            let replica = format!("pg{}", 2 + usize::from(client) % members.max(2).saturating_sub(1));
            made_up.session("replicas", client, &replica, 5432);
        }
    }
    if trouble {
        made_up.cluster.describe(common::trouble(members));
        (0..17).for_each(|_| made_up.held("primary"));
        made_up.app.set_reload(Err("line 12: unknown key `targt`, did you mean `target`?".to_owned()));
        made_up.note(
            Duration::from_secs(34),
            Loudness::Warn,
            None,
            What::StoreLost { error: "timed out".to_owned() },
        );
        made_up.note(Duration::from_secs(12), Loudness::Warn, Some("pg1"), What::LeaderKeyGone);
    }
    let stop = CancellationToken::new();
    let served = admin.serve(made_up.app.clone(), stop.clone());
    tokio::pin!(served);
    let mut beat = tokio::time::interval(Duration::from_millis(250));
    let mut beats: u64 = 0;
    loop {
        tokio::select! {
            () = &mut served => return Ok(()),
            _ = tokio::signal::ctrl_c() => stop.cancel(),
            Some(Event::Admin { member, mode }) = made_up.wishes.recv() => {
                made_up.note(Duration::ZERO, Loudness::Info, Some(member.as_str()), What::Admin { mode });
            }
            _ = beat.tick() => {
                beats += 1;
                made_up.cluster.describe(if trouble { common::trouble(members) } else { common::status(members) });
                if members > 0 {
                    made_up.traffic("primary", "pg1", 20_000 + 9_000 * (beats % 23));
                    made_up.traffic("replicas", "pg2", 90_000 + 40_000 * (beats % 11));
                }
            }
        }
    }
}

//! Sessions that say nothing.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use anyhow::{Context as _, Result};

use super::socket::begin;
use crate::wire::Pattern;

/// Sessions from one address of ours: well below the number of its ports.
const PER_SOURCE: usize = 20_000;

/// Opens `count` sessions and keeps them; dropping them closes them.
pub fn open(target: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    (0..count)
        .map(|index| {
            let source = u8::try_from(index / PER_SOURCE).context("too many sessions")?;
            begin(target, Some(Ipv4Addr::new(127, 1, 0, source)), Pattern::Sink)
                .with_context(|| format!("session {index} of {count}"))
        })
        .collect()
}

//! Address translation by nftables in our namespace: the kernel's own limit.
//!
//! The rules are there only while they are measured: connection tracking costs every packet of the namespace.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Listeners, first_line};
use crate::process::output;
use crate::site::{BACKEND, POSTGRES, program};

const TABLE: &str = "pointsman_bench";

/// The rules, not in effect.
#[derive(Debug)]
pub(super) struct Rules {
    nft: PathBuf,
    text: String,
}

/// The rules in effect; dropping this takes them away.
#[derive(Debug)]
pub struct Active {
    nft: PathBuf,
}

impl Rules {
    pub(super) fn find(listeners: Listeners) -> Result<Self> {
        let nft = program("nft").context("nftables is not installed")?;
        let rule = |from: std::net::SocketAddr, to| {
            format!("ip daddr {} tcp dport {} dnat to {to}", from.ip(), from.port())
        };
        let text = format!(
            "table ip {TABLE} {{ chain out {{ type nat hook output priority -100;\n{}\n{}\n}}\n}}",
            rule(listeners.bench, BACKEND),
            rule(listeners.postgres, POSTGRES)
        );
        let rules = Self { nft, text };
        // Tried at once: the kernel may not have it.
        drop(rules.activate()?);
        Ok(rules)
    }

    pub(super) fn activate(&self) -> Result<Active> {
        output(Command::new(&self.nft).arg(&self.text))?;
        Ok(Active { nft: self.nft.clone() })
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if let Err(error) = output(Command::new(&self.nft).args(["delete", "table", "ip", TABLE])) {
            eprintln!("pointsman-bench: {error:#}");
        }
    }
}

pub(super) fn version() -> Option<String> {
    first_line(&program("nft")?, &["--version"])
}

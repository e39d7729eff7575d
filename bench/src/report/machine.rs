//! What the numbers were made on.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::peers::{Engine, Peer, Splice};
use crate::postgres;
use crate::site::{Cores, Site};

/// The machine, the kernel, the versions.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Day, in UTC.
    pub date: String,
    /// As the processor names itself.
    pub processor: String,
    /// Cores that we may use.
    pub cores: usize,
    /// Memory.
    pub gigabytes: u64,
    /// Name and release.
    pub kernel: String,
    /// Who, and which version.
    pub versions: Vec<(&'static str, String)>,
}

impl Machine {
    /// Looks.
    pub fn look(site: &Site) -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let processor = field("/proc/cpuinfo", "model name");
        let kilobytes: u64 =
            field("/proc/meminfo", "MemTotal").split(' ').next().unwrap_or_default().parse().unwrap_or(0);
        let uname = rustix::system::uname();
        let named = [
            ("Pointsman", Peer::Pointsman(Engine::Epoll)),
            ("HAProxy", Peer::HaProxy(Splice::Off)),
            ("nginx", Peer::Nginx),
            ("pgbouncer", Peer::PgBouncer),
            ("Envoy", Peer::Envoy),
            ("nftables", Peer::Nftables),
        ];
        let mut versions: Vec<_> = named
            .into_iter()
            .map(|(name, peer)| (name, peer.version(site).unwrap_or_else(|| "not installed".to_owned())))
            .collect();
        versions.push(("PostgreSQL", postgres::version().unwrap_or_else(|| "not installed".to_owned())));
        Self {
            date: date(seconds / 86_400),
            processor: if processor.is_empty() { "unknown processor".to_owned() } else { processor },
            cores: Cores::all().count(),
            gigabytes: kilobytes / 1_000_000,
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            versions,
        }
    }
}

/// The value of the first line `name : value`.
fn field(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().trim_start_matches([' ', '\t', ':']).trim().to_owned()
}

/// The day that is `days` after 1970-01-01 (Hinnant, "chrono-Compatible Low-Level Date Algorithms": years that begin in
/// March have their leap day at the end).
fn date(days: u64) -> String {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let shown: Vec<String> = [0, 59, 11_016, 19_782, 19_783, 20_088].map(date).to_vec();
        assert_eq!(
            shown,
            ["1970-01-01", "1970-03-01", "2000-02-29", "2024-02-29", "2024-03-01", "2024-12-31"]
        );
    }

    #[test]
    fn fields_of_proc() {
        assert!(field("/proc/meminfo", "MemTotal").ends_with("kB"));
        assert_eq!(field("/proc/meminfo", "NoSuchThing"), "");
    }
}

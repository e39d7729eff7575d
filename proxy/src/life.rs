//! The process as the system sees it: its descriptors. (Signals and the service manager: `pointsman_process::service`.)

use pointsman_config::Config;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors beyond those of sessions: store, Patroni, admin connections, the log, the runtime, splice.
const RESERVE: u64 = 512;

/// The limit of open descriptors, and what the configuration may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// The limit now. `None`: there is none.
    pub limit: Option<u64>,
    /// What every listener full would take.
    pub need: u64,
}

impl Descriptors {
    /// How many sessions may be open at once, so that a crowd of clients leaves the reserve alone. `None`: no limit.
    pub fn room(&self) -> Option<usize> {
        let limit = self.limit?;
        usize::try_from((limit - RESERVE.min(limit / 2)) / 2).ok()
    }

    /// What to tell the operator, if the limit may be reached.
    pub fn warning(&self) -> Option<String> {
        let limit = self.limit.filter(|limit| *limit < self.need)?;
        Some(format!(
            "{limit} descriptors are allowed, and full listeners would need {need}: clients would be refused \
             before max_connections is reached. Set LimitNOFILE={need} in the systemd unit (ulimit -n {need} \
             in a shell), or lower max_connections and max_held",
            need = self.need,
        ))
    }
}

/// Raises the limit of descriptors as far as it goes without privileges, and says what would be needed.
pub fn raise_descriptors(config: &Config) -> Descriptors {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) =
            setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "the limit of descriptors cannot be raised");
    }
    Descriptors { limit: getrlimit(Resource::Nofile).current, need: descriptors_needed(config) }
}

/// Two for each session (client and server), one for each held one, one for each address, and a reserve.
fn descriptors_needed(config: &Config) -> u64 {
    let listeners = config.listeners.iter().map(|listener| {
        2 * u64::from(listener.max_connections) + u64::from(listener.max_held) + listener.bind.len() as u64
    });
    listeners.fold(RESERVE, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_suffices_is_no_warning() {
        assert_eq!(Descriptors { limit: Some(20_512), need: 20_512 }.warning(), None);
        assert_eq!(Descriptors { limit: None, need: 20_512 }.warning(), None);
    }

    #[test]
    fn sessions_leave_the_reserve_alone() {
        assert_eq!(Descriptors { limit: Some(20_512), need: 0 }.room(), Some(10_000));
        assert_eq!(Descriptors { limit: Some(100), need: 0 }.room(), Some(25));
        assert_eq!(Descriptors { limit: None, need: 0 }.room(), None);
    }

    #[test]
    fn a_limit_that_is_too_low_is_told_with_the_remedy() {
        let warning = Descriptors { limit: Some(1024), need: 20_512 }.warning().unwrap();
        assert!(warning.starts_with("1024 descriptors are allowed, and full listeners would need 20512"));
        assert!(warning.contains("LimitNOFILE=20512"));
    }
}

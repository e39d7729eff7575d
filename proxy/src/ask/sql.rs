//! One member's server, over SQL.

use std::sync::Arc;

use pointsman_config::Sql;
use pointsman_core::event::{AskError, Status};
use pointsman_core::view::Address;

use super::Failure;

/// The connection to one server.
#[derive(Debug)]
pub(crate) struct Server {
    _sql: Sql,
}

impl Server {
    pub(crate) fn new(sql: &Sql) -> Self {
        Self { _sql: sql.clone() }
    }

    /// Gives up the connection.
    pub(crate) fn forget(&mut self) {}

    /// What it says of itself; the addresses are tried in order.
    #[expect(clippy::unused_async, reason = "not built yet")]
    pub(crate) async fn status(&mut self, _addresses: &Arc<[Address]>) -> Result<Status, Failure> {
        Err((AskError::Unreachable, "SQL probes are not built yet".to_owned()))
    }
}

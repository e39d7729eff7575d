//! The body of `GET /patroni`.

use serde_json::Value;

use super::values::{self, Fields};
use crate::event::{AskError, Status};
use crate::view::{MemberName, MemberRole, MemberState};

/// The first major version whose replicas always write `replication_state` while they stream.
const SAYS_STREAMING: u32 = 4;

/// Reads a member's status, and makes sure that it is the member that was meant. (Patroni 3.0 does not say
/// its name, only its scope.) The error carries a sentence for people.
pub fn parse_status(body: &[u8], scope: &str, member: &MemberName) -> Result<Status, (AskError, String)> {
    let fields = match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Fields(map),
        Ok(_) => return Err((AskError::Nonsense, "the answer is not a JSON object".to_owned())),
        Err(error) => return Err((AskError::Nonsense, format!("the answer is not JSON: {error}"))),
    };
    let version = identity(&fields, scope, member)?;
    status(&fields, version.as_deref()).map_err(|why| (AskError::Nonsense, format!("in the answer, {why}")))
}

/// Checks who answers, and finds its Patroni's version.
fn identity(fields: &Fields, scope: &str, member: &MemberName) -> Result<Option<String>, (AskError, String)> {
    let nonsense = |why: String| (AskError::Nonsense, format!("in the answer, {why}"));
    let patroni = fields.object("patroni").map_err(nonsense)?.cloned();
    let patroni =
        Fields(patroni.ok_or_else(|| (AskError::Nonsense, "the answer is not Patroni's".to_owned()))?);
    let expected = [("scope", scope, true), ("name", member.as_str(), false)];
    for (key, wanted, required) in expected {
        match patroni.text(key).map_err(nonsense)? {
            Some(found) if found != wanted => {
                let found = values::excerpt(found);
                return Err((
                    AskError::Stranger,
                    format!("{key} {found} answers where {wanted:?} is expected"),
                ));
            }
            None if required => return Err((AskError::Nonsense, format!("the answer names no {key}"))),
            Some(_) | None => {}
        }
    }
    Ok(patroni.text("version").map_err(nonsense)?.map(str::to_owned))
}

fn status(fields: &Fields, version: Option<&str>) -> Result<Status, String> {
    let role = MemberRole::from_patroni(fields.text("role")?.ok_or("its role is missing")?);
    let state = MemberState::from_patroni(fields.text("state")?.ok_or("its state is missing")?);
    let position = match fields.object("xlog")? {
        None => None,
        Some(xlog) => {
            let xlog = Fields(xlog.clone());
            xlog.lsn("location")?.or(xlog.lsn("replayed_location")?)
        }
    };
    let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    let says = major.is_some_and(|major| major >= SAYS_STREAMING);
    Ok(Status {
        role,
        state,
        timeline: fields.timeline()?,
        position,
        replication: values::replication(role, fields.text("replication_state")?, says),
        dcs_last_seen: fields.number("dcs_last_seen")?,
        failsafe_active: fields.on("failsafe_mode_is_active"),
    })
}

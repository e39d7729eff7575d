//! What the hosts tell each other beside VRRP: what each holds, and whom each hears.
//!
//! A report is the whole truth of its sender and not a change of it, so that one that is lost costs nothing but time. It is
//! sent with every heartbeat, and at once when something in it has changed. It is sealed with the key that all hosts share.
//!
//! On the wire (numbers are big-endian, a name has its length in one byte before it):
//!
//! | part | bytes |
//! |---|---|
//! | version, 1 | 1 |
//! | the sender: name, incarnation, sequence | 1 + name, 8, 8 |
//! | number of virtual routers | 2 |
//! | each: name, state, priority, bits, source, offer | 1 + name, 1, 1, 1, 0 or 4 or 16, 0 or 1 + name |
//! | number of other hosts | 2 |
//! | each: name, sight | 1 + name, 1 |
//! | seal over everything before | 32 |
//!
//! There is one way to write a report: names are in ascending order, nothing follows, no bit is without a meaning.

use std::collections::BTreeMap;
use std::net::IpAddr;

use pointsman_config::{NodeName, VipName};

use crate::bytes::{Reader, write_name};
use crate::event::State;
use crate::key::{SEAL, Use};

#[cfg(test)]
mod tests;

pub use crate::key::Key;

/// The longest datagram that is looked at. Three hosts with a few virtual routers need some 250 bytes; 40 virtual routers
/// and 16 hosts fit, however long their names are. Longer ones are not heard, and VRRP's timers decide.
pub const MAX_SIZE: usize = 8192;

const VERSION: u8 = 1;
const FIT: u8 = 1;
const SOURCE_V4: u8 = 2;
const SOURCE_V6: u8 = 4;
const OFFER: u8 = 8;

/// By their numbers on the wire.
const STATES: [State; 3] = [State::Initialize, State::Backup, State::Active];
const SIGHTS: [Sight; 3] = [Sight::Unknown, Sight::Alive, Sight::Lost];

/// What a host says of itself and of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Its virtual routers.
    pub routers: BTreeMap<VipName, RouterReport>,
    /// What it thinks of each of the other hosts.
    pub sees: BTreeMap<NodeName, Sight>,
}

/// What a host says of one of its virtual routers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterReport {
    /// Its state.
    pub state: State,
    /// The priority that it has now.
    pub priority: u8,
    /// It can serve: its proxy is well, and no operator wished it to yield.
    pub fit: bool,
    /// Where its adverts come from.
    pub source: Option<IpAddr>,
    /// It wants to hand the addresses to this host.
    pub offer: Option<NodeName>,
}

/// What one host thinks of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sight {
    /// Never heard of, or it said good-bye.
    Unknown,
    /// It is heard.
    Alive,
    /// It was heard, and is lost.
    Lost,
}

/// One life of a process: a random number that it drew when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

/// Who sent a report, and which of its reports it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The host.
    pub node: NodeName,
    /// Its process.
    pub incarnation: Incarnation,
    /// Grows with each report. One that is not greater than the last was doubled, delayed or recorded, and counts for
    /// nothing.
    pub sequence: u64,
}

/// Why a datagram is no report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Unsealed {
    /// Longer than any report.
    #[error("it is longer than {MAX_SIZE} bytes")]
    TooLong,
    /// Too short for a seal.
    #[error("it is too short")]
    TooShort,
    /// Another version of pointsman-vip.
    #[error("it is of version {theirs} of the peers' protocol and ours is {VERSION}: update all hosts")]
    Version {
        /// Its version.
        theirs: u8,
    },
    /// Not sealed with our key.
    #[error("its seal is wrong: is the content of `key_file` the same on all hosts?")]
    Seal,
    /// Sealed rightly, and yet no report.
    #[error(
        "its content makes no sense, though its seal is right: do all hosts run the same version of pointsman-vip?"
    )]
    Content,
}

impl Unsealed {
    /// The label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TooLong => "too-long",
            Self::TooShort => "too-short",
            Self::Version { .. } => "version",
            Self::Seal => "seal",
            Self::Content => "content",
        }
    }

    /// Every label, for counters that begin at zero.
    pub const LABELS: [&'static str; 5] = ["too-long", "too-short", "version", "seal", "content"];
}

/// The datagram that carries a report.
pub fn seal(key: &Key, sender: &Sender, report: &Report) -> Vec<u8> {
    let mut out = vec![VERSION];
    write_name(&mut out, sender.node.as_str());
    out.extend(sender.incarnation.0.to_be_bytes());
    out.extend(sender.sequence.to_be_bytes());
    write_count(&mut out, report.routers.len());
    for (name, router) in &report.routers {
        write_name(&mut out, name.as_str());
        write_router(&mut out, router);
    }
    write_count(&mut out, report.sees.len());
    for (name, sight) in &report.sees {
        write_name(&mut out, name.as_str());
        out.push(number(&SIGHTS, sight));
    }
    out.extend(key.seal(Use::Report, &out));
    out
}

/// Reads a datagram. It is looked into only when its seal is right.
///
/// Whether it is new is for the caller to say, who knows the [`Incarnation`] of the last handshake and the last sequence.
pub fn open(key: &Key, datagram: &[u8]) -> Result<(Sender, Report), Unsealed> {
    if datagram.len() > MAX_SIZE {
        return Err(Unsealed::TooLong);
    }
    let (content, seal) = datagram.split_last_chunk::<SEAL>().ok_or(Unsealed::TooShort)?;
    match content.first() {
        None => return Err(Unsealed::TooShort),
        Some(&VERSION) => {}
        Some(&theirs) => return Err(Unsealed::Version { theirs }),
    }
    if !key.is_sealed(Use::Report, content, seal) {
        return Err(Unsealed::Seal);
    }
    let mut reader = Reader(content.get(1..).unwrap_or_default());
    let read = read(&mut reader).filter(|_| reader.0.is_empty());
    read.ok_or(Unsealed::Content)
}

fn read(reader: &mut Reader<'_>) -> Option<(Sender, Report)> {
    let (node, incarnation) = (reader.node()?, Incarnation(reader.number()?));
    let sender = Sender { node, incarnation, sequence: reader.number()? };
    let mut report = Report::default();
    for _ in 0..reader.word()? {
        let name = reader.vip()?;
        append(&mut report.routers, name, read_router(reader)?)?;
    }
    for _ in 0..reader.word()? {
        let name = reader.node()?;
        append(&mut report.sees, name, read_sight(reader)?)?;
    }
    Some((sender, report))
}

/// `None`: it is not greater than the last.
fn append<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: V) -> Option<()> {
    if map.last_key_value().is_some_and(|(last, _)| *last >= key) {
        return None;
    }
    map.insert(key, value);
    Some(())
}

fn write_count(out: &mut Vec<u8>, count: usize) {
    // So many do not fit into a datagram.
    out.extend(u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes());
}

fn write_router(out: &mut Vec<u8>, router: &RouterReport) {
    let source = router.source.map_or(0, |source| if source.is_ipv4() { SOURCE_V4 } else { SOURCE_V6 });
    let fit = if router.fit { FIT } else { 0 };
    let offer = if router.offer.is_some() { OFFER } else { 0 };
    out.extend([number(&STATES, &router.state), router.priority, fit | source | offer]);
    match router.source {
        Some(IpAddr::V4(source)) => out.extend(source.octets()),
        Some(IpAddr::V6(source)) => out.extend(source.octets()),
        None => {}
    }
    if let Some(heir) = &router.offer {
        write_name(out, heir.as_str());
    }
}

fn read_router(reader: &mut Reader<'_>) -> Option<RouterReport> {
    let state = *STATES.get(usize::from(reader.byte()?))?;
    let (priority, bits) = (reader.byte()?, reader.byte()?);
    let source = match bits & !(FIT | OFFER) {
        0 => None,
        SOURCE_V4 => Some(IpAddr::from(reader.array::<4>()?)),
        SOURCE_V6 => Some(IpAddr::from(reader.array::<16>()?)),
        _ => return None,
    };
    let offer = if bits & OFFER != 0 { Some(reader.node()?) } else { None };
    Some(RouterReport { state, priority, fit: bits & FIT != 0, source, offer })
}

fn read_sight(reader: &mut Reader<'_>) -> Option<Sight> {
    SIGHTS.get(usize::from(reader.byte()?)).copied()
}

fn number<T: PartialEq>(all: &[T], one: &T) -> u8 {
    all.iter().position(|other| other == one).and_then(|at| u8::try_from(at).ok()).unwrap_or(u8::MAX)
}

//! The decisions of `pointsman-vip`, pure: who holds a virtual address, and what is said about it on the wire.
//!
//! Everything here is sans-IO: time comes in as a parameter ([`time::Moment`]), packets and events go in as values, actions
//! come out as values. There is no socket, clock, task or random source in this crate, so a seed replays any run exactly.
//!
//! * [`advert`]: VRRP's packets (RFC 9568, RFC 3768 and what keepalived makes of them).
//! * [`frame`]: what tells neighbours who has an address: gratuitous ARP, unsolicited neighbour advertisements.
//! * [`report`]: what the hosts tell each other beside VRRP, sealed with a shared key; [`handshake`]: how they meet.
//! * [`node`]: everything of one host: [`node::Node`] is told [`event::Event`]s and answers [`event::Action`]s.
//! * [`group`]: which of the other hosts live, by whose word. [`router`]: the state machine of one virtual router.
//! * [`health`]: when the proxy counts as unwell. [`note`]: what people are told. [`status`]: what they and machines are shown.

pub mod advert;
mod bytes;
mod checksum;
pub mod event;
pub mod frame;
pub mod group;
pub mod handshake;
pub mod health;
mod key;
pub mod node;
pub mod note;
pub mod report;
pub mod router;
pub mod status;
pub mod time;

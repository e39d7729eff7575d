//! What is kept for each socket.

use crate::engine::driver::Chunk;
use crate::engine::sys::ring::Waiting;

/// The receiving half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Receiving {
    /// The slot is free, or its descriptor is being closed.
    #[default]
    Closed,
    Connecting,
    /// Nothing is in flight.
    Off,
    /// A multishot receive is in flight.
    Armed,
    /// It is being cancelled.
    Stopping,
    /// It ended for want of a buffer, and is begun again when there is one.
    Starved,
    /// The peer's FIN has been told.
    Ended,
    /// An error has been told.
    Broken,
}

/// The sending half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sending {
    /// Nothing is in flight. Something may wait for the core's flush.
    #[default]
    Idle,
    /// In the outbox of this round.
    Ready,
    /// A send is in flight.
    Busy,
    /// The socket took less than it was given; a poll for room is in flight.
    Full,
    /// A send failed. What comes now is thrown away.
    Dead,
}

/// One socket. Its descriptor, and what is in flight for it, are the ring's.
#[derive(Debug, Default)]
pub(super) struct Socket {
    pub(super) generation: u32,
    /// Bytes that the kernel has not taken, wherever they are.
    pub(super) queued: u32,
    /// A chunk that goes in this round, before what waits.
    pub(super) staged: Option<Chunk>,
    /// What goes with the next send.
    pub(super) waiting: Option<Box<Waiting>>,
    /// The error of a send (errno), to be told when all that is being received has been.
    pub(super) error: Option<std::num::NonZeroI32>,
    pub(super) receiving: Receiving,
    pub(super) sending: Sending,
    /// The core wants to receive.
    pub(super) wanted: bool,
    /// [`super::Event::Quiet`] is to be told.
    pub(super) owes_quiet: bool,
}

const _: () = assert!(size_of::<Socket>() <= 48, "there is one for each idle socket");

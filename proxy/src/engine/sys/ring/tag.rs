//! What the kernel gives back with each completion: 64 bits that say what was done to what.

/// What can be in flight for a descriptor, each once at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Operation {
    /// A multishot receive.
    Receive = 0,
    Send = 1,
    /// A poll for the connection that is being made.
    Connect = 2,
    /// A poll for nothing but `POLLERR` and `POLLHUP`.
    Hangup = 3,
    /// A poll for room to send what waits.
    Room = 4,
    /// A poll that the core asked for: bytes, a FIN or an error.
    Readable = 5,
    /// A poll that the core asked for: room, or an error.
    Writable = 6,
}

impl Operation {
    pub(super) const ALL: [Self; 7] =
        [Self::Receive, Self::Send, Self::Connect, Self::Hangup, Self::Room, Self::Readable, Self::Writable];

    pub(super) fn bit(self) -> u8 {
        1 << self as u8
    }

    fn from_number(number: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// What to poll for; `None` for what is no poll.
    pub(super) fn poll_events(self) -> Option<u32> {
        match self {
            Self::Hangup => Some(0),
            Self::Connect | Self::Room | Self::Writable => Some(events(libc::POLLOUT)),
            Self::Readable => Some(events(libc::POLLIN | libc::POLLRDHUP)),
            Self::Receive | Self::Send => None,
        }
    }
}

/// `poll(2)` masks as io_uring takes them.
pub(super) fn events(mask: libc::c_short) -> u32 {
    u32::from(mask.cast_unsigned())
}

/// What a completion belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Operation(Operation),
    /// The cancellation of an operation.
    Cancel(Operation),
    /// The poll of a watched descriptor.
    Watch(u8),
}

/// `kind` (8 bits) | `number` (24 bits) | `index` (32 bits).
///
/// Only a send has a number: the one of its buffer or of its owned bytes. Everything else has none, so that the tag of an operation can be
/// made up again to cancel it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u64);

const KIND_SHIFT: u32 = 56;
const NUMBER_SHIFT: u32 = 32;
/// Kinds below are operations; a send of a buffer has one of its own.
const SEND_BUFFER: u64 = 0x10;
const CANCEL: u64 = 0x20;
const WATCH: u64 = 0x40;
const SWEEP: u64 = 0x80;

impl Tag {
    /// What a number can be at most.
    pub(super) const LARGEST_NUMBER: u32 = (1 << (KIND_SHIFT - NUMBER_SHIFT)) - 1;

    fn new(kind: u64, number: u32, index: u32) -> Self {
        Self(kind << KIND_SHIFT | u64::from(number) << NUMBER_SHIFT | u64::from(index))
    }

    pub(super) fn of(index: u32, operation: Operation) -> Self {
        Self::new(operation as u64, 0, index)
    }

    pub(super) fn send_buffer(index: u32, buffer: u16) -> Self {
        Self::new(SEND_BUFFER, buffer.into(), index)
    }

    /// `number` is at most [`Tag::LARGEST_NUMBER`].
    pub(super) fn send_owned(index: u32, number: u32) -> Self {
        Self::new(Operation::Send as u64, number, index)
    }

    pub(super) fn cancel(index: u32, operation: Operation) -> Self {
        Self::new(CANCEL | operation as u64, 0, index)
    }

    pub(super) fn watch(number: u8) -> Self {
        Self::new(WATCH, number.into(), 0)
    }

    /// The cancellation of everything.
    pub(super) fn sweep() -> Self {
        Self::new(SWEEP, 0, 0)
    }

    pub(super) fn user_data(self) -> u64 {
        self.0
    }

    pub(super) fn from_user_data(data: u64) -> Self {
        Self(data)
    }

    fn kind(self) -> u64 {
        self.0 >> KIND_SHIFT
    }

    /// `None` for what nobody needs to hear of.
    pub(super) fn what(self) -> Option<What> {
        match self.kind() {
            SEND_BUFFER => Some(What::Operation(Operation::Send)),
            WATCH => u8::try_from(self.number()).ok().map(What::Watch),
            kind if kind & CANCEL != 0 => Operation::from_number(kind & !CANCEL).map(What::Cancel),
            kind => Operation::from_number(kind).map(What::Operation),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    pub(super) fn index(self) -> u32 {
        self.0 as u32
    }

    pub(super) fn number(self) -> u32 {
        let [_, a, b, c, ..] = self.0.to_be_bytes();
        u32::from_be_bytes([0, a, b, c])
    }

    /// The buffer that a send sends, if it does not send owned bytes.
    pub(super) fn buffer(self) -> Option<u16> {
        if self.kind() == SEND_BUFFER { u16::try_from(self.number()).ok() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_says_what_it_was_made_from() {
        for index in [0, 1, 77, u32::MAX] {
            for operation in Operation::ALL {
                let tag = Tag::of(index, operation);
                assert_eq!(
                    (tag.what(), tag.index(), tag.buffer()),
                    (Some(What::Operation(operation)), index, None)
                );
                let tag = Tag::cancel(index, operation);
                assert_eq!((tag.what(), tag.index()), (Some(What::Cancel(operation)), index));
            }
            let tag = Tag::send_buffer(index, u16::MAX);
            assert_eq!((tag.index(), tag.buffer()), (index, Some(u16::MAX)));
            assert_eq!(tag.what(), Some(What::Operation(Operation::Send)));
            let tag = Tag::send_owned(index, Tag::LARGEST_NUMBER);
            assert_eq!((tag.index(), tag.number(), tag.buffer()), (index, Tag::LARGEST_NUMBER, None));
            assert_eq!(tag.what(), Some(What::Operation(Operation::Send)));
        }
        assert_eq!(Tag::watch(1).what(), Some(What::Watch(1)));
        assert_eq!(Tag::sweep().what(), None);
    }
}

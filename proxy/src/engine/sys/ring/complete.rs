//! What comes back from the kernel: each completion ends the books of its operation before anybody hears of it.

use std::mem::{ManuallyDrop, take};
use std::time::{Duration, Instant};

use io_uring::types::CancelBuilder;
use io_uring::{cqueue, opcode};

use super::tag::{Tag, What};
use super::{Completion, Operation, Payload, Ring};

/// How long dropping a ring waits for what is in flight.
const PATIENCE: Duration = Duration::from_secs(1);

impl Ring {
    /// The next completion.
    pub(crate) fn next(&mut self) -> Option<Completion> {
        loop {
            let entry = self.owned.ring.completion().next()?;
            if let Some(completion) = self.complete(&entry) {
                return Some(completion);
            }
        }
    }

    /// Ends the books of an operation, and says what is of interest.
    fn complete(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let more = cqueue::more(entry.flags());
        if !more {
            self.outstanding = self.outstanding.saturating_sub(1);
        }
        let tag = Tag::from_user_data(entry.user_data());
        let (index, result) = (tag.index(), entry.result());
        #[cfg(test)]
        let result = self.faults.result_of(tag, result);
        let buffer = cqueue::buffer_select(entry.flags());
        if let Some(buffer) = buffer {
            self.owned.buffers.received(buffer);
        }
        let operation = match tag.what()? {
            What::Watch(number) => {
                self.watching &= !(1 << number);
                return Some(Completion::Watched(number));
            }
            What::Cancel(operation) => return self.cancelled(index, operation, result),
            What::Operation(operation) => operation,
        };
        let payload = if operation == Operation::Send { self.payload(tag) } else { None };
        let descriptor = self.descriptors.get_mut(index as usize)?;
        if !more {
            descriptor.in_flight &= !operation.bit();
        }
        if descriptor.dismissed {
            for buffer in buffer.into_iter().chain(payload.as_ref().and_then(Payload::buffer)) {
                self.owned.buffers.give(buffer);
            }
            return self.close_if_done(index).then_some(Completion::Closed);
        }
        Some(match operation {
            Operation::Receive => Completion::Received { index, result, buffer, more },
            Operation::Send => Completion::Sent { index, result, payload: payload? },
            Operation::Connect
            | Operation::Hangup
            | Operation::Room
            | Operation::Readable
            | Operation::Writable => Completion::Polled { index, operation, result },
        })
    }

    fn payload(&mut self, tag: Tag) -> Option<Payload> {
        if let Some(buffer) = tag.buffer() {
            return self.owned.buffers.sent(buffer).map(|length| Payload::Buffer(buffer, length));
        }
        let number = tag.number();
        let waiting = self.owned.sending.get_mut(number as usize)?.take()?;
        self.free_sending.push(number);
        Some(Payload::Owned(waiting))
    }

    /// A cancellation is done. What is to be closed is cancelled until it is gone.
    fn cancelled(&mut self, index: u32, operation: Operation, result: i32) -> Option<Completion> {
        let descriptor = self.descriptors.get_mut(index as usize)?;
        descriptor.cancels = descriptor.cancels.saturating_sub(1);
        let missed = result < 0 && descriptor.in_flight & operation.bit() != 0;
        if descriptor.dismissed {
            if missed {
                self.cancel(index, operation);
            }
            return self.close_if_done(index).then_some(Completion::Closed);
        }
        missed.then_some(Completion::NotCancelled { index, operation })
    }

    /// Cancels everything and waits for it. Whether nothing is in flight any more.
    fn quiesce(&mut self) -> bool {
        let end = Instant::now() + PATIENCE;
        while self.outstanding > 0 {
            self.push(opcode::AsyncCancel2::new(CancelBuilder::any()).build(), Tag::sweep());
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.wait(1, Some(left.min(Duration::from_millis(20)))).is_err() {
                return false;
            }
            while self.next().is_some() {}
        }
        true
    }
}

impl Payload {
    fn buffer(&self) -> Option<u16> {
        match self {
            Self::Buffer(buffer, _) => Some(*buffer),
            Self::Owned(_) => None,
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Nothing new is begun by closing: a descriptor that is dismissed here is closed with the vector at the latest.
        let done = self.quiesce();
        if done {
            // SAFETY: dropped once, here, and not used afterwards. Nothing is in flight, so the kernel has done with all of it.
            unsafe { ManuallyDrop::drop(&mut self.owned) };
        } else {
            tracing::error!(
                outstanding = self.outstanding,
                "io_uring did not end what was in flight; its memory is left to it"
            );
            // The descriptors must not be closed under operations that have not been submitted yet, either.
            std::mem::forget(take(&mut self.descriptors));
        }
    }
}

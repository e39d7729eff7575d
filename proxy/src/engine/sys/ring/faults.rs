//! Faults that the kernel cannot be made to show when a test wants them.

use std::collections::{HashMap, VecDeque};

use super::tag::{Operation, Tag, What};

/// What goes wrong, by descriptor.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// The most that one send takes, in bytes.
    pub(crate) send_at_most: HashMap<u32, u32>,
    /// Errors of the next sends, which then send nothing.
    pub(crate) sends_fail: HashMap<u32, VecDeque<i32>>,
}

impl Faults {
    pub(super) fn length_of_send(&self, index: u32, length: u32) -> u32 {
        self.send_at_most.get(&index).map_or(length, |most| length.min(*most))
    }

    pub(super) fn refuses_send(&self, index: u32) -> bool {
        self.sends_fail.get(&index).is_some_and(|errors| !errors.is_empty())
    }

    pub(super) fn result_of(&mut self, tag: Tag, result: i32) -> i32 {
        if tag.what() != Some(What::Operation(Operation::Send)) {
            return result;
        }
        let errors = self.sends_fail.get_mut(&tag.index());
        errors.and_then(VecDeque::pop_front).map_or(result, |errno| -errno)
    }
}

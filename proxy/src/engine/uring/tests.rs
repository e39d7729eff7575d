//! What only this driver has: few buffers, small queues, and faults that the kernel is made to show.

use super::*;
use crate::engine::conformance::conformance;

conformance!(usual, || Uring::open().unwrap());

/// Everything is scarce: two operations at a time, four completions, two small buffers.
const TINY: Size = Size { submissions: 2, completions: 4, buffers: 2, buffer_size: 4096 };

conformance!(tiny, || Uring::with_size(TINY).unwrap());

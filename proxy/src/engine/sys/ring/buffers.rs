//! The buffers that the kernel receives into: a provided-buffer ring (`IORING_REGISTER_PBUF_RING`, Linux 5.19).
//!
//! The kernel picks the buffers in the order in which they were given to it. A table says for each of them who may touch it, so that a
//! number that somebody made up, or used twice, does no harm.

use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

/// The only group there is.
pub(super) const GROUP: u16 = 0;

/// What the ring of entries has to be aligned to: the largest page size of the supported architectures.
const PAGE: usize = 64 * 1024;

/// Between two buffers, in bytes: if all of them began at the same place of a page, the first lines of all messages would fall into the
/// same few sets of the processor's caches.
const GAP: usize = 192;

/// Who may touch a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// The kernel may write to it at any time.
    Kernel,
    /// Received, and handed to the caller.
    Caller,
    /// The kernel reads so many bytes of it, for a send.
    Send(u32),
}

/// The buffers and the ring by which they are given to the kernel, in one mapping.
#[derive(Debug)]
pub(super) struct Buffers {
    /// The entries, then (from a page of its own on) the buffers.
    map: NonNull<u8>,
    map_length: usize,
    first: usize,
    size: usize,
    owners: Box<[Owner]>,
    provided: usize,
    tail: u16,
}

impl Buffers {
    /// `count` buffers of `size` bytes, all of them ready to be given. `count` is a power of two.
    pub(super) fn map(count: u16, size: u32) -> io::Result<Self> {
        let size = size as usize;
        if !count.is_power_of_two() || size == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let entries = usize::from(count) * size_of::<BufRingEntry>();
        // One page more than is needed, so that an aligned start fits in wherever the kernel puts the mapping.
        let first = entries.next_multiple_of(PAGE);
        let map_length = first + usize::from(count) * (size + GAP) + PAGE;
        // SAFETY: a new private mapping, at an address of the kernel's choice; nothing that exists is touched.
        let map = unsafe {
            libc::mmap(
                null_mut(),
                map_length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the range is the mapping that was just made. A child would otherwise share its pages until the first write, and the
        // kernel would then go on with pages that are no longer ours. If it fails, only that protection is missing.
        unsafe { libc::madvise(map.as_ptr().cast(), map_length, libc::MADV_DONTFORK) };
        let owners = vec![Owner::Caller; usize::from(count)].into_boxed_slice();
        Ok(Self { map, map_length, first, size, owners, provided: 0, tail: 0 })
    }

    /// Tells the kernel of the ring. The kernel may write to what is given from here on, until the ring is gone.
    pub(super) fn register(&mut self, submitter: &Submitter<'_>) -> io::Result<()> {
        let address = self.entries().as_ptr() as u64;
        let count = u16::try_from(self.owners.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the entries are mapped, zeroed and aligned; `Ring` unmaps them after the kernel's last completion, or never.
        unsafe { submitter.register_buf_ring_with_flags(address, count, GROUP, 0) }?;
        for buffer in 0..count {
            self.give(buffer);
        }
        self.publish();
        Ok(())
    }

    /// Where the entries begin.
    fn entries(&self) -> NonNull<BufRingEntry> {
        let offset = self.map.as_ptr().align_offset(PAGE);
        // SAFETY: the mapping is a page longer than the entries and buffers, so the aligned start is inside of it.
        unsafe { self.map.add(offset).cast() }
    }

    /// Where buffer `buffer`, which exists, begins.
    fn start(&self, buffer: usize) -> NonNull<u8> {
        debug_assert!(buffer < self.owners.len());
        // SAFETY: the mapping has room for the entries (up to `first`) and for all buffers after them.
        unsafe { self.entries().cast::<u8>().add(self.first + buffer * (self.size + GAP)) }
    }

    fn owner(&self, buffer: u16) -> Option<Owner> {
        self.owners.get(usize::from(buffer)).copied()
    }

    fn set_owner(&mut self, buffer: u16, owner: Owner) {
        if let Some(slot) = self.owners.get_mut(usize::from(buffer)) {
            *slot = owner;
        }
    }

    /// How many the kernel can still pick, as far as is known.
    pub(super) fn provided(&self) -> usize {
        self.provided
    }

    /// Gives a buffer of the caller's to the kernel, from the next [`Buffers::publish`] on. Any other is left alone.
    pub(super) fn give(&mut self, buffer: u16) {
        if self.owner(buffer) != Some(Owner::Caller) {
            debug_assert!(false, "buffer {buffer} is not the caller's");
            return;
        }
        self.set_owner(buffer, Owner::Kernel);
        self.provided += 1;
        let slot = usize::from(self.tail) & (self.owners.len() - 1);
        let address = self.start(usize::from(buffer)).as_ptr() as u64;
        // SAFETY: `slot` is below the number of entries. The kernel reads an entry only after the tail has passed it, and it has not: no more
        // entries are written than there are buffers. Only the first entry's last field (the tail) is read meanwhile; it is not touched here.
        let entry = unsafe { self.entries().add(slot).as_mut() };
        entry.set_addr(address);
        entry.set_len(u32::try_from(self.size).unwrap_or(u32::MAX));
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel what was given.
    pub(super) fn publish(&mut self) {
        // SAFETY: the ring's tail is a field of its first entry, aligned for u16, inside the mapping; it is only ever accessed atomically.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries().as_ptr()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// The kernel has received into this one: it is the caller's now.
    pub(super) fn received(&mut self, buffer: u16) {
        if self.owner(buffer) == Some(Owner::Kernel) {
            self.set_owner(buffer, Owner::Caller);
            self.provided -= 1;
        } else {
            debug_assert!(false, "the kernel used buffer {buffer}, which it had not been given");
        }
    }

    /// The address of `length` bytes of a buffer of the caller's that is to be sent. Until [`Buffers::sent`] it stays as it is.
    pub(super) fn send(&mut self, buffer: u16, length: u32) -> Option<*const u8> {
        if self.owner(buffer) != Some(Owner::Caller) || length as usize > self.size {
            return None;
        }
        self.set_owner(buffer, Owner::Send(length));
        Some(self.start(usize::from(buffer)).as_ptr())
    }

    /// The kernel has done with reading: the buffer is the caller's again. How much was to be sent.
    pub(super) fn sent(&mut self, buffer: u16) -> Option<u32> {
        let Some(Owner::Send(length)) = self.owner(buffer) else { return None };
        self.set_owner(buffer, Owner::Caller);
        Some(length)
    }

    /// The first `length` bytes of a buffer of the caller's; nothing of any other.
    pub(super) fn bytes(&self, buffer: u16, length: u32) -> &[u8] {
        match self.owner(buffer) {
            Some(Owner::Caller | Owner::Send(_)) if length as usize <= self.size => {
                // SAFETY: inside the mapping, initialised (mapped as zeros), and nobody writes to it: the kernel has not been given it, and
                // `append` and `give` need `&mut self`, which cannot be had while the slice lives.
                unsafe {
                    std::slice::from_raw_parts(self.start(usize::from(buffer)).as_ptr(), length as usize)
                }
            }
            Some(_) | None => &[],
        }
    }

    /// Copies the first `length` bytes of `from` behind the first `used` bytes of `to`. False if they do not fit, or are not the caller's.
    pub(super) fn append(&mut self, to: u16, used: u32, from: u16, length: u32) -> bool {
        let ours =
            self.owner(to) == Some(Owner::Caller) && self.owner(from) == Some(Owner::Caller) && to != from;
        let (used, length) = (used as usize, length as usize);
        if !ours || length > self.size || used > self.size - length {
            return false;
        }
        // SAFETY: two different buffers of the caller's, which the kernel does not touch, and both ranges are inside of them. `&mut self`
        // says that no slice of them is alive.
        unsafe {
            let source = self.start(usize::from(from)).as_ptr();
            let target = self.start(usize::from(to)).as_ptr().add(used);
            std::ptr::copy_nonoverlapping(source, target, length);
        }
        true
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more: slices borrow `self`, and `Ring` drops the buffers only after the last
        // completion (otherwise it leaks them).
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.map_length) };
    }
}

//! Signals, scheduling, and a descriptor that another process left us.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Takes over a descriptor that this process was started with.
///
/// It has to be one of a kind that nothing else in this process opens (the caller checks that it is the socket it expects),
/// and must be taken once.
pub(crate) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: asks for the flags of a number; any number may be asked about.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, as was just seen, and it is ours: it was left open for us across exec, nobody else in
    // this process knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A set of signals.
#[derive(Clone, Copy)]
pub(crate) struct Signals(libc::sigset_t);

impl Signals {
    /// These signals.
    pub(crate) fn of(signals: &[libc::c_int]) -> Self {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` writes the whole set that is pointed to.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: written just now.
        let mut set = unsafe { set.assume_init() };
        for signal in signals {
            // SAFETY: the set is valid; a number that is no signal is refused and changes nothing.
            unsafe { libc::sigaddset(&raw mut set, *signal) };
        }
        Self(set)
    }

    /// Holds them back from this thread and from all that it starts.
    pub(crate) fn block(&self) -> io::Result<()> {
        self.mask(libc::SIG_BLOCK)
    }

    /// Lets them through again.
    pub(crate) fn unblock(&self) -> io::Result<()> {
        self.mask(libc::SIG_UNBLOCK)
    }

    fn mask(&self, how: libc::c_int) -> io::Result<()> {
        // SAFETY: the set is valid, and the old mask is not asked for.
        let error = unsafe { libc::pthread_sigmask(how, &raw const self.0, std::ptr::null_mut()) };
        if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
    }

    /// A descriptor that is readable while one of them, blocked, waits to be taken.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        // SAFETY: the set is valid; -1 asks for a new descriptor.
        let descriptor =
            unsafe { libc::signalfd(-1, &raw const self.0, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor, for us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }
}

/// The next signal of a descriptor of [`Signals::descriptor`]; `None` when none waits.
pub(crate) fn next_signal(descriptor: BorrowedFd<'_>) -> Option<libc::c_int> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the kernel writes at most `size` bytes, which is the size of what is pointed to.
    let read = unsafe { libc::read(descriptor.as_raw_fd(), info.as_mut_ptr().cast(), size) };
    if usize::try_from(read) != Ok(size) {
        return None;
    }
    // SAFETY: all of it was written, and any bytes make a valid `signalfd_siginfo`.
    let info = unsafe { info.assume_init() };
    libc::c_int::try_from(info.ssi_signo).ok()
}

/// Gives this thread `SCHED_FIFO` with this priority. What it starts is scheduled as usual.
pub(crate) fn schedule_first(priority: libc::c_int) -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: priority };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: 0 is this thread; the parameter is read only.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// True when this thread has `SCHED_FIFO`.
pub(crate) fn is_scheduled_first() -> bool {
    // SAFETY: 0 is this thread; nothing is written.
    let policy = unsafe { libc::sched_getscheduler(0) };
    policy >= 0 && policy & !libc::SCHED_RESET_ON_FORK == libc::SCHED_FIFO
}

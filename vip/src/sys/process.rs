//! Signals, scheduling, and a descriptor that another process left us.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::pipe::{PipeFlags, pipe_with};

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

/// Where the handler below writes to; -1 until it is installed.
static NOTED: AtomicI32 = AtomicI32::new(-1);

/// Turns these signals into bytes, one for each, of the descriptor that it answers (never blocking). It works whichever thread
/// the kernel chooses for them, and programs that this process starts know nothing of it. Once for each process.
pub(crate) fn take_signals(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // Open for as long as the process lives: a handler may run at any time.
    NOTED.store(writer.into_raw_fd(), Ordering::Release);
    for signal in signals {
        // SAFETY: of integers, pointers and an optional function, for all of which zero is a value.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = note_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the action is valid, and its handler does nothing that a handler must not; the old one is not asked for.
        if unsafe { libc::sigaction(*signal, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(reader)
}

/// Runs at any moment, within any thread: only what signal-safety(7) allows.
extern "C" fn note_signal(signal: libc::c_int) {
    let byte = signal.to_le_bytes();
    // SAFETY: `write` is allowed here; it reads one byte of a value that lives. The error number is this thread's own, and the
    // code that was interrupted finds it as it was. A full pipe means that signals wait already.
    unsafe {
        let error = libc::__errno_location();
        let saved = *error;
        libc::write(NOTED.load(Ordering::Acquire), byte.as_ptr().cast(), 1);
        *error = saved;
    }
}

/// The next signal of the descriptor of [`take_signals`]; `None` when none waits.
pub(crate) fn next_signal(descriptor: &OwnedFd) -> Option<libc::c_int> {
    let mut byte = [0];
    match rustix::io::read(descriptor, &mut byte) {
        Ok(1) => Some(byte[0].into()),
        Ok(_) | Err(_) => None,
    }
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

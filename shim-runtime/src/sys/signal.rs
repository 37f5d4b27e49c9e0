//! Signals: what they do to this process, what its children inherit of that, and how they are sent.
//!
//! # Why the signals that mean nothing have a handler
//! Three things keep a signal from ending a process. A signal that is *ignored* stays ignored in every program that
//! is executed, and one that is *blocked* stays blocked there: `std::process::Command`, which authors use, resets
//! neither (of the dispositions it resets that of `SIGPIPE` alone). A container or a tool that cannot be ended by
//! `SIGTERM` would be the result. A *handler* is taken away by the kernel at exec, so programs start with every
//! signal at its default, whoever starts them and however. Its price is that it interrupts system calls. With
//! `SA_RESTART` the kernel resumes most of them; the others (`poll`, `epoll_wait`, reads of a socket that has a
//! time limit) fail with `EINTR`, and the runtime calls them again.

use std::io;
#[cfg(feature = "testing")]
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;

use crate::types::{Pid, Signal};

/// The last signal. The kernel knows two, 32 and 33, that the C library keeps for itself and refuses to name.
const LAST: libc::c_int = 64;

/// Signals that the kernel sends to a thread whose code has gone wrong, so that it cannot go on.
const FAULTS: [libc::c_int; 6] =
    [libc::SIGILL, libc::SIGTRAP, libc::SIGBUS, libc::SIGFPE, libc::SIGSEGV, libc::SIGSYS];

/// Signals that do nothing unless somebody handles them.
const HARMLESS: [libc::c_int; 4] = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];

/// Signals by which a terminal stops the jobs in its background, or its user the one in front.
const JOB_CONTROL: [libc::c_int; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// What the faults did before [`outlive_signals`], each at its place in [`FAULTS`].
static BEFORE: [OnceLock<Action>; FAULTS.len()] = [const { OnceLock::new() }; FAULTS.len()];

/// The kernel's `struct sigaction`, which on both architectures of this crate looks like this. All zero it is the
/// default.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Action {
    handler: usize,
    flags: libc::c_ulong,
    /// Where a handler returns to; the C library knows the place.
    restorer: usize,
    mask: u64,
}

impl Action {
    fn is_handler(self) -> bool {
        ![libc::SIG_DFL, libc::SIG_IGN].contains(&self.handler)
    }
}

/// Sets what a signal does, unless `new` is `None`; returns what it did before. Not by way of the C library, which
/// refuses its own two signals.
fn action(signal: libc::c_int, new: Option<&Action>) -> io::Result<Action> {
    let mut before = Action::default();
    let new = new.map_or(ptr::null(), ptr::from_ref);
    let (number, set_size) = (libc::SYS_rt_sigaction, size_of::<u64>());
    // SAFETY: both pointers are to an `Action`, or the first to none, and it holds a set of the given size. A handler
    // in it is one of the C library's making, or the default.
    if unsafe { libc::syscall(number, signal, new, &raw mut before, set_size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(before)
}

/// Lets every signal pass by that can be caught, so that from here on the process ends, or stops, only by what is
/// handled otherwise. What somebody handles already is left to them. `stops` is for a process in the hands of a
/// user, who may want to stop it from its terminal.
///
/// Faults are told apart by who sends them: from another process they pass by too, while one that the kernel sends
/// has the effect that it had before, since the code that it interrupts cannot be resumed.
pub(crate) fn outlive_signals(stops: bool) -> io::Result<()> {
    let pass_by = passing_by()?;
    for signal in 1..=LAST {
        let is_left = HARMLESS.contains(&signal) || stops && JOB_CONTROL.contains(&signal);
        if is_left || [libc::SIGKILL, libc::SIGSTOP].contains(&signal) {
            continue;
        }
        if let Some(place) = FAULTS.iter().position(|fault| *fault == signal) {
            // Kept before it is needed: the handler may run as soon as it is there.
            let before = action(signal, None)?;
            if before.handler != pass_by.handler {
                let _ = BEFORE[place].set(before);
                action(signal, Some(&pass_by))?;
            }
            continue;
        }
        let before = action(signal, Some(&pass_by))?;
        if before.is_handler() && before.handler != pass_by.handler {
            action(signal, Some(&before))?;
        }
    }
    Ok(())
}

/// The action that does nothing, as the C library makes it: it adds the place that handlers return to.
fn passing_by() -> io::Result<Action> {
    let before = action(libc::SIGUSR2, None)?;
    // SAFETY: an all-zero `sigaction` is a valid value to be filled in.
    let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
    ours.sa_sigaction = pass_by as *const () as usize;
    // On the stack that the standard library keeps for it: a fault may be that a stack is full.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    // That stack has room for few: when many signals come at once, one handler ends before the next begins.
    // SAFETY: a valid set.
    unsafe { libc::sigfillset(&raw mut ours.sa_mask) };
    // SAFETY: the handler takes what `SA_SIGINFO` promises, and does nothing that a handler may not do.
    if unsafe { libc::sigaction(libc::SIGUSR2, &raw const ours, ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    action(libc::SIGUSR2, Some(&before))
}

/// The handler of signals that mean nothing. It gives way to what was there before where the kernel says that the
/// interrupted code cannot go on.
extern "C" fn pass_by(signal: libc::c_int, info: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: with `SA_SIGINFO` the kernel passes a valid pointer.
    let is_from_kernel = unsafe { (*info).si_code } > 0;
    let Some(place) = FAULTS.iter().position(|fault| *fault == signal).filter(|_| is_from_kernel) else {
        return;
    };
    let before = BEFORE[place].get().copied().unwrap_or_default();
    let _ = action(signal, Some(&before));
    // A handler of before sees the fault itself, once the code is resumed and fails again. For the default there is
    // nothing to see, and not every fault would come again.
    if !before.is_handler() {
        // SAFETY: no precondition; the signal is blocked until this handler returns.
        unsafe { libc::raise(signal) };
    }
}

/// Blocks every signal for the calling thread; returns what was blocked before.
pub(super) fn block_signals() -> libc::sigset_t {
    // SAFETY: an all-zero set is a valid value to be overwritten.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    let mut before = all;
    // SAFETY: `all` is a valid set.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: both sets are valid; a failure leaves `before` empty, which unblocks all later.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) };
    before
}

pub(super) fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: the mask came from `pthread_sigmask`.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, ptr::null_mut()) };
}

/// For a forked child: has every signal at its default, and none blocked. A handler of the parent must not run in
/// the child (it would write into the parent's signal pipe), and what this process was itself started with, such as
/// a signal that is ignored, is not for containers.
pub(super) fn reset_signals() {
    for signal in 1..=LAST {
        // Fails harmlessly for KILL and STOP.
        let _ = action(signal, Some(&Action::default()));
    }
    // SAFETY: an all-zero set is the empty set on Linux.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    restore_signals(&none);
}

/// Sends any signal by number, real-time ones included.
pub(crate) fn kill(pid: Pid, signal: Signal) -> io::Result<()> {
    send_signal(pid.raw(), signal)
}

/// Sends a signal to the process group that `leader` leads.
pub(crate) fn kill_group(leader: Pid, signal: Signal) -> io::Result<()> {
    send_signal(-leader.raw(), signal)
}

fn send_signal(target: libc::pid_t, signal: Signal) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    done(libc::c_long::from(unsafe { libc::kill(target, signal.number()) }))
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends a signal to the process that a pidfd stands for.
#[cfg(feature = "testing")]
pub(crate) fn signal_process(process: &OwnedFd, signal: Signal) -> io::Result<()> {
    let (number, info) = (libc::SYS_pidfd_send_signal, ptr::null::<libc::siginfo_t>());
    // SAFETY: without further information the pointer is null.
    done(unsafe { libc::syscall(number, process.as_raw_fd(), signal.number(), info, 0) })
}

/// Sends a signal to one thread of a process.
#[cfg(feature = "testing")]
pub(crate) fn signal_thread(process: Pid, thread: Pid, signal: Signal) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    done(unsafe { libc::syscall(libc::SYS_tgkill, process.raw(), thread.raw(), signal.number()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_s_own_signals_can_be_set_and_read() {
        let reserved = 32;
        let before = action(reserved, None).unwrap();
        let ignored = Action { handler: libc::SIG_IGN, ..Action::default() };
        action(reserved, Some(&ignored)).unwrap();
        assert_eq!(action(reserved, Some(&before)).unwrap().handler, libc::SIG_IGN);
    }
}

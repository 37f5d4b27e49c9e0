//! Waiting for descriptors, whatever signals come meanwhile: `poll` is never resumed by the kernel after a handler,
//! and fails even if it was not to wait at all.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Waits until one of the descriptors is ready for what it is polled for, or has an error or a hang-up; returns how
/// many are. None is when `deadline` has passed; without one it waits for good.
pub(crate) fn wait_for_any(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> nix::Result<usize> {
    loop {
        let limit = deadline.map_or(PollTimeout::NONE, |deadline| {
            // Rounded up, so that the last millisecond does not spin.
            let left = deadline.saturating_duration_since(Instant::now());
            let left = if left.is_zero() { left } else { left + Duration::from_micros(999) };
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        #[expect(clippy::disallowed_methods, reason = "an interrupted call is made again")]
        match poll(fds, limit) {
            Err(Errno::EINTR) => {}
            polled => return polled.map(|count| count as usize),
        }
    }
}

/// Waits for one descriptor as [`wait_for_any`] does, at most for `limit`; false when it is not ready.
pub(crate) fn ready_within(fd: impl AsFd, wanted: PollFlags, limit: Duration) -> nix::Result<bool> {
    let deadline = Instant::now() + limit;
    wait_for_any(&mut [PollFd::new(fd.as_fd(), wanted)], Some(deadline)).map(|count| count > 0)
}

/// Whether a descriptor is ready at this moment, as for [`ready_within`].
pub(crate) fn is_ready(fd: impl AsFd, wanted: PollFlags) -> bool {
    ready_within(fd, wanted, Duration::ZERO).unwrap_or(false)
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use super::*;
    use crate::sys;
    use crate::types::{Pid, Signal};

    #[test]
    fn signals_neither_end_a_wait_nor_make_a_ready_descriptor_look_unready() {
        signal_hook::flag::register(libc::SIGUSR2, Arc::default()).unwrap();
        let (read, mut write) = std::io::pipe().unwrap();
        let (tell, told) = mpsc::channel();
        let over = Arc::new(AtomicBool::new(false));
        let waits = {
            let over = over.clone();
            move || {
                tell.send(nix::unistd::gettid()).unwrap();
                let waited = ready_within(&read, PollFlags::POLLIN, Duration::from_mins(1));
                let mut looks = 0_u32;
                while !over.load(Ordering::Relaxed) {
                    assert!(is_ready(&read, PollFlags::POLLIN), "look {looks}");
                    looks += 1;
                }
                waited
            }
        };
        let waiting = std::thread::spawn(waits);
        let thread = Pid::new(told.recv().unwrap().as_raw() as u32).unwrap();
        let storm = || {
            for _ in 0..1000 {
                sys::signal_thread(Pid::own(), thread, Signal::USR2).unwrap();
                std::thread::yield_now();
            }
        };
        storm();
        write.write_all(b"x").unwrap();
        storm();
        over.store(true, Ordering::Relaxed);
        assert_eq!(waiting.join().unwrap(), Ok(true));
    }
}

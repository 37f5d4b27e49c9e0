//! Older kernels: what is done without a system call that they lack, and how a test takes one away.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// The environment variable with which a test of the runtime takes system calls away from it: their names, parted
/// by commas.
#[cfg(feature = "testing")]
pub const VARIABLE: &str = "SHIM_KERNEL_LACKS";

#[cfg(test)]
thread_local! {
    /// What the kernel lacks for the calling thread of a test.
    pub(crate) static LACKED: std::cell::Cell<&'static str> = const { std::cell::Cell::new("") };
}

/// Whether the kernel is to be taken for one that lacks a system call, or a request.
#[cfg(feature = "testing")]
pub(super) fn lacks(call: &str) -> bool {
    #[cfg(test)]
    if LACKED.get() == call {
        return true;
    }
    std::env::var(VARIABLE).is_ok_and(|calls| calls.split(',').any(|lacked| lacked == call))
}

/// Without the feature `testing` the kernel is what it is.
#[cfg(not(feature = "testing"))]
pub(super) fn lacks(_: &str) -> bool {
    false
}

/// Has every descriptor above standard error closed at the next exec, whoever opened it: the daemon's own may
/// have come along (contract 2.3). Linux 5.11 does it by one call; before, the descriptors are looked up.
pub(crate) fn close_all_on_exec() -> io::Result<()> {
    if !lacks("close_range") {
        // SAFETY: changes a flag of descriptors, and closes none.
        let done = unsafe { libc::syscall(libc::SYS_close_range, 3, i32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        if done == 0 {
            return Ok(());
        }
    }
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = |name: &OsStr| name.to_str()?.parse::<RawFd>().ok();
        if let Some(number) = number(&entry?.file_name()).filter(|number| *number > 2) {
            // SAFETY: as above. The descriptor of the folder that is read is among them, which does not matter.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// What a loop device is told about its image: `struct loop_info64` of `linux/loop.h`, of which only the flags are
/// of use here.
#[repr(C)]
struct LoopInfo {
    before_flags: [u8; 52],
    flags: u32,
    after_flags: [u8; 176],
}

/// Gives a loop device its image and its flags one after the other, as kernels before 5.8 want it. Whether it can be
/// written to follows from how `device` and `image` were opened.
pub(super) fn configure_loop_in_steps(
    device: &File,
    image: &File,
    flags: u32,
    direct: bool,
) -> io::Result<()> {
    const LOOP_SET_FD: libc::Ioctl = 0x4C00;
    const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
    const LOOP_SET_STATUS64: libc::Ioctl = 0x4C04;
    const LOOP_SET_DIRECT_IO: libc::Ioctl = 0x4C08;
    // The kernel may be busy with the pages of the device, for a moment.
    const TRIES: usize = 64;
    // SAFETY: this request takes a descriptor.
    done(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_FD, image.as_raw_fd()) })?;
    let info = LoopInfo { before_flags: [0; 52], flags, after_flags: [0; 176] };
    let set_flags = || {
        // SAFETY: the pointer is to a `loop_info64`, as this request wants.
        done(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_STATUS64, &raw const info) })
    };
    let is_busy =
        |set: &io::Result<()>| set.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EAGAIN));
    let mut set = set_flags();
    for _ in 0..TRIES {
        if !is_busy(&set) {
            break;
        }
        std::thread::yield_now();
        set = set_flags();
    }
    let set = set.and_then(|()| {
        // SAFETY: this request takes a number.
        if direct { done(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_DIRECT_IO, 1) }) } else { Ok(()) }
    });
    if set.is_err() {
        // SAFETY: this request takes no argument that matters.
        unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD, 0) };
    }
    set
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use std::os::fd::{FromRawFd, OwnedFd};

    #[test]
    fn descriptors_are_closed_on_exec_with_and_without_the_call_for_it() {
        for lacked in ["", "close_range"] {
            LACKED.set(lacked);
            // SAFETY: no pointers are passed; standard error is open.
            let copy = unsafe { libc::fcntl(2, libc::F_DUPFD, 3) };
            // SAFETY: the kernel has just made it, so it has no other owner.
            let copy = unsafe { OwnedFd::from_raw_fd(copy) };
            close_all_on_exec().unwrap();
            assert_eq!(fcntl(&copy, FcntlArg::F_GETFD).unwrap(), FdFlag::FD_CLOEXEC.bits(), "{lacked}");
        }
        LACKED.set("");
    }
}

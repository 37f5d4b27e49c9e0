//! Opening containerd's FIFOs. Its clients open their ends with blocking opens in the background; ours must
//! not hold up an RPC, so they are opened for both directions, which neither waits nor fails.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, Result, WithContext};

/// Opens the FIFO that a client named; `None` for a stream that is not connected.
pub(super) fn open(stream: &str, name: &str) -> Result<Option<OwnedFd>> {
    let path = name.strip_prefix("fifo://").unwrap_or(name);
    if path.is_empty() {
        return Ok(None);
    }
    let cannot = || format!("cannot use `{name}` for {stream}");
    if !path.starts_with('/') {
        return Err(Error::invalid_argument("this shim connects FIFOs only, by absolute path"))
            .context(cannot);
    }
    let file =
        File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).context(cannot)?;
    if !file.metadata().context(cannot)?.file_type().is_fifo() {
        return Err(Error::invalid_argument("it is not a FIFO")).context(cannot);
    }
    Ok(Some(file.into()))
}

/// Opens the same FIFO again, for reading alone: the end of input is then seen once the last client is gone.
pub(super) fn reopen_to_read(fifo: &OwnedFd) -> Result<OwnedFd> {
    Ok(File::options().read(true).custom_flags(libc::O_NONBLOCK).open(link_of(fifo))?.into())
}

/// Opens the same FIFO again, for writing alone: whether somebody reads can then be told.
pub(super) fn reopen_to_write(fifo: &OwnedFd) -> Result<OwnedFd> {
    Ok(File::options().write(true).custom_flags(libc::O_NONBLOCK).open(link_of(fifo))?.into())
}

/// A path that leads to the FIFO itself, whatever has become of its name.
pub(super) fn link_of(fifo: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fifo.as_raw_fd())
}

/// Whether somebody has a FIFO, of which we hold only writers, open for reading.
pub(super) fn has_reader(writer: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(writer.as_fd(), PollFlags::empty())];
    !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(count) if count > 0)
}

/// What a descriptor is ready for at this moment.
pub(super) fn ready_for(fd: &OwnedFd, wanted: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), wanted)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

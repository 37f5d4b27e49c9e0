//! Opening what lies at a path, FIFOs above all. containerd's clients open their ends with blocking opens in the
//! background; ours must not hold up an RPC, so they are opened for both directions, which neither waits nor
//! fails.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags};

use crate::error::{Result, WithContext};
use crate::spawn;
use crate::wait::{is_ready, wait_for_any};

/// Something with a path, open.
pub(super) enum Opened {
    /// For both directions.
    Fifo(OwnedFd),
    /// For reading alone, or for appending alone.
    Other(File),
}

/// Opens what a client reads from, as FIFO, or what it writes to.
pub(super) fn open(path: &Path, to_read: bool) -> io::Result<Opened> {
    if is_fifo(&path.metadata()?) {
        let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        if is_fifo(&file.metadata()?) {
            return Ok(Opened::Fifo(file.into()));
        }
    }
    File::options().read(to_read).append(!to_read).open(path).map(Opened::Other)
}

fn is_fifo(metadata: &std::fs::Metadata) -> bool {
    metadata.file_type().is_fifo()
}

/// A pipe: the end to read from, and the one to write to. One of them is ours, and never blocks; the other is
/// the container's.
pub(super) fn pipe(ours: End) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = spawn::pipe()?;
    match ours {
        End::Read => never_block(&read).with_context(|| "cannot set up a stream")?,
        End::Write => never_block(&write).with_context(|| "cannot set up a stream")?,
        End::Neither => {}
    }
    Ok((read, write))
}

/// An end of a pipe.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Read,
    Write,
    Neither,
}

/// Has reads and writes fail instead of wait.
pub(super) fn never_block(fd: &OwnedFd) -> io::Result<()> {
    let flags = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain)?;
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Opens the same FIFO again, for reading alone: the end of input is then seen once the last client is gone.
pub(super) fn reopen_to_read(fifo: &OwnedFd) -> Result<OwnedFd> {
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(link_of(fifo));
    opened.map(OwnedFd::from).with_context(|| "cannot open a FIFO again")
}

/// Opens the same FIFO again, for writing alone: whether somebody reads can then be told.
pub(super) fn reopen_to_write(fifo: &OwnedFd) -> Result<OwnedFd> {
    let opened = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(link_of(fifo));
    opened.map(OwnedFd::from).with_context(|| "cannot open a FIFO again")
}

/// Opens the same FIFO again, for both directions.
pub(super) fn reopen(fifo: &OwnedFd) -> Result<OwnedFd> {
    let opened = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(link_of(fifo));
    opened.map(OwnedFd::from).with_context(|| "cannot open a FIFO again")
}

/// A path that leads to the FIFO itself, whatever has become of its name.
pub(super) fn link_of(fifo: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fifo.as_raw_fd())
}

/// Whether somebody has a FIFO, of which we hold only writers, open for reading.
pub(super) fn has_reader(writer: &OwnedFd) -> bool {
    !ready_for(writer, PollFlags::empty())
}

/// The same pipe again, to read what nobody else reads any more; `None` if somebody does. A write that comes
/// meanwhile may fail.
pub(super) fn only_reader(pipe: OwnedFd) -> Result<Option<OwnedFd>> {
    let writer = reopen_to_write(&pipe)?;
    drop(pipe);
    if has_reader(&writer) { Ok(None) } else { reopen_to_read(&writer).map(Some) }
}

/// The same FIFO again, for reading, if somebody else reads it as well.
pub(super) fn keep_reading(fifo: OwnedFd) -> Result<Option<OwnedFd>> {
    let writer = reopen_to_write(&fifo)?;
    drop(fifo);
    if has_reader(&writer) { reopen_to_read(&writer).map(Some) } else { Ok(None) }
}

/// Whether nobody can write any more into a pipe that we read.
pub(super) fn has_ended(reader: &OwnedFd) -> bool {
    ready_for(reader, PollFlags::empty())
}

/// Whether a descriptor is ready for something at this moment; errors and hang-ups count as well.
pub(super) fn ready_for(fd: &OwnedFd, wanted: PollFlags) -> bool {
    is_ready(fd, wanted)
}

/// Whether there is something to be read; a hang-up is nothing.
pub(super) fn has_input(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let _ = wait_for_any(&mut fds, Some(Instant::now()));
    fds[0].revents().is_some_and(|seen| seen.contains(PollFlags::POLLIN))
}

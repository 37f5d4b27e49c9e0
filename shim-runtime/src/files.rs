//! Files that others write: those of a bundle, in whose place anything may stand, and those of the kernel, which
//! hold bytes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Enough for a file that holds an address, a number, a name or a few of them.
pub(crate) const SMALL: u64 = 64 << 10;

/// Reads a regular file of at most `limit` bytes. Nothing that may stand in its place is waited for: opening a FIFO
/// would last until somebody writes, and reading it until that one has done.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path)?.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::other(format!("it has more than {limit} bytes")));
    }
    Ok(content)
}

/// Opens a regular file to be read; see [`read`].
pub(crate) fn open(path: &Path) -> io::Result<File> {
    regular(OpenOptions::new().read(true), path)
}

/// Makes a file with these permissions, or empties the one that is there, and opens it to be written. Nothing that
/// may stand in its place is waited for.
pub(crate) fn create(path: &Path, mode: u32) -> io::Result<File> {
    regular(OpenOptions::new().write(true).create(true).truncate(true).mode(mode), path)
}

fn regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

/// The text of one of the kernel's files, below `/proc` above all. A process chooses its own name, and a mount may
/// have any: what is no text in such a name is replaced, and the rest stays what it is.
pub(crate) fn kernel_text(path: impl AsRef<Path>) -> io::Result<String> {
    let bytes = std::fs::read(path)?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_fifo_a_folder_and_a_file_that_is_too_long_are_refused_at_once() {
        let dir = std::env::temp_dir().join(format!("shim-files-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let (fifo, file) = (dir.join("fifo"), dir.join("file"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        create(&file, 0o600).unwrap().write_all(b"four").unwrap();
        let refusal = |path, limit| read(path, limit).unwrap_err().to_string();
        assert_eq!(refusal(&fifo, 9), "it is not a regular file");
        assert!(create(&fifo, 0o600).is_err());
        // With somebody at the other end too.
        let _other = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        assert_eq!(refusal(&fifo, 9), "it is not a regular file");
        assert_eq!(create(&fifo, 0o600).unwrap_err().to_string(), "it is not a regular file");
        assert!(read(&dir, 9).is_err());
        assert_eq!(refusal(&file, 3), "it has more than 3 bytes");
        assert_eq!(read(&file, 4).unwrap(), b"four");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

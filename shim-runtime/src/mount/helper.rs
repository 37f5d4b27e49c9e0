//! File systems that a program mounts: those in user space (contract 11.1).

use std::path::Path;

use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::spawn::{Command, Supervisor};

/// What a type begins with, and who mounts it.
const HELPERS: [(&str, &str); 2] = [("fuse3.", "mount.fuse3"), ("fuse.", "mount.fuse")];

/// Mounts file systems of one type.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Helper<'a> {
    program: &'static str,
    kind: &'a str,
}

/// The helper for a type; most need none.
pub(super) fn of(kind: &str) -> Option<Helper<'_>> {
    HELPERS.iter().find_map(|(prefix, program)| Some(Helper { program, kind: kind.strip_prefix(prefix)? }))
}

impl Helper<'_> {
    /// Runs it to its end; the server that it leaves behind ends with the mount.
    pub(super) fn mount<'w>(
        &self,
        source: &str,
        target: &Path,
        words: impl Iterator<Item = &'w String>,
        supervisor: Option<&Supervisor>,
    ) -> Result<()> {
        let program = self.program;
        let supervisor = supervisor
            .ok_or_else(|| Error::failed_precondition(format!("`{program}` cannot be run here")))?;
        let mut command = Command::new(program);
        command.arg(source).arg(target);
        for word in words {
            command.arg("-o").arg(word);
        }
        command.arg("-t").arg(self.kind);
        let output = supervisor.run(&mut command, &Caller::current())?;
        if output.exit.status == 0 {
            return Ok(());
        }
        let (status, said) = (output.exit.status, String::from_utf8_lossy(&output.stderr));
        Err(Error::other(format!("`{program}` failed with status {status}: {}", said.trim_ascii())))
    }
}

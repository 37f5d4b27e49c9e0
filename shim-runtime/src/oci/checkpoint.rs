//! Checkpoint and restore by CRIU, through the engine (contract 11.4).

use std::path::{Path, PathBuf};

use containerd_shim_protos::shim::oci::CheckpointOptions;
use protobuf::{Message, UnknownValueRef};

use super::engine::Cli;
use super::options::Options;
use crate::api::{Any, CheckpointTaskRequest};
use crate::bundle::Bundle;
use crate::error::{Error, Result, WithContext};
use crate::spawn::Command;

/// `CheckpointOptions.parent_path`, since containerd 2.4.
const PARENT_PATH: u32 = 10;
/// Where CRIU works in the bundle unless the options say so: to restore, and to write an image.
const WORK: &str = "work";
const CHECKPOINT_WORK: &str = "work/criu-work";
/// CRIU's own log of a checkpoint, in its work folder.
const DUMP_LOG: &str = "dump.log";
/// Where that log is kept after a checkpoint that failed.
const KEPT_LOG: &str = "criu-dump.log";

/// Writes an image of a running container. The container goes on, unless the options have it end.
pub(super) fn checkpoint(cli: &Cli, bundle: &Bundle, request: &CheckpointTaskRequest) -> Result<()> {
    let options = options(request.options.as_ref())?;
    let image = Some(options.image_path.as_str()).filter(|path| !path.is_empty()).unwrap_or(&request.path);
    let given = Some(options.work_path.as_str()).filter(|path| !path.is_empty());
    // A path that is not absolute begins in the bundle, where the engine runs.
    let work = bundle.path().join(given.unwrap_or(CHECKPOINT_WORK));
    let mut command = cli.command("checkpoint");
    command.arg("--image-path").arg(image).arg("--work-path").arg(&work);
    flags(&mut command, &options);
    let written = cli.run("checkpoint", command);
    if written.is_err() {
        // Without it nobody could tell why; the folder goes.
        let _ = std::fs::copy(work.join(DUMP_LOG), bundle.path().join(KEPT_LOG));
    }
    if given.is_none() {
        let _ = std::fs::remove_dir_all(&work);
    }
    written.map(drop)
}

fn options(any: Option<&Any>) -> Result<CheckpointOptions> {
    CheckpointOptions::parse_from_bytes(any.map_or(&[], |any| &any.value))
        .map_err(Error::invalid_argument_from)
        .with_context(|| "cannot understand the options of the checkpoint")
}

fn flags(command: &mut Command, options: &CheckpointOptions) {
    let switches = [
        (!options.exit, "--leave-running"),
        (options.open_tcp, "--tcp-established"),
        (options.external_unix_sockets, "--ext-unix-sk"),
        (options.terminal, "--shell-job"),
        (options.file_locks, "--file-locks"),
    ];
    command.args(switches.into_iter().filter_map(|(wanted, flag)| wanted.then_some(flag)));
    for namespace in &options.empty_namespaces {
        command.arg("--empty-ns").arg(namespace);
    }
    if let Some(parent) = parent(options) {
        command.arg("--parent-path").arg(parent);
    }
}

/// The image that this one is to hold the differences to.
fn parent(options: &CheckpointOptions) -> Option<&str> {
    let UnknownValueRef::LengthDelimited(path) = options.special_fields.unknown_fields().get(PARENT_PATH)?
    else {
        return None;
    };
    std::str::from_utf8(path).ok().filter(|path| !path.is_empty())
}

/// A container that exists as an image only, until it is started.
#[derive(Debug)]
pub(super) struct Image {
    path: PathBuf,
    parent: String,
    work: PathBuf,
}

impl Image {
    pub(super) fn new(path: &Path, parent: &str, options: &Options, bundle: &Bundle) -> Self {
        let given = Some(options.criu_work_path.as_str()).filter(|path| !path.is_empty());
        Self {
            path: path.to_owned(),
            parent: parent.to_owned(),
            work: given.map_or_else(|| bundle.path().join(WORK), PathBuf::from),
        }
    }

    /// The command that brings it back to life, but for stdio.
    pub(super) fn restore(&self, cli: &Cli) -> Command {
        let mut command = cli.command("restore");
        command.arg("--image-path").arg(&self.path).arg("--work-path").arg(&self.work);
        if !self.parent.is_empty() {
            command.arg("--parent-path").arg(&self.parent);
        }
        command.arg("--detach");
        command
    }
}

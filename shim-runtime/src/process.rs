//! A ready-made container: the bundle's `process.args`, straight on the host, inside the bundle's root file
//! system where the shim may change into it.

use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::api::{Container, Create, Exec, Gated, Started, Target};
use crate::bundle::{Bundle, ProcessSpec, Spec};
use crate::error::{Error, Result, WithContext};
use crate::spawn::Command;
use crate::stdio::Stdio;
use crate::types::{Pid, Signal};

/// A process on the host, and whatever it starts in its process group.
///
/// As root, with a root file system in the bundle, it runs inside it (`chroot`), under the user and with the
/// capabilities of the specification; otherwise where and as whom the shim runs. Its group dies with it.
///
/// Of the specification's `process`, and of an exec's, these are applied: `args`, `env`, `cwd`, `terminal`,
/// `consoleSize`, `user` and `capabilities` (as root), `noNewPrivileges`, `rlimits`, `oomScoreAdj`, `apparmorProfile`
/// and `selinuxLabel`. What is not named stays as the shim has it. A limit, a score or a label that cannot be applied
/// fails the creation, or the start of the exec. Not applied are `ioPriority`, `scheduler` and `execCPUAffinity`, and
/// whatever does not belong to a process: namespaces, cgroups and their limits, `mounts`, seccomp, devices, hooks,
/// `sysctl`, `hostname`, masked and read-only paths. A container that needs those is one for an OCI runtime.
///
/// ```
/// use shim_runtime::prelude::*;
/// # struct Host;
/// impl Shim for Host {
///     type Container = HostProcess;
///     fn new(_: &Context) -> Result<Self> { Ok(Host) }
///     fn create(&self, req: &mut Create) -> Result<HostProcess> { HostProcess::create(req) }
/// }
/// ```
pub struct HostProcess {
    gate: Gated,
    root: Option<PathBuf>,
}

impl HostProcess {
    /// Mounts the root file system, reads `config.json`, and starts the process up to the point where its
    /// program would run.
    ///
    /// # Errors
    /// Names what is missing or broken, a program that cannot be executed above all.
    pub fn create(req: &mut Create) -> Result<Self> {
        req.mount_rootfs()?;
        let spec = req.bundle().spec()?;
        let root = change_root(req.bundle(), &spec)?;
        let process =
            spec.process.ok_or_else(|| Error::invalid_argument("`config.json` has no `process`"))?;
        let mut command = command(&process, root.as_deref())?;
        req.stdio()?.apply(&mut command)?;
        let gate = req.spawn_gated(command)?;
        Ok(Self { gate, root })
    }
}

impl Container for HostProcess {
    fn start(&self, _: Stdio) -> Result<Started> {
        self.gate.open()?;
        Ok(Started::created())
    }

    fn pid(&self) -> Option<Pid> {
        Some(self.gate.pid())
    }

    fn exec(&self, req: &Exec, io: Stdio) -> Result<Started> {
        let mut command = command(&req.process()?, self.root.as_deref())?;
        io.apply(&mut command)?;
        Started::spawn(req.context(), command)
    }

    fn kill(&self, to: &Target<'_>, signal: Signal) -> Result<()> {
        to.signal(signal)
    }
}

/// The root to change into: the specification's, where there is one and the shim is root.
fn change_root(bundle: &Bundle, spec: &Spec) -> Result<Option<PathBuf>> {
    let Some(root) = spec.root.as_ref().filter(|_| geteuid().is_root()) else { return Ok(None) };
    let path = bundle.path().join(&root.path);
    let mut entries = match path.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot use the root `{}`", path.display())),
    };
    // The folder is there in every bundle; an empty one is no root file system.
    Ok(entries.next().is_some().then_some(path))
}

fn command(spec: &ProcessSpec, root: Option<&Path>) -> Result<Command> {
    let mut command = spec.command()?;
    if let Some(root) = root {
        command.root(root);
    }
    Ok(command)
}

//! Where the server runs and what the kernel may do to it: its cgroup, its OOM score, its cores (contract 9.2).

use std::io::ErrorKind;

use containerd_shim_protos::shim::oci::Options;
use nix::unistd::{geteuid, getppid};
use protobuf::Message;

use crate::api::Any;
use crate::bootstrap::type_name;
use crate::cgroup;
use crate::error::{Result, WithContext};
use crate::files;
use crate::sys;
use crate::types::Pid;

/// The kernel's upper limit of an OOM score.
const MAX_OOM_SCORE: i32 = 1000;

/// Core scheduling, if containerd asks for it: inherited by the server, so to be called before it is spawned.
pub(super) fn schedule_cores() -> Result<()> {
    if std::env::var_os("SCHED_CORE").is_some_and(|value| !value.is_empty()) {
        sys::schedule_core_apart().with_context(|| "cannot schedule the shim on cores of its own")?;
    }
    Ok(())
}

/// Places the server before containerd hears of it.
pub(super) fn place(server: Pid, options: Option<&Any>) -> Result<()> {
    if let Some(cgroup) = shim_cgroup(options) {
        cgroup::join(&cgroup, server)?;
    }
    set_oom_score(server)
}

/// The cgroup that the options of runc's shim name for the shim itself. Options of another type have none, and
/// whether they can be understood is not asked here.
fn shim_cgroup(options: Option<&Any>) -> Option<String> {
    let options = options.filter(|any| type_name(&any.type_url) == "containerd.runc.v1.Options")?;
    let options = Options::parse_from_bytes(&options.value).ok()?;
    Some(options.shim_cgroup).filter(|cgroup| !cgroup.is_empty())
}

/// One more than containerd's, so that the kernel kills the shim rather than the daemon, but a container first.
fn set_oom_score(server: Pid) -> Result<()> {
    // The daemon is the parent of `start`; it may be outside of our pid namespace.
    let Ok(daemon) = files::kernel_text(format!("/proc/{}/oom_score_adj", getppid())) else {
        return Ok(());
    };
    let Ok(daemon) = daemon.trim().parse::<i32>() else { return Ok(()) };
    let score = (daemon + 1).min(MAX_OOM_SCORE);
    match std::fs::write(format!("/proc/{server}/oom_score_adj"), score.to_string()) {
        // Without root, or with a root that is none on the host, this is not ours to change.
        Err(error)
            if error.kind() == ErrorKind::PermissionDenied
                && (!geteuid().is_root() || in_user_namespace()) =>
        {
            Ok(())
        }
        written => written.with_context(|| "cannot set the OOM score of the shim's server"),
    }
}

/// Whether root here is somebody else on the host: the map of ids is then not the whole identity.
fn in_user_namespace() -> bool {
    let map = files::kernel_text("/proc/self/uid_map").unwrap_or_default();
    map.split_ascii_whitespace().ne(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_options_of_runc_name_a_cgroup() {
        let value = Options { shim_cgroup: "/shims".into(), ..Options::default() }.write_to_bytes().unwrap();
        let any = |type_url: &str| Any { type_url: type_url.into(), value: value.clone(), ..Any::default() };
        assert_eq!(shim_cgroup(Some(&any("containerd.runc.v1.Options"))).as_deref(), Some("/shims"));
        assert_eq!(shim_cgroup(Some(&any("x.y/containerd.runc.v1.Options"))).as_deref(), Some("/shims"));
        assert_eq!(shim_cgroup(Some(&any("runtimeoptions.v1.Options"))), None);
        assert_eq!(shim_cgroup(None), None);
    }
}

//! What a process may do and use besides what its ids say: capabilities, resource limits, the out-of-memory score, and
//! the labels of security modules. A specification names them; here they become what the child applies to itself
//! between fork and exec, and what cannot be applied is refused.

use std::ffi::CString;
use std::fs;

use nix::unistd::geteuid;

use super::{CapabilitiesSpec, ProcessSpec, RlimitSpec};
use crate::error::{Error, Result};
use crate::sys::{Capabilities, Confinement};

/// The capabilities, each at the place that is its number.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The last of these.
const CHECKPOINT_RESTORE: u32 = 40;

/// The resources that can be limited, each at the place that is its number.
const RESOURCES: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// What a specification says of it.
///
/// # Errors
/// `InvalidArgument` for a limit that there is not, or that is named twice; `FailedPrecondition` for the label of a
/// security module that is not enabled, for nobody would enforce it.
pub(crate) fn of(spec: &ProcessSpec) -> Result<Confinement> {
    // Without root the process has none, as it has no other user.
    let capabilities = spec.capabilities.as_ref().filter(|_| geteuid().is_root());
    Ok(Confinement {
        // One that is not named stays the shim's, as the specification wants it and runc does.
        oom_score: spec.oom_score_adj.map(|score| text(score.to_string())).transpose()?,
        limits: limits(&spec.rlimits)?,
        apparmor: apparmor(&spec.apparmor_profile)?,
        selinux: selinux(&spec.selinux_label)?,
        capabilities: capabilities.map(|named| sets(named, last_capability())),
    })
}

fn text(text: String) -> Result<CString> {
    let shown = format!("{text:?} contains a NUL byte");
    CString::new(text).map_err(|_| Error::invalid_argument(shown))
}

/// Resources by their numbers, with what a specification limits them to.
fn limits(specs: &[RlimitSpec]) -> Result<Vec<(u32, [u64; 2])>> {
    let mut limits: Vec<(u32, [u64; 2])> = Vec::with_capacity(specs.len());
    for spec in specs {
        let unknown = || Error::invalid_argument(format!("there is no limit `{}`", spec.kind));
        let resource = number(&spec.kind, "RLIMIT_", &RESOURCES).ok_or_else(unknown)?;
        if limits.iter().any(|(limited, _)| *limited == resource) {
            return Err(Error::invalid_argument(format!("the limit `{}` is there twice", spec.kind)));
        }
        limits.push((resource, [spec.soft, spec.hard]));
    }
    Ok(limits)
}

fn apparmor(profile: &str) -> Result<Option<CString>> {
    let is_enabled =
        || fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|it| it.starts_with(b"Y"));
    match profile {
        "" => Ok(None),
        _ if is_enabled() => text(format!("exec {profile}")).map(Some),
        "unconfined" => Ok(None),
        _ => Err(not_enabled("AppArmor profile", profile, "AppArmor")),
    }
}

fn selinux(label: &str) -> Result<Option<CString>> {
    // The kernel knows its file system only where it was enabled at boot.
    let is_enabled = || fs::read_to_string("/proc/filesystems").is_ok_and(|all| all.contains("selinuxfs"));
    match label {
        "" => Ok(None),
        _ if is_enabled() => text(label.to_owned()).map(Some),
        _ => Err(not_enabled("SELinux label", label, "SELinux")),
    }
}

fn not_enabled(what: &str, label: &str, module: &str) -> Error {
    Error::failed_precondition(format!(
        "cannot apply the {what} `{label}`: {module} is not enabled on this host"
    ))
}

/// The highest capability that the kernel knows.
fn last_capability() -> u32 {
    let told = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    // There is room for 64 of them.
    told.trim().parse().map_or(CHECKPOINT_RESTORE, |last: u32| last.min(63))
}

/// Those that nobody knows are left out, as runc does: clients name what newer kernels have.
fn sets(named: &CapabilitiesSpec, last: u32) -> Capabilities {
    let set = |names: &[String]| {
        let mut bits = 0_u64;
        for name in names {
            match number(name, "CAP_", &CAPABILITIES).filter(|number| *number <= last) {
                Some(number) => bits |= 1 << number,
                None => log::warn!("there is no capability `{name}`; it is left out"),
            }
        }
        bits
    };
    let (permitted, inheritable) = (set(&named.permitted), set(&named.inheritable));
    Capabilities {
        bounding: set(&named.bounding),
        effective: set(&named.effective),
        permitted,
        inheritable,
        // The kernel takes no others.
        ambient: set(&named.ambient) & permitted & inheritable,
        last,
    }
}

/// The number of a name that begins in this way and goes on as one of these.
fn number(name: &str, prefix: &str, names: &[&str]) -> Option<u32> {
    let bare = name.strip_prefix(prefix)?;
    names.iter().position(|known| *known == bare).and_then(|number| u32::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn capabilities_become_bits_and_those_that_nobody_knows_are_left_out() {
        let named = CapabilitiesSpec {
            bounding: names(&["CAP_CHOWN", "CAP_NO_SUCH", "KILL"]),
            effective: names(&["CAP_DAC_OVERRIDE"]),
            permitted: names(&["CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_CHECKPOINT_RESTORE"]),
            inheritable: names(&["CAP_KILL"]),
            ambient: names(&["CAP_KILL", "CAP_DAC_OVERRIDE"]),
        };
        // A kernel without the newest one.
        let sets = sets(&named, 39);
        assert_eq!((sets.bounding, sets.effective, sets.permitted), (1, 1 << 1, 1 << 1 | 1 << 5));
        // What cannot be ambient, because it is not inheritable, is not.
        assert_eq!((sets.inheritable, sets.ambient), (1 << 5, 1 << 5));
    }

    #[test]
    fn limits_are_told_by_name_and_each_once() {
        let spec = |kind: &str| RlimitSpec { kind: kind.to_owned(), soft: 1, hard: 2 };
        let known = limits(&[spec("RLIMIT_NOFILE"), spec("RLIMIT_CORE")]).unwrap();
        assert_eq!(known, [(7, [1, 2]), (4, [1, 2])]);
        for wrong in [&[spec("RLIMIT_TEA")][..], &[spec("RLIMIT_CPU"), spec("RLIMIT_CPU")][..]] {
            let error = limits(wrong).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(error.to_string().contains(&format!("`{}`", wrong[0].kind)), "{error}");
        }
    }

    #[test]
    fn a_label_that_nobody_would_enforce_is_refused() {
        for (label, error) in [("p", apparmor("p")), ("l", selinux("l"))] {
            // A host may have one of the two.
            if let Err(error) = error {
                assert_eq!(error.code(), Code::FailedPrecondition);
                assert!(error.to_string().contains(&format!("`{label}`")), "{error}");
            }
        }
        assert!(apparmor("").unwrap().is_none() && selinux("").unwrap().is_none());
    }
}

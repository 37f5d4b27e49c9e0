//! What a bundle's config.json says: a small spec that shims which run a process need, and a full one that
//! runc takes. And a root file system made of busybox, for tests without an image.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{getegid, geteuid};
use serde_json::{Map, Value, json};

use super::failure::{Doing, Failure, Result};

/// What is run, and where.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The command.
    pub args: Vec<String>,
    /// Its environment, as `NAME=value`.
    pub env: Vec<String>,
    /// Its working directory.
    pub cwd: String,
    /// User and group.
    pub user: (u32, u32),
    /// Whether it has a terminal.
    pub terminal: bool,
    /// The root file system; without one the spec has no `root`.
    pub rootfs: Option<PathBuf>,
    /// Annotations.
    pub annotations: Vec<(String, String)>,
    /// The cgroup, for a full spec as root.
    pub cgroup: String,
    /// The `linux` object of a small spec; null for none.
    pub linux: Value,
}

impl Spec {
    /// `process` and, where there is one, `root`: enough for a shim that needs no OCI runtime.
    pub fn small(&self) -> Value {
        let mut config = json!({ "ociVersion": "1.0.2", "process": self.process() });
        config["annotations"] = self
            .annotations
            .iter()
            .map(|(key, value)| (key.clone(), json!(value)))
            .collect::<Map<_, _>>()
            .into();
        if let Some(rootfs) = &self.rootfs {
            config["root"] = json!({ "path": rootfs });
        }
        if !self.linux.is_null() {
            config["linux"] = self.linux.clone();
        }
        config
    }

    /// Everything runc needs; without root a user namespace and no cgroup.
    pub fn full(&self) -> Value {
        const CAPABILITIES: [&str; 8] = [
            "CAP_AUDIT_WRITE",
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_KILL",
            "CAP_NET_BIND_SERVICE",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_SYS_CHROOT",
        ];
        let mut config = self.small();
        config["hostname"] = json!("shim");
        config["mounts"] = mounts();
        config["process"]["noNewPrivileges"] = json!(true);
        config["process"]["capabilities"] =
            json!({ "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES });
        let mut namespaces = vec!["pid", "ipc", "uts", "mount"];
        let mut linux = json!({});
        if geteuid().is_root() {
            linux["cgroupsPath"] = json!(format!("/{}", self.cgroup));
        } else {
            namespaces.push("user");
            linux["uidMappings"] = json!([{ "containerID": 0, "hostID": geteuid().as_raw(), "size": 1 }]);
            linux["gidMappings"] = json!([{ "containerID": 0, "hostID": getegid().as_raw(), "size": 1 }]);
        }
        linux["namespaces"] = namespaces.iter().map(|kind| json!({ "type": kind })).collect();
        config["linux"] = linux;
        config
    }

    fn process(&self) -> Value {
        json!({
            "terminal": self.terminal,
            "user": { "uid": self.user.0, "gid": self.user.1 },
            "args": self.args,
            "env": self.env,
            "cwd": self.cwd,
        })
    }

    /// The JSON of a `Process`, as Exec carries it ([contract 6.1](shim_runtime::contract#s6-1)).
    pub fn exec(&self) -> Vec<u8> {
        self.process().to_string().into_bytes()
    }
}

fn mounts() -> Value {
    json!([
        { "destination": "/proc", "type": "proc", "source": "proc" },
        { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
          "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
        { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
          "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
        { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
          "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
    ])
}

/// Makes a root file system in `dir` from a static busybox: every applet it has, and an empty skeleton. As root
/// it gets the two devices that programs expect, for a shim that mounts none.
pub fn busybox_rootfs(busybox: &Path, dir: &Path) -> Result<()> {
    for name in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        fs::create_dir_all(dir.join(name)).doing(|| format!("cannot make `{}`", dir.join(name).display()))?;
    }
    for (name, minor) in [("null", 3), ("zero", 5)] {
        let _ = mknod(
            &dir.join("dev").join(name),
            SFlag::S_IFCHR,
            Mode::from_bits_truncate(0o666),
            makedev(1, minor),
        );
    }
    fs::copy(busybox, dir.join("bin/busybox")).doing(|| format!("cannot copy `{}`", busybox.display()))?;
    fs::write(dir.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    let list = Command::new(busybox)
        .arg("--list")
        .output()
        .doing(|| format!("cannot run `{}`", busybox.display()))?;
    if !list.status.success() {
        return Err(Failure::setup(format!("`{} --list` failed; is it a busybox?", busybox.display())));
    }
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", dir.join("bin").join(applet)).doing(|| format!("cannot link `{applet}`"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            args: vec!["sh".into()],
            env: vec!["A=b".into()],
            cwd: "/".into(),
            user: (1, 2),
            terminal: false,
            rootfs: None,
            annotations: vec![("k".into(), "v".into())],
            cgroup: "unique".into(),
            linux: Value::Null,
        }
    }

    #[test]
    fn the_small_spec_says_what_was_asked_for_and_no_more() {
        let config = spec().small();
        assert_eq!(config["process"]["args"], json!(["sh"]));
        assert_eq!(config["process"]["user"], json!({ "uid": 1, "gid": 2 }));
        assert_eq!(config["annotations"], json!({ "k": "v" }));
        assert!(config.get("root").is_none() && config.get("linux").is_none());
    }

    #[test]
    fn the_full_spec_needs_no_more_rights_than_its_user_has() {
        let linux = &spec().full()["linux"];
        let user = json!({ "type": "user" });
        let has_user_namespace = linux["namespaces"].as_array().unwrap().contains(&user);
        assert_ne!(has_user_namespace, linux.get("cgroupsPath").is_some());
    }
}

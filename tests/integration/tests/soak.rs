//! The short soaks: no call hangs or fails, nothing is left behind, and the memory of a long-lived shim is flat.
//! `shimctl soak --containers 100000` is the long one.

#![expect(clippy::expect_used, reason = "a step that fails is a test that fails")]

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use integration::built;

/// Soaks the shim of an example.
fn soak(binary: &str, flags: &[&str]) {
    let output = Command::new(built::shimctl())
        .arg("soak")
        .args(flags)
        .arg(built::example(binary))
        .stdin(Stdio::null())
        .output()
        .expect("run shimctl");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    println!("{}", text(&output.stdout));
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Whether the test can run; with `SHIM_TESTS=all` it must.
fn has_runc() -> bool {
    let runc = Command::new("runc").arg("--version").output().is_ok();
    let possible = runc && nix::unistd::geteuid().is_root() && Path::new("/bin/busybox").exists();
    let needed = env::var_os("SHIM_TESTS").is_some_and(|tests| tests == "all");
    assert!(possible || !needed, "root, runc and a static busybox are needed");
    if !possible {
        println!("left out: soak of `runc` needs root, runc and a static busybox");
    }
    possible
}

#[test]
fn of_three_hundred_processes_of_the_host_and_as_many_execs_nothing_is_left() {
    soak("containerd-shim-host-v1", &[]);
}

#[test]
fn of_three_hundred_containers_of_runc_and_as_many_execs_nothing_is_left() {
    if has_runc() {
        soak("containerd-shim-runc-v2", &["--runc-spec"]);
    }
}

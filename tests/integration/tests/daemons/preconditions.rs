//! What the tests need from the machine. With `SHIM_TESTS=all` a test that lacks something fails;
//! otherwise it leaves itself out and says so, in a form that `tests/run` collects.

use std::env;
use std::path::PathBuf;
use std::thread;

use crate::daemon::Release;
use crate::image;

/// What is missing to run `release`, if anything.
pub(crate) fn missing(release: Release) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".into());
    }
    let needs = [
        (release.binary("containerd"), format!("containerd {}", release.line())),
        (PathBuf::from(image::BUSYBOX), "a static busybox".into()),
    ];
    let (_, what) = needs.into_iter().find(|(file, _)| !file.exists())?;
    Some(format!("it needs {what}; `tests/deps` brings it on Debian"))
}

/// Ends the calling test without an outcome, or fails it where nothing may be left out.
pub(crate) fn leave_out(reason: &str) {
    let current = thread::current();
    let name = current.name().unwrap_or("a test");
    assert!(env::var_os("SHIM_TESTS").is_none_or(|tests| tests != "all"), "{name} cannot run: {reason}");
    println!("left out: {name}: {reason}");
}

//! What `shimctl bench` measures under a real daemon.

use std::process::{Command, Stdio};

use integration::built;

use crate::daemon::Release;
use crate::preconditions::{leave_out, missing};
use crate::shim::{self, Example};

/// Nothing but one round of what needs the daemon, as far as it can be told.
const FLAGS: [&str; 13] = [
    "bench",
    "--rounds",
    "1",
    "--calls",
    "1",
    "--idle",
    "0",
    "--many",
    "0",
    "--bytes",
    "0",
    "--attached",
    "0",
];

#[test]
fn runs_and_execs_are_measured_one_by_one_and_many_at_once() {
    if let Some(reason) = missing(Release::V1_6) {
        return leave_out(&reason);
    }
    let containerd = Release::V1_6.binary("containerd");
    let output = Command::new(built::shimctl())
        .args(FLAGS)
        .arg("--containerd")
        .arg(containerd.parent().expect("a program is in a folder"))
        .arg(shim::binary(Release::V1_6, Example::Host))
        .stdin(Stdio::null())
        .output()
        .expect("run shimctl");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    for case in ["ctr run --rm true", "ctr task exec true", "20 runs at once", "50 runs at once"] {
        let line = stdout.lines().find(|line| line.starts_with(&format!("{case}, runc, ms")));
        assert!(line.is_some_and(|line| !line.contains("fails here")), "{case}: {stdout}\n{stderr}");
    }
}

//! Which shim works under which containerd: what the README says of the example `runc` and of containerd's own
//! shims is what happens.

use crate::daemon::{Daemon, Release};
use crate::preconditions;
use crate::shim::{self, Example};

const RELEASES: [Release; 3] = [Release::V1_6, Release::V1_7, Release::V2];

/// The cells of the README's row that begins with `name`.
fn row(name: &str) -> Vec<&'static str> {
    let readme = include_str!("../../../../README.md");
    let found = readme.lines().find_map(|line| line.strip_prefix(&format!("| {name} | ")));
    found.expect("the README has the row").trim_end_matches(" |").split(" | ").collect()
}

#[test]
fn the_matrix_of_the_readme_is_what_happens() {
    if let Some(reason) = RELEASES.into_iter().find_map(preconditions::missing) {
        return preconditions::leave_out(&reason);
    }
    let go = |release: Release| release.binary("containerd-shim-runc-v2");
    let shims = [
        ("`runc`, this one binary", shim::binary(Release::V2, Example::Runc)),
        ("Go 1.6", go(Release::V1_6)),
        ("Go 1.7", go(Release::V1_7)),
        ("Go 2.1", go(Release::V2)),
    ];
    for (column, release) in RELEASES.into_iter().enumerate() {
        let daemon = Daemon::start(release, Example::Runc);
        for (number, (name, binary)) in shims.iter().enumerate() {
            let (id, runtime) = (format!("c{number}"), binary.to_string_lossy());
            let output = daemon.ctr(&daemon.run_args(&["--rm", "--runtime", &runtime], &id, &["echo", "hi"]));
            let seen = if output.status == Some(0) && output.stdout == "hi\n" { "yes" } else { "no" };
            assert_eq!(seen, row(name)[column], "{name} under {}: {output:?}", release.line());
        }
        // What a shim leaves that does not work goes with the daemon.
    }
}

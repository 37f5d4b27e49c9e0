//! Two daemons that share a namespace, an id, and the folder in which the OCI runtime keeps its state: a container of
//! the one must not be taken for the other's.

use crate::behaviours::SLEEP;
use crate::daemon::{Daemon, Release, Setup};
use crate::preconditions;
use crate::process::{Process, until};
use crate::shim::Example;

const SHARED: Setup = Setup { namespace: Some("shim-two-daemons"), ..crate::daemon::PLAIN };

fn started(release: Release) -> Daemon {
    let mut daemon = Daemon::start_with(release, Example::Runc, &SHARED);
    // The engine makes cgroups below one of the namespace's name.
    daemon.cgroup.clone_from(&daemon.namespace);
    daemon
}

#[test]
fn a_container_that_one_daemon_refuses_stays_the_other_s() {
    if let Some(reason) = [Release::V1_7, Release::V2].into_iter().find_map(preconditions::missing) {
        return preconditions::leave_out(&reason);
    }
    let (owner, other) = (started(Release::V1_7), started(Release::V2));
    let pid = owner.run_detached("c", SLEEP);
    let init = Process::open(pid).expect("the container runs");
    let refused = other.ctr(&other.run_args(&["--detach", "--null-io"], "c", SLEEP));
    assert!(refused.status != Some(0) && refused.stderr.contains("OCI runtime create failed"), "{refused:?}");
    // Its `delete` has run once the bundle is gone.
    until("the end of what was refused", || {
        let bundles = std::fs::read_dir(other.bundles()).into_iter().flatten();
        (other.shims().is_empty() && bundles.count() == 0).then_some(())
    });
    assert!(!init.has_ended(), "a stranger's container was killed");
    assert_eq!(owner.status("c"), "RUNNING");
    owner.kill_and_remove("c");
    owner.finish();
    other.finish();
}

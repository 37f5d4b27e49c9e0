//! What Kubernetes sees of the example `runc`: pods and containers over the interface of containerd's CRI
//! plugin, with the network of the host. The plugin finds the shim as `containerd-shim-runc-v2` in `PATH`, in
//! the place of containerd's own. That one (`SHIM_BINARY=containerd-shim-runc-v2`) passes all but these: it leaves
//! its socket behind when it is killed, in 2.1 the containers too; from 1.7 on it loses an exit that happens while
//! containerd is away; and in 2.1 it stays for good when the pod's own container is the first to go.

mod client;
mod containers;
mod crashes;
mod execs;
mod logs;
mod node;
mod pod;
mod pods;

use node::Node;

use crate::daemon::Release;
use crate::preconditions;

/// Makes each behaviour a test of its own under the given release.
macro_rules! tests {
    ($release:expr) => {
        tests! { $release, pods:
            a_pod_runs_a_container_and_leaves_nothing
            a_pod_has_one_shim_whatever_it_holds
            a_shim_stays_while_its_pod_has_a_container_and_no_longer
            containers_of_a_shared_pid_namespace_end_alone
            a_container_in_the_pid_namespace_of_another_ends_alone
            the_handlers_features_are_those_of_the_engine
        }
        tests! { $release, containers:
            an_exit_has_its_code_and_reason
            a_stopped_container_gets_its_grace_and_then_the_end
            a_command_that_is_missing_is_named
            fifty_containers_that_exit_at_once_have_their_status_and_whole_log
            statistics_tell_of_processor_and_memory
            a_container_that_uses_more_than_its_memory_says_so
            a_new_memory_limit_is_in_force
        }
        tests! { $release, execs:
            an_exec_has_its_output_and_code
            an_exec_that_takes_too_long_is_ended
            probes_leave_nothing_behind
        }
        tests! { $release, logs:
            a_log_has_a_line_for_each_line_and_stream
            a_log_goes_on_in_a_new_file
            a_burst_at_the_end_is_logged_whole
            a_terminal_has_its_output_logged
        }
        tests! { $release, crashes:
            pods_survive_a_killed_containerd
            an_exit_while_containerd_is_away_is_seen_afterwards
            a_killed_shim_takes_its_pod_along
            a_shim_killed_while_containerd_is_away_is_cleaned_up_at_its_return
        }
    };
    ($release:expr, $module:ident: $($behaviour:ident)*) => {
        $(#[test]
        fn $behaviour() {
            crate::cri::under($release, crate::cri::$module::$behaviour);
        })*
    };
}

mod containerd_1_6 {
    tests!(crate::Release::V1_6);
}

mod containerd_1_7 {
    tests!(crate::Release::V1_7);
}

mod containerd_2 {
    tests!(crate::Release::V2);
}

fn under(release: Release, behaviour: fn(&mut Node)) {
    if let Some(reason) = preconditions::missing(release) {
        return preconditions::leave_out(&reason);
    }
    let mut node = Node::start(release);
    behaviour(&mut node);
    node.finish();
}

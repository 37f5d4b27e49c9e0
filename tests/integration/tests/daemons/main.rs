//! What a user of containerd sees of a shim, under real daemons of three releases. Each test has a
//! daemon of its own, in a temporary folder, and ends by looking for anything that was left behind.
//!
//! The shims under test are those of the examples `host`, `runc` and `wasm`, built as users get them, and the
//! tests' own, which misbehaves on request. `SHIM_BINARY` names another one instead of `host` and `runc`: a
//! path, or a bare name that is looked up beside the daemon. containerd's own `containerd-shim-runc-v2` passes all
//! but these: it leaves its socket behind when it is killed, from 1.7 on it loses an exit that happens
//! while containerd is away, and in 2.1 now and then the event of the deletion.

#![expect(clippy::expect_used, reason = "a step that fails is a test that fails")]

mod behaviours;
mod bench;
#[cfg(feature = "cri")]
mod cri;
mod ctr;
mod daemon;
mod image;
mod leaks;
mod lifecycle;
mod matrix;
mod oci;
mod output;
mod preconditions;
mod process;
mod shim;
mod streams;
mod two;
mod wasm;

use daemon::{Daemon, Release};
use shim::Example;

/// What holds for every shim whose containers are processes.
macro_rules! common {
    ($release:expr, $example:expr) => {
        tests! { $release, $example, crate::behaviours,
            run_prints_and_exits_with_the_containers_status
            run_passes_stdin_on_until_its_end
            run_delivers_all_output_of_a_container_that_exits_at_once
            run_on_an_overlay_has_the_image_and_a_layer_to_write_to
            run_of_a_missing_command_names_it_and_leaves_nothing
            thirty_containers_that_exit_at_once_each_report_their_status
            containers_that_run_at_the_same_time_keep_apart
            events_of_a_container_arrive_in_order
            a_detached_container_is_listed_signalled_and_removed
            a_container_that_ignores_everything_is_killed
            exec_prints_and_exits_with_its_own_status
            a_detached_exec_is_listed_and_killed_alone
            a_container_survives_a_killed_containerd_and_its_exit_is_seen_afterwards
            an_exit_while_containerd_is_away_is_seen_afterwards
            a_killed_shim_takes_its_container_along_and_leaves_nothing
            a_shim_killed_while_containerd_is_away_is_cleaned_up_at_its_return
            a_container_that_the_daemon_gave_up_while_its_shim_was_stopped_is_ended
        }

        mod streams {
            tests! { $release, $example, crate::streams,
                run_with_a_terminal_has_its_size_and_gets_what_is_typed
                exec_with_a_terminal_has_its_size_and_gets_what_is_typed
                a_terminal_that_nobody_holds_for_a_moment_goes_on
                what_is_typed_faster_than_it_is_read_arrives_whole
                a_megabyte_passes_through_a_terminal_in_both_directions_at_once
                a_log_file_gets_all_output
                a_logging_program_gets_all_output
                clients_attach_one_after_the_other_and_across_a_restart
            }
        }
    };
}

/// What holds for containers of an OCI runtime.
macro_rules! oci {
    ($release:expr, $example:expr) => {
        mod oci {
            tests! { $release, $example, crate::oci,
                a_paused_container_does_nothing_until_it_is_resumed
                a_container_killed_while_it_is_paused_is_stopped
                a_kill_for_want_of_memory_is_told_before_the_exit
                all_processes_of_a_container_are_listed
                an_init_that_goes_on_to_a_cgroup_below_hides_nothing
                what_a_container_uses_is_told
                what_the_engine_refuses_is_told_in_its_words
                what_an_init_leaves_in_the_pid_namespace_of_another_is_killed
            }
        }
    };
}

/// Makes each behaviour a test of its own under the given release.
macro_rules! tests {
    ($release:expr) => {
        mod host {
            common! { $release, crate::Example::Host }
        }

        mod runc {
            common! { $release, crate::Example::Runc }
            oci! { $release, crate::Example::Runc }
        }

        mod lifecycle {
            tests! { $release, crate::Example::Fixture, crate::lifecycle,
                execs_at_the_same_time_each_report_their_status
                what_a_runtime_does_not_support_is_refused_with_a_sentence
                a_paused_container_is_listed_as_such_with_its_exec_and_resumed
                a_container_killed_while_it_is_paused_is_stopped
                of_a_group_the_container_that_was_given_up_is_ended_and_the_other_is_adopted
                two_removals_at_once_leave_nothing
                an_exit_while_containerd_is_stopped_is_told_once_when_it_goes_on
                a_start_that_hangs_holds_up_nobody
                what_a_container_leaves_in_a_shared_pid_namespace_is_killed
            }
        }

        mod output {
            tests! { $release, crate::Example::Runc, crate::output,
                of_a_hundred_runs_all_output_arrives
                of_a_hundred_runs_some_at_a_time_all_output_arrives
                of_a_hundred_execs_all_output_arrives
            }
        }

        mod wasm {
            tests! { $release, crate::Example::Wasm, crate::wasm,
                a_program_prints_and_exits_with_its_status
                input_passes_through_a_program
                a_program_that_never_ends_is_killed_or_told_to_end
                an_exec_is_refused_with_a_sentence
                a_file_that_is_no_program_is_named
                a_program_that_the_daemon_gave_up_while_its_shim_was_stopped_is_ended
            }
        }
    };
    ($release:expr, $example:expr, $module:path, $($behaviour:ident)*) => {
        use $module as behaviours;
        $(#[test]
        fn $behaviour() {
            crate::under($release, $example, behaviours::$behaviour);
        })*
    };
}

mod containerd_1_6 {
    tests!(crate::Release::V1_6);

    // The crun of the same Debian release refuses the specifications that later daemons write.
    mod crun {
        common! { crate::Release::V1_6, crate::Example::Crun }
        oci! { crate::Release::V1_6, crate::Example::Crun }
    }
}

mod containerd_1_7 {
    tests!(crate::Release::V1_7);
}

mod containerd_2 {
    tests!(crate::Release::V2);
}

fn under(release: Release, example: Example, behaviour: fn(&mut Daemon)) {
    if let Some(reason) = preconditions::missing(release) {
        return preconditions::leave_out(&reason);
    }
    let mut daemon = Daemon::start(release, example);
    behaviour(&mut daemon);
    daemon.finish();
}

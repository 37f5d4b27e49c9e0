//! Output at the end of a process: `ctr` closes its ends of the FIFOs as soon as it knows of the exit, so that what it
//! has not read by then is lost (contract 5.3).

use std::env;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::behaviours::SLEEP;
use crate::ctr::Output;
use crate::daemon::Daemon;

/// Prints so much at once that the stream is busy when it ends.
const BURST: &[&str] = &["sh", "-c", "dd if=/dev/zero bs=1000 count=2000 2>/dev/null"];
const BYTES: usize = 2_000_000;

/// How many times a burst is printed; `SHIM_RUNS` in the environment says otherwise.
fn runs() -> usize {
    env::var("SHIM_RUNS").map_or(100, |runs| runs.parse().expect("`SHIM_RUNS` is a number"))
}

/// Prints as many bursts, some at a time; none may be cut.
fn none_is_cut(at_a_time: usize, print: impl Fn(&str) -> Output + Sync) {
    let (next, cut, runs) = (AtomicUsize::new(0), AtomicUsize::new(0), runs());
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= runs {
                        return;
                    }
                    let output = print(&format!("c{n}"));
                    assert_eq!(output.status, Some(0), "{}", output.stderr);
                    if output.stdout.len() != BYTES {
                        println!("run {n}: {} bytes", output.stdout.len());
                        cut.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(cut.into_inner(), 0, "of {runs} runs so many lost output");
}

pub(crate) fn of_a_hundred_runs_all_output_arrives(daemon: &mut Daemon) {
    none_is_cut(1, |id| daemon.run(id, BURST));
}

pub(crate) fn of_a_hundred_runs_some_at_a_time_all_output_arrives(daemon: &mut Daemon) {
    none_is_cut(4, |id| daemon.run(id, BURST));
}

pub(crate) fn of_a_hundred_execs_all_output_arrives(daemon: &mut Daemon) {
    daemon.run_detached("c", SLEEP);
    none_is_cut(2, |exec| {
        let args = ["task", "exec", "--fifo-dir", &daemon.fifos, "--exec-id", exec, "c"];
        daemon.ctr(&[&args, BURST].concat())
    });
    daemon.kill_and_remove("c");
}

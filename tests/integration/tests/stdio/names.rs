//! What a client calls the streams (contract 5.2): the names that are FIFOs, and those that are nothing.

use shim_testing::{Mode, Result};

use super::{Host, LIMIT};

#[test]
fn a_fifo_can_be_named_by_a_uri() -> Result<()> {
    let host = Host::new()?;
    let stdio = host.ctrd.stdio("e1", Mode::Capture, false)?;
    let exec = host.shim.task().exec("e1");
    exec.add_with(&host.bundle, &["cat"], &stdio, |request| {
        for name in [&mut request.stdin, &mut request.stdout, &mut request.stderr] {
            name.insert_str(0, "fifo://");
        }
    })?;
    exec.start()?;
    let waiting = exec.wait();
    stdio.write("hi\n");
    stdio.close_stdin();
    exec.close_io()?;
    waiting.answer(LIMIT)?;
    exec.delete()?;
    assert_eq!(stdio.finish(LIMIT)?.stdout, b"hi\n");
    host.end()
}

#[test]
fn a_stream_without_a_name_is_dev_null() -> Result<()> {
    let host = Host::new()?;
    let stdio = host.ctrd.stdio("e1", Mode::Capture, false)?;
    let exec = host.shim.task().exec("e1");
    let script = "links=$(readlink /proc/$$/fd/0 /proc/$$/fd/1); echo \"$links\" >&2; echo gone";
    exec.add_with(&host.bundle, &["sh", "-c", script], &stdio, |request| {
        request.stdin.clear();
        request.stdout.clear();
    })?;
    exec.start()?;
    exec.wait().answer(LIMIT)?;
    // There is nothing to close, which is no error.
    exec.close_io()?;
    exec.delete()?;
    assert!(stdio.wait_for(LIMIT, |captured| captured.stderr == b"/dev/null\n/dev/null\n"));
    assert_eq!(stdio.captured().stdout, b"");
    host.end()
}

#[test]
fn a_process_without_any_stream_runs_and_is_told_nothing() -> Result<()> {
    let host = Host::new()?;
    let stdio = host.ctrd.stdio("e1", Mode::Null, false)?;
    let script =
        "for n in 0 1 2; do [ \"$(readlink /proc/$$/fd/$n)\" = /dev/null ] || exit 1; done; ! read a";
    let exec = host.add("e1", script, &stdio)?;
    exec.start()?;
    assert_eq!(exec.wait().answer(LIMIT)?.exit_status, 0);
    exec.delete()?;
    host.end()
}

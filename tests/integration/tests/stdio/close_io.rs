//! `CloseIO`, early, late and twice: it alone is the end of input (contract 5.3).

use shim_testing::{Mode, Result};

use super::{Host, LIMIT};

#[test]
fn input_ends_when_it_is_closed_and_not_when_the_client_leaves() -> Result<()> {
    let host = Host::new()?;
    let stdio = host.ctrd.stdio("e1", Mode::Capture, false)?;
    let exec = host.add("e1", "exec cat", &stdio)?;
    exec.start()?;
    let waiting = exec.wait();
    stdio.write("one\n");
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout == b"one\n"));
    stdio.detach();
    stdio.attach()?;
    stdio.write("two\n");
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout == b"one\ntwo\n"));
    stdio.write("three\n");
    stdio.close_stdin();
    exec.close_io()?;
    exec.close_io()?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 0);
    exec.close_io()?;
    exec.delete()?;
    assert_eq!(stdio.finish(LIMIT)?.stdout, b"one\ntwo\nthree\n");
    host.end()
}

#[test]
fn a_close_that_comes_before_the_start_is_remembered() -> Result<()> {
    let host = Host::new()?;
    for terminal in [false, true] {
        let stdio = host.ctrd.stdio("e1", Mode::Capture, terminal)?;
        let exec = host.add("e1", "cat; exit 7", &stdio)?;
        stdio.close_stdin();
        exec.close_io()?;
        exec.start()?;
        assert_eq!(exec.wait().answer(LIMIT)?.exit_status, 7);
        exec.delete()?;
    }
    host.end()
}

#[test]
fn a_close_while_the_client_still_writes_loses_nothing() -> Result<()> {
    let host = Host::new()?;
    let stdio = host.ctrd.stdio("e1", Mode::Capture, false)?;
    let exec = host.add("e1", "wc -c", &stdio)?;
    exec.start()?;
    let waiting = exec.wait();
    stdio.write(vec![b'x'; 3_000_000]);
    exec.close_io()?;
    stdio.close_stdin();
    waiting.answer(LIMIT)?;
    exec.delete()?;
    assert_eq!(stdio.finish(LIMIT)?.stdout, b"3000000\n");
    host.end()
}

#[test]
fn a_terminal_s_input_ends_although_its_last_line_does_not() -> Result<()> {
    let host = Host::new()?;
    let stdio = host.ctrd.stdio("e1", Mode::Capture, true)?;
    let exec = host.add("e1", "stty -echo; echo ready; cat; echo; exit 7", &stdio)?;
    exec.start()?;
    let waiting = exec.wait();
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout == b"ready\r\n"));
    stdio.write("one\ntwo");
    stdio.close_stdin();
    exec.close_io()?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 7);
    exec.delete()?;
    assert_eq!(stdio.finish(LIMIT)?.stdout, b"ready\r\none\r\ntwo\r\n");
    host.end()
}

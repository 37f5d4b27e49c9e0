//! Readers that come late, stop, vanish and come again (contract 5.3).

use std::fs;
use std::time::{Duration, Instant};

use shim_runtime::Signal;
use shim_testing::{Captured, Mode, Result, Stdio};

use super::{Host, LIMIT, count, until, until_asleep, until_stuck, when};

#[test]
fn a_late_reader_of_a_short_exec_gets_everything() -> Result<()> {
    let host = Host::new()?;
    for terminal in [false, true] {
        let stdio = host.ctrd.stdio("e1", Mode::Late, terminal)?;
        let exec = host.run("e1", "echo hi", &stdio)?;
        stdio.attach()?;
        let line = if terminal { "hi\r\n" } else { "hi\n" };
        assert_eq!(stdio.finish(LIMIT)?.stdout, line.as_bytes());
        exec.delete()?;
    }
    host.end()
}

#[test]
fn a_reader_that_stops_blocks_the_container_and_no_call() -> Result<()> {
    let host = Host::new()?;
    let done = host.ctrd.root().join("done");
    let stdio = host.ctrd.stdio("e1", Mode::Capture, false)?;
    let script = format!("head -c 5000000 /dev/zero; touch {}", done.display());
    let exec = host.add("e1", &script, &stdio)?;
    stdio.stop_reading();
    exec.start()?;
    let waiting = exec.wait();
    for _ in 0..100 {
        let task = host.shim.task().within(Duration::from_secs(2));
        task.state()?;
        task.pids()?;
        task.exec("e1").state()?;
    }
    assert!(!done.exists(), "all was written although nobody read it");
    stdio.read_on();
    waiting.answer(LIMIT)?;
    assert!(done.exists());
    exec.delete()?;
    assert_eq!(stdio.finish(LIMIT)?.stdout.len(), 5_000_000);
    host.end()
}

#[test]
fn all_outputs_without_a_reader_share_one_inotify_instance() -> Result<()> {
    let host = Host::new()?;
    let server = host.shim.server()?.pid();
    let instances = || {
        let descriptors = fs::read_dir(format!("/proc/{server}/fd")).unwrap().flatten();
        let targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        targets.filter(|target| target.to_string_lossy().contains("inotify")).count()
    };
    assert_eq!(instances(), 0);
    let mut execs = Vec::new();
    for n in 0..20 {
        let id = format!("e{n}");
        let stdio = host.ctrd.stdio(&id, Mode::Late, false)?;
        execs.push((host.run(&id, &format!("echo {id}; echo {id} >&2"), &stdio)?, stdio));
    }
    assert_eq!(instances(), 1);
    // Readers come to every other one.
    for (n, (_, stdio)) in execs.iter().enumerate().step_by(2) {
        stdio.attach()?;
        let line = format!("e{n}\n").into_bytes();
        assert_eq!(stdio.finish(LIMIT)?, Captured { stdout: line.clone(), stderr: line });
    }
    assert_eq!(instances(), 1);
    for (exec, _) in &execs {
        exec.delete()?;
    }
    until("the instance to be given back", || instances() == 0);
    host.end()
}

#[test]
fn a_new_reader_gets_what_was_written_meanwhile() -> Result<()> {
    let host = Host::new()?;
    let (go, gone) = (host.ctrd.root().join("go"), host.ctrd.root().join("gone"));
    let stdio = host.ctrd.stdio("e1", Mode::Capture, false)?;
    let script =
        format!("echo one; {}; echo two; touch {}; read line; echo $line", when(&go), gone.display());
    let exec = host.add("e1", &script, &stdio)?;
    exec.start()?;
    let waiting = exec.wait();
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout == b"one\n"));
    stdio.detach();
    fs::write(&go, "").unwrap();
    until("the exec to write without a reader", || gone.exists());
    stdio.attach()?;
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout == b"one\ntwo\n"));
    stdio.write("three\n");
    waiting.answer(LIMIT)?;
    exec.delete()?;
    assert_eq!(stdio.finish(LIMIT)?.stdout, b"one\ntwo\nthree\n");
    host.end()
}

/// Deletes execs that ended in the same way, and returns how long the quickest took: on a busy machine any one
/// of them may be held up.
fn quickest_delete(host: &Host, mut ended: impl FnMut(&str) -> Result<()>) -> Result<Duration> {
    let mut quickest = LIMIT;
    for n in 0..5 {
        let id = format!("e{n}");
        ended(&id)?;
        let start = Instant::now();
        host.shim.task().exec(&id).delete()?;
        quickest = quickest.min(start.elapsed());
    }
    Ok(quickest)
}

#[test]
fn delete_does_not_wait_for_a_reader_that_is_gone() -> Result<()> {
    let host = Host::new()?;
    let quickest = quickest_delete(&host, |id| {
        let stdio = host.ctrd.stdio(id, Mode::Capture, false)?;
        let exec = host.add(id, "head -c 1000 /dev/zero; exec yes", &stdio)?;
        exec.start()?;
        assert!(stdio.wait_for(LIMIT, |captured| captured.stdout.len() >= 1000));
        stdio.detach();
        until_stuck(&exec)?;
        exec.kill(Signal::KILL)?;
        exec.wait().answer(LIMIT).map(drop)
    })?;
    assert!(quickest < Duration::from_millis(200), "{quickest:?}");
    host.end()
}

#[test]
fn delete_does_not_wait_for_a_process_that_was_left_behind_with_the_streams() -> Result<()> {
    let host = Host::new()?;
    let end = host.ctrd.root().join("end");
    for terminal in [false, true] {
        let quickest = quickest_delete(&host, |id| {
            let stdio = host.ctrd.stdio(id, Mode::Capture, terminal)?;
            // In a session of its own it is not killed with the exec.
            let script = format!("setsid sh -c 'trap : HUP; {}' & echo hi", when(&end));
            let exec = host.run(id, &script, &stdio)?;
            let start = Instant::now();
            exec.delete()?;
            let line = if terminal { "hi\r\n" } else { "hi\n" };
            assert_eq!(stdio.finish(LIMIT)?.stdout, line.as_bytes());
            assert!(start.elapsed() < LIMIT);
            // Once more, for the measurement: with nothing to be read.
            host.run(id, &script, &host.ctrd.stdio(id, Mode::Null, terminal)?).map(drop)
        })?;
        assert!(quickest < Duration::from_millis(200), "{quickest:?}");
    }
    fs::write(&end, "").unwrap();
    host.end()
}

#[test]
fn delete_does_not_wait_for_a_process_that_was_left_behind_and_writes_on() -> Result<()> {
    let host = Host::new()?;
    let (end, log) = (host.ctrd.root().join("end"), host.ctrd.root().join("log"));
    let left = host.ctrd.root().join("left");
    let flood = format!("touch {}; until [ -e {} ]; do echo $$; done", left.display(), end.display());
    let script = format!("setsid sh -c 'trap : PIPE HUP; {flood}' 2>/dev/null & {}; echo hi", when(&left));
    for terminal in [false, true] {
        let stdio = host.ctrd.stdio("e1", Mode::Capture, terminal)?;
        let exec = host.run("e1", &script, &stdio)?;
        exec.within(Duration::from_secs(4)).delete()?;
        fs::remove_file(&left).unwrap();
        assert!(stdio.finish(LIMIT)?.stdout.windows(2).any(|word| word == b"hi"));
        let uri = format!("file://{}", log.display());
        let exec = host.run("e1", &script, &Stdio::log(&uri, terminal))?;
        exec.within(Duration::from_secs(4)).delete()?;
        fs::remove_file(&left).unwrap();
        assert!(fs::read(&log).unwrap().windows(2).any(|word| word == b"hi"));
        fs::remove_file(&log).unwrap();
    }
    fs::write(&end, "").unwrap();
    host.end()
}

#[test]
fn a_reader_that_stopped_gets_the_rest_after_delete_which_does_not_wait_for_it() -> Result<()> {
    // As much as a FIFO and a container's pipe hold.
    const BYTES: usize = 128 << 10;
    let host = Host::new()?;
    let mut readers = Vec::new();
    let quickest = quickest_delete(&host, |id| {
        let stdio = host.ctrd.stdio(id, Mode::Capture, false)?;
        stdio.stop_reading();
        host.run(id, &format!("head -c {BYTES} /dev/zero; head -c {BYTES} /dev/zero >&2"), &stdio)?;
        readers.push(stdio);
        Ok(())
    })?;
    assert!(quickest < Duration::from_millis(200), "{quickest:?}");
    for stdio in readers {
        stdio.read_on();
        let captured = stdio.finish(LIMIT)?;
        assert_eq!((captured.stdout.len(), captured.stderr.len()), (BYTES, BYTES));
    }
    host.end()
}

#[test]
fn a_flood_that_a_reader_has_left_alone_does_not_hold_up_delete() -> Result<()> {
    let host = Host::new()?;
    for terminal in [false, true] {
        let mut readers = Vec::new();
        let quickest = quickest_delete(&host, |id| {
            let stdio = host.ctrd.stdio(id, Mode::Capture, terminal)?;
            stdio.stop_reading();
            let exec = host.add(id, "exec yes", &stdio)?;
            exec.start()?;
            until_stuck(&exec)?;
            exec.kill(Signal::KILL)?;
            readers.push(stdio);
            exec.wait().answer(LIMIT).map(drop)
        })?;
        assert!(quickest < Duration::from_millis(200), "{quickest:?}");
    }
    host.end()
}

#[test]
fn what_never_started_is_deleted_at_once_and_its_readers_see_the_end() -> Result<()> {
    let host = Host::new()?;
    for terminal in [false, true] {
        let mut readers = Vec::new();
        let quickest = quickest_delete(&host, |id| {
            let stdio = host.ctrd.stdio(id, Mode::Capture, terminal)?;
            host.add(id, "echo never", &stdio)?;
            readers.push(stdio);
            Ok(())
        })?;
        assert!(quickest < Duration::from_millis(200), "{quickest:?}");
    }
    let ctrd = &host.ctrd;
    for terminal in [false, true] {
        let id = format!("never{terminal}");
        let mut builder = ctrd.bundle(&id).args(["echo", "never"]);
        if terminal {
            builder = builder.terminal();
        }
        let bundle = builder.capture().build()?;
        let mut shim = ctrd.start(super::FIXTURE, &bundle)?;
        shim.task().create(&bundle)?;
        shim.task().within(Duration::from_secs(2)).delete()?;
        assert_eq!(bundle.stdio().finish(LIMIT)?.stdout, b"");
        shim.end()?;
    }
    host.end()
}

#[test]
fn one_fifo_for_both_outputs_ends_when_both_do() -> Result<()> {
    let host = Host::new()?;
    let (go, stdio) = (host.ctrd.root().join("go"), host.ctrd.stdio("e1", Mode::Capture, false)?);
    let script = format!("echo one; exec >&-; {}; echo two >&2", when(&go));
    let exec = host.shim.task().exec("e1");
    let names = Stdio::log(&stdio.stdout(), false);
    exec.add(&host.bundle, &["sh", "-c", &script], &names)?;
    exec.start()?;
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout == b"one\n"));
    fs::write(&go, "").unwrap();
    exec.wait().answer(LIMIT)?;
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout == b"one\ntwo\n"));
    exec.delete()?;
    stdio.detach();
    host.end()
}

#[test]
fn streams_cost_no_threads() -> Result<()> {
    let host = Host::new()?;
    let mut execs = Vec::new();
    for n in 0..50 {
        let id = format!("e{n}");
        let stdio = host.ctrd.stdio(&id, Mode::Capture, n % 2 == 0)?;
        let exec = host.add(&id, "echo hi; exec sleep 1000", &stdio)?;
        exec.start()?;
        assert!(stdio.wait_for(LIMIT, |captured| captured.stdout.starts_with(b"hi")));
        execs.push((exec, stdio));
    }
    until("the workers to end", || count(&host.shim, "task").is_ok_and(|count| count <= 4));
    for (exec, _) in &execs {
        exec.kill(Signal::KILL)?;
        exec.wait().answer(LIMIT)?;
        exec.delete()?;
    }
    host.end()
}

#[test]
fn a_shim_sleeps_again_once_a_busy_stream_is_quiet() -> Result<()> {
    const BYTES: usize = 50_000_000;
    let host = Host::new()?;
    let stdio = host.ctrd.stdio("e1", Mode::Capture, false)?;
    // In small blocks, for each of which the shim would be woken.
    let script = format!("head -c {BYTES} /dev/zero | dd bs=4k status=none; echo end >&2; exec sleep 1000");
    let exec = host.add("e1", &script, &stdio)?;
    exec.start()?;
    let all = |captured: &Captured| captured.stdout.len() == BYTES && captured.stderr == b"end\n";
    assert!(stdio.wait_for(LIMIT, all));
    until_asleep(&host.shim)?;
    exec.kill(Signal::KILL)?;
    exec.wait().answer(LIMIT)?;
    exec.delete()?;
    host.end()
}

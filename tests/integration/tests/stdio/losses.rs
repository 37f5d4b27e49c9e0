//! Nothing is lost at the end of a process, however short its life (contract 12.2).

use shim_testing::{Dialect, FAIL_AT, FakeContainerd, Mode, Result};

use super::{FIXTURE, Host, LIMIT, count, numbers, until};

/// Runs as many execs, some at a time, each of which prints a line.
fn print_lines(execs: usize, terminal: bool) -> Result<()> {
    const AT_A_TIME: usize = 8;
    let host = Host::new()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_A_TIME)
            .map(|thread| {
                let host = &host;
                scope.spawn(move || -> Result<()> {
                    for n in (thread..execs).step_by(AT_A_TIME) {
                        let id = format!("e{n}");
                        let stdio = host.ctrd.stdio(&id, Mode::Capture, terminal)?;
                        let exec = host.shim.task().exec(&id);
                        exec.add(&host.bundle, &["echo", &id], &stdio)?;
                        exec.start()?;
                        exec.wait().answer(LIMIT)?;
                        exec.delete()?;
                        let end = if terminal { "\r\n" } else { "\n" };
                        let printed = stdio.finish(LIMIT)?.stdout;
                        assert_eq!(String::from_utf8_lossy(&printed), format!("{id}{end}"));
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })?;
    until("the workers to end", || count(&host.shim, "task").is_ok_and(|count| count <= 4));
    host.end()
}

#[test]
fn of_a_thousand_short_execs_every_line_arrives() -> Result<()> {
    print_lines(1000, false)
}

#[test]
fn of_a_thousand_short_execs_with_a_terminal_every_line_arrives() -> Result<()> {
    print_lines(1000, true)
}

#[test]
fn two_megabytes_arrive_whole_two_hundred_times() -> Result<()> {
    let host = Host::new()?;
    for n in 0..200 {
        let id = format!("e{n}");
        let stdio = host.ctrd.stdio(&id, Mode::Capture, false)?;
        let exec = host.run(&id, "head -c 2000000 /dev/zero; echo end >&2", &stdio)?;
        exec.delete()?;
        let captured = stdio.finish(LIMIT)?;
        assert_eq!((captured.stdout.len(), captured.stderr.as_slice()), (2_000_000, &b"end\n"[..]));
    }
    host.end()
}

#[test]
fn a_megabyte_of_a_terminal_arrives_whole() -> Result<()> {
    let host = Host::new()?;
    let stdio = host.ctrd.stdio("e1", Mode::Capture, true)?;
    host.run("e1", "stty -opost; seq 150000", &stdio)?.delete()?;
    let expected = numbers(150_000, "\n");
    assert!(stdio.finish(LIMIT)?.stdout == expected.as_bytes());
    host.end()
}

#[test]
fn twenty_megabytes_of_input_arrive_whole_and_end() -> Result<()> {
    let host = Host::new()?;
    let stdio = host.ctrd.stdio("e1", Mode::Capture, false)?;
    let exec = host.add("e1", "wc -c", &stdio)?;
    exec.start()?;
    let waiting = exec.wait();
    let closes = exec.clone();
    stdio.feed(std::io::Read::take(std::io::repeat(b'x'), 20_000_000), move || drop(closes.close_io()));
    waiting.answer(LIMIT)?;
    exec.delete()?;
    assert_eq!(stdio.finish(LIMIT)?.stdout, b"20000000\n");
    host.end()
}

#[test]
fn what_cannot_be_moved_for_want_of_memory_is_moved_later() -> Result<()> {
    // ENOMEM, five times.
    let ctrd = FakeContainerd::builder(Dialect::PARAMS).env(FAIL_AT, "splice 12 5").build()?;
    for terminal in [false, true] {
        let id = format!("c{terminal}");
        let mut builder = ctrd.bundle(&id).args(["sh", "-c", "read a; echo got $a; exec sleep 1000"]);
        if terminal {
            builder = builder.terminal();
        }
        let bundle = builder.capture().build()?;
        let mut shim = ctrd.start(FIXTURE, &bundle)?;
        let waiting = shim.run()?;
        bundle.stdio().write("word\n");
        assert!(bundle.stdio().wait_for(LIMIT, |captured| captured.stdout.ends_with(b"got word\n")
            || captured.stdout.ends_with(b"got word\r\n")));
        shim.task().kill(shim_runtime::Signal::KILL)?;
        waiting.answer(LIMIT)?;
        shim.remove()?;
    }
    ctrd.check()
}

//! Terminals: our own, and those that a runtime sends over a console socket (contract 5.3).

use std::fs;

use shim_runtime::api::CreateTaskRequest;
use shim_testing::{Dialect, FakeContainerd, Mode, Result};

use super::{FIXTURE, Host, LIMIT, has_runc, numbers, until, until_asleep, until_text, when, write_program};

/// Tells the size of its terminal, and again when that changes. The shell waits for the child that it reads by,
/// so the trap runs between two short ones.
const SIZES: &str = "trap 'stty size' WINCH; stty size; echo ready; while :; do sleep 0.05; done";

#[test]
fn a_process_leads_the_session_of_its_terminal() -> Result<()> {
    let host = Host::new()?;
    let stdio = host.ctrd.stdio("e1", Mode::Capture, true)?;
    let script = "test -t 0 && test -t 1 && test -t 2 && echo hi >/dev/tty; echo oh >&2; exit 3";
    let exec = host.add("e1", script, &stdio)?;
    exec.start()?;
    assert_eq!(exec.wait().answer(LIMIT)?.exit_status, 3);
    assert!(exec.state()?.terminal);
    exec.delete()?;
    assert_eq!(stdio.finish(LIMIT)?.stdout, b"hi\r\noh\r\n");
    host.end()
}

#[test]
fn what_is_typed_arrives_and_ctrl_c_interrupts() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let script = "trap 'echo interrupted; exit 5' INT; stty -echo; echo ready; read a; echo got $a; while :; do sleep 0.05; done";
    let bundle = ctrd.bundle("c1").args(["sh", "-c", script]).terminal().capture().build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let (waiting, stdio) = (shim.run()?, bundle.stdio());
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout == b"ready\r\n"));
    stdio.write("word\r");
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout.ends_with(b"got word\r\n")));
    stdio.write("\x03");
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 5);
    shim.remove()?;
    assert!(stdio.finish(LIMIT)?.stdout.ends_with(b"interrupted\r\n"));
    ctrd.check()
}

#[test]
fn a_size_is_set_at_once_or_remembered_until_there_is_a_terminal() -> Result<()> {
    let host = Host::new()?;
    let stdio = host.ctrd.stdio("e1", Mode::Capture, true)?;
    let exec = host.add("e1", SIZES, &stdio)?;
    exec.resize_pty(91, 33)?;
    exec.start()?;
    let waiting = exec.wait();
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout == b"33 91\r\nready\r\n"));
    exec.resize_pty(120, 40)?;
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout.ends_with(b"\r\n40 120\r\n")));
    exec.kill(shim_runtime::Signal::KILL)?;
    waiting.answer(LIMIT)?;
    let refused = exec.resize_pty(80, 25).unwrap_err();
    assert!(refused.to_string().contains("it is stopped"), "{refused}");
    exec.delete()?;
    host.end()
}

#[test]
fn resizing_what_has_no_terminal_is_no_error() -> Result<()> {
    let host = Host::new()?;
    host.shim.task().resize_pty(80, 25)?;
    host.end()
}

#[test]
fn a_new_client_sees_the_terminal_that_another_left() -> Result<()> {
    let host = Host::new()?;
    let stdio = host.ctrd.stdio("e1", Mode::Capture, true)?;
    let exec = host.add("e1", "stty -echo; echo ready; while read a; do echo got $a; done", &stdio)?;
    exec.start()?;
    let waiting = exec.wait();
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout == b"ready\r\n"));
    stdio.detach();
    stdio.attach()?;
    stdio.write("one\n");
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout.ends_with(b"got one\r\n")));
    stdio.close_stdin();
    exec.close_io()?;
    waiting.answer(LIMIT)?;
    exec.delete()?;
    host.end()
}

#[test]
fn a_terminal_without_any_stream_holds_nobody_up() -> Result<()> {
    let host = Host::new()?;
    let stdio = host.ctrd.stdio("e1", Mode::Null, true)?;
    host.run("e1", "seq 100000", &stdio)?.delete()?;
    host.end()
}

#[test]
fn a_terminal_without_input_has_output_all_the_same_and_no_end_of_input() -> Result<()> {
    let host = Host::new()?;
    let stdio = host.ctrd.stdio("e1", Mode::Capture, true)?;
    let exec = host.shim.task().exec("e1");
    let script = "test -t 0 && echo ready; read a; echo ended";
    exec.add_with(&host.bundle, &["sh", "-c", script], &stdio, |request| request.stdin.clear())?;
    exec.start()?;
    let waiting = exec.wait();
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout == b"ready\r\n"));
    exec.close_io()?;
    exec.kill(shim_runtime::Signal::KILL)?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 137);
    exec.delete()?;
    assert_eq!(stdio.finish(LIMIT)?.stdout, b"ready\r\n");
    host.end()
}

#[test]
fn a_terminal_that_is_sent_over_the_console_socket_is_served() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let builder = ctrd.bundle("c1").args(["sh", "-c", "stty size; read a; echo got $a; exit 3"]);
    let bundle = builder.annotation("fixture/kind", "console").terminal().capture().build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let task = shim.task();
    task.create(&bundle)?;
    task.resize_pty(91, 33)?;
    let waiting = task.wait();
    task.start()?;
    let stdio = bundle.stdio();
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout == b"33 91\r\n"));
    stdio.write("word\n");
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 3);
    shim.remove()?;
    assert!(stdio.finish(LIMIT)?.stdout.ends_with(b"got word\r\n"));
    ctrd.check()
}

#[test]
fn a_console_socket_without_a_terminal_fails_create() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = ctrd.bundle("c1").annotation("fixture/kind", "console").capture().build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let failed = shim.task().create(&bundle).unwrap_err().to_string();
    assert!(failed.contains("there is no terminal"), "{failed}");
    shim.end()?;
    ctrd.check()
}

#[test]
fn the_terminals_that_runc_makes_are_served() -> Result<()> {
    if !has_runc() {
        return Ok(());
    }
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let builder = ctrd.bundle("c1").args(["sh", "-c", "echo hi; read a; echo got $a"]).full_spec();
    let builder = builder.busybox("/bin/busybox").annotation("fixture/kind", "oci").terminal().capture();
    let bundle = builder.build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let (waiting, stdio) = (shim.run()?, bundle.stdio());
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout == b"hi\r\n"));
    for n in 0..20 {
        let id = format!("e{n}");
        let (exec, stdio) = (shim.task().exec(&id), ctrd.stdio(&id, Mode::Capture, true)?);
        exec.add(&bundle, &["sh", "-c", "test -t 0 && echo $$ >/dev/tty"], &stdio)?;
        exec.start()?;
        exec.wait().answer(LIMIT)?;
        exec.delete()?;
        let printed = stdio.finish(LIMIT)?.stdout;
        assert!(printed.len() > 2 && printed.ends_with(b"\r\n"), "{:?}", String::from_utf8_lossy(&printed));
    }
    stdio.write("word\n");
    waiting.answer(LIMIT)?;
    shim.remove()?;
    assert!(stdio.finish(LIMIT)?.stdout.ends_with(b"got word\r\n"));
    ctrd.check()
}

#[test]
fn a_terminal_begins_with_the_size_of_the_specification_unless_the_client_says_another() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let own = nix::unistd::geteuid().as_raw();
    let process = |script: &str| {
        serde_json::json!({
            "terminal": true, "consoleSize": { "height": 33, "width": 91 }, "args": ["sh", "-c", script],
            "user": { "uid": own, "gid": nix::unistd::getegid().as_raw() }, "cwd": "/",
            "env": ["PATH=/usr/bin:/bin", format!("SHIM_TESTING_ROOT={}", ctrd.root().display())],
        })
    };
    let config =
        serde_json::json!({ "ociVersion": "1.0.2", "process": process("stty size; exec sleep 1000") });
    let bundle = ctrd.bundle("c1").config(config).capture().build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    shim.run()?;
    assert!(bundle.stdio().wait_for(LIMIT, |captured| captured.stdout == b"33 91\r\n"));
    for (id, resized, size) in [("e1", None, "33 91\r\n"), ("e2", Some((120, 40)), "40 120\r\n")] {
        let (exec, stdio) = (shim.task().exec(id), ctrd.stdio(id, Mode::Capture, true)?);
        exec.add_with(&bundle, &[], &stdio, |request| {
            request.spec.as_mut().unwrap().value = process("stty size").to_string().into_bytes();
        })?;
        if let Some((columns, rows)) = resized {
            exec.resize_pty(columns, rows)?;
        }
        exec.start()?;
        exec.wait().answer(LIMIT)?;
        exec.delete()?;
        assert_eq!(String::from_utf8_lossy(&stdio.finish(LIMIT)?.stdout), size, "{id}");
    }
    shim.task().kill(shim_runtime::Signal::KILL)?;
    shim.task().wait().answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

/// Prints `first`, lets go of its terminal, and takes it up again once there is a file `go` beside the file `gone`
/// that it makes: prints 200 kB and `second`, and repeats a line that it reads.
fn lets_go(terminal: &str, folder: &str) -> String {
    format!(
        "stty -echo -onlcr; echo first; exec </dev/null >/dev/null 2>&1; touch {folder}/gone; \
         until [ -e {folder}/go ]; do sleep 0.02; done; seq 40000 >{terminal}; echo second >{terminal}; \
         read line <{terminal}; echo got $line >{terminal}"
    )
}

/// What such a process prints.
fn all_of_it() -> String {
    format!("first\n{}second\ngot word\n", numbers(40_000, "\n"))
}

#[test]
fn a_terminal_that_nobody_holds_for_a_moment_is_not_at_its_end() -> Result<()> {
    let host = Host::new()?;
    let folder = host.ctrd.root().join("files");
    let logger = host.ctrd.root().join("logger");
    fs::create_dir(&folder).unwrap();
    write_program(&logger, &format!("exec 5>&-; cat <&3 >>{}/log", folder.display()));
    let uris = [
        None,
        Some(format!("file://{}/log", folder.display())),
        Some(format!("binary://{}", logger.display())),
        Some(String::new()),
    ];
    for uri in uris {
        // What is typed comes from a FIFO in any case.
        let stdio = host.ctrd.stdio("e1", Mode::Capture, true)?;
        let exec = host.shim.task().exec("e1");
        let script = lets_go("/dev/tty", &folder.to_string_lossy());
        exec.add_with(&host.bundle, &["sh", "-c", &script], &stdio, |request| {
            if let Some(uri) = &uri {
                request.stdout.clone_from(uri);
            }
        })?;
        exec.start()?;
        let waiting = exec.wait();
        until("the terminal to be let go", || folder.join("gone").exists());
        until_asleep(&host.shim)?;
        stdio.write("word\n");
        until_asleep(&host.shim)?;
        fs::write(folder.join("go"), "").unwrap();
        assert_eq!(waiting.answer(LIMIT)?.exit_status, 0, "{uri:?}");
        exec.delete()?;
        match uri.as_deref() {
            None => assert_eq!(String::from_utf8_lossy(&stdio.finish(LIMIT)?.stdout), all_of_it()),
            Some("") => {}
            Some(_) => until_text(&folder.join("log"), &all_of_it()),
        }
        for file in ["gone", "go", "log"] {
            let _ = fs::remove_file(folder.join(file));
        }
        stdio.detach();
    }
    host.end()
}

#[test]
fn a_terminal_of_runc_that_nobody_holds_for_a_moment_is_not_at_its_end() -> Result<()> {
    if !has_runc() {
        return Ok(());
    }
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let builder = ctrd.bundle("c1").args(["sh", "-c", &lets_go("/dev/console", "/dev/shm")]).full_spec();
    let builder = builder.busybox("/bin/busybox").annotation("fixture/kind", "oci").terminal().capture();
    let bundle = builder.build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let waiting = shim.run()?;
    let shared = std::path::PathBuf::from(format!("/proc/{}/root/dev/shm", shim.task().state()?.pid));
    until("the terminal to be let go", || shared.join("gone").exists());
    until_asleep(&shim)?;
    bundle.stdio().write("word\n");
    until_asleep(&shim)?;
    fs::write(shared.join("go"), "").unwrap();
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 0);
    shim.remove()?;
    assert_eq!(String::from_utf8_lossy(&bundle.stdio().finish(LIMIT)?.stdout), all_of_it());
    ctrd.check()
}

#[test]
fn a_terminal_that_nobody_holds_ends_with_its_process() -> Result<()> {
    let host = Host::new()?;
    let (gone, go) = (host.ctrd.root().join("gone"), host.ctrd.root().join("go"));
    let stdio = host.ctrd.stdio("e1", Mode::Capture, true)?;
    let script = format!("echo hi; exec <&- >&- 2>&-; touch {}; {}", gone.display(), when(&go));
    let exec = host.add("e1", &script, &stdio)?;
    exec.start()?;
    until("the terminal to be let go", || gone.exists());
    until_asleep(&host.shim)?;
    fs::write(&go, "").unwrap();
    // Before anybody waits for it or deletes it.
    assert_eq!(stdio.finish(LIMIT)?.stdout, b"hi\r\n");
    exec.wait().answer(LIMIT)?;
    exec.delete()?;
    host.end()
}

#[test]
fn what_is_typed_faster_than_it_is_read_arrives_whole_and_typing_goes_on() -> Result<()> {
    let host = Host::new()?;
    let (ready, go, log) =
        (host.ctrd.root().join("ready"), host.ctrd.root().join("go"), host.ctrd.root().join("log"));
    for uri in [None, Some(format!("file://{}", log.display()))] {
        let stdio = host.ctrd.stdio("e1", Mode::Capture, true)?;
        let script = format!(
            "stty raw -echo; touch {}; {}; head -c 20000 | wc -c; head -c 4",
            ready.display(),
            when(&go)
        );
        let exec = host.shim.task().exec("e1");
        exec.add_with(&host.bundle, &["sh", "-c", &script], &stdio, |request| {
            if let Some(uri) = &uri {
                request.stdout.clone_from(uri);
            }
        })?;
        exec.start()?;
        let waiting = exec.wait();
        until("the terminal to be set", || ready.exists());
        stdio.write(vec![b'x'; 20_000]);
        until_asleep(&host.shim)?;
        fs::write(&go, "").unwrap();
        let counted = || match &uri {
            None => stdio.captured().stdout,
            Some(_) => fs::read(&log).unwrap_or_default(),
        };
        until("the bytes to be counted", || counted() == b"20000\n");
        stdio.write("word");
        assert_eq!(waiting.answer(LIMIT)?.exit_status, 0);
        exec.delete()?;
        assert_eq!(String::from_utf8_lossy(&counted()), "20000\nword");
        stdio.detach();
        fs::remove_file(&go).unwrap();
        fs::remove_file(&ready).unwrap();
    }
    host.end()
}

#[test]
fn a_megabyte_passes_through_a_terminal_in_both_directions_at_once() -> Result<()> {
    const BYTES: usize = 1 << 20;
    let host = Host::new()?;
    let stdio = host.ctrd.stdio("e1", Mode::Capture, true)?;
    let script = format!("stty raw -echo; echo ready; head -c {BYTES}");
    let exec = host.add("e1", &script, &stdio)?;
    exec.start()?;
    let waiting = exec.wait();
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout == b"ready\n"));
    // A client that stops to read while it writes: both directions fill up.
    stdio.stop_reading();
    stdio.write(vec![b'x'; BYTES]);
    until_asleep(&host.shim)?;
    stdio.read_on();
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 0);
    exec.delete()?;
    assert_eq!(stdio.finish(LIMIT)?.stdout.len(), "ready\n".len() + BYTES);
    host.end()
}

#[test]
fn the_end_of_input_is_typed_into_a_full_terminal_once_there_is_room() -> Result<()> {
    let host = Host::new()?;
    let go = host.ctrd.root().join("go");
    let stdio = host.ctrd.stdio("e1", Mode::Capture, true)?;
    let script = format!("stty -echo; echo ready; {}; wc -c", when(&go));
    let exec = host.add("e1", &script, &stdio)?;
    exec.start()?;
    let waiting = exec.wait();
    assert!(stdio.wait_for(LIMIT, |captured| captured.stdout == b"ready\r\n"));
    stdio.write("line\n".repeat(4000));
    stdio.close_stdin();
    exec.close_io()?;
    until_asleep(&host.shim)?;
    fs::write(&go, "").unwrap();
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 0);
    exec.delete()?;
    assert_eq!(String::from_utf8_lossy(&stdio.finish(LIMIT)?.stdout), "ready\r\n20000\r\n");
    host.end()
}

#[test]
fn a_terminal_may_be_asked_for_by_start_alone() -> Result<()> {
    for kind in ["", "keeps-stdio"] {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let builder = ctrd.bundle("c1").args(["sh", "-c", "stty size; read a; echo got $a; exit 3"]);
        let bundle = builder.annotation("fixture/kind", kind).terminal().capture().build()?;
        let mut shim = ctrd.start(FIXTURE, &bundle)?;
        let (task, stdio) = (shim.task(), bundle.stdio());
        task.create_with(&CreateTaskRequest {
            id: "c1".to_owned(),
            bundle: bundle.path().to_string_lossy().into_owned(),
            checkpoint: "an image".to_owned(),
            terminal: true,
            stdin: stdio.stdin(),
            stdout: stdio.stdout(),
            ..CreateTaskRequest::default()
        })?;
        task.resize_pty(91, 33)?;
        let waiting = task.wait();
        // Typed before there is a terminal to type it into.
        stdio.write("word\n");
        until_asleep(&shim)?;
        task.start()?;
        assert_eq!(waiting.answer(LIMIT)?.exit_status, 3, "{kind}");
        shim.remove()?;
        let printed = String::from_utf8_lossy(&stdio.finish(LIMIT)?.stdout).into_owned();
        assert!(printed.contains("33 91\r\n") && printed.ends_with("got word\r\n"), "{kind}: {printed:?}");
        ctrd.check()?;
    }
    Ok(())
}

#[test]
fn of_several_terminals_that_are_sent_none_is_taken_and_the_client_sees_an_end() -> Result<()> {
    for copies in ["0", "2", "253"] {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let builder = ctrd.bundle("c1").args(["sleep", "1000"]).annotation("fixture/kind", "console");
        let bundle = builder.annotation("fixture/sends", copies).terminal().capture().build()?;
        let mut shim = ctrd.start(FIXTURE, &bundle)?;
        let before = super::count(&shim, "fd")?;
        let waiting = shim.run()?;
        assert_eq!(bundle.stdio().finish(LIMIT)?.stdout, b"");
        assert!(bundle.log().contains("cannot receive a container's terminal"), "{}", bundle.log());
        shim.task().kill(shim_runtime::Signal::KILL)?;
        waiting.answer(LIMIT)?;
        until("all that was sent to be closed", || {
            super::count(&shim, "fd").is_ok_and(|now| now <= before + 2)
        });
        shim.remove()?;
        ctrd.check()?;
    }
    Ok(())
}

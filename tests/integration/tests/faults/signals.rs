//! Signals at each phase of a shim's life: SIGTERM and SIGINT end it in order, SIGUSR1 has it report, and every
//! other one passes by, which costs no call and is not handed on to children (contract 9.2).

use std::path::Path;
use std::thread::JoinHandle;

use shim_runtime::{Code, Pid, Signal};
use shim_testing::{
    Bundle, Dialect, FakeContainerd, Output, Process, RawConnection, Result, Shim, listeners,
};

use super::{
    FAULTS, FIXTURE, Gate, LIMIT, adopt_orphans, answers, bundle, end, exit_status, idle, only_socket, raw,
    sleeping, until,
};

/// What ends a server in order.
const ENDING: [Signal; 2] = [Signal::TERM, Signal::INT];

/// What neither ends nor stops one: all signals that can be caught but those.
fn harmless() -> Vec<Signal> {
    let uncaught = [nix::libc::SIGKILL, nix::libc::SIGSTOP];
    let all = (1..=64).map(|number| Signal::new(number).unwrap());
    all.filter(|signal| !ENDING.contains(signal) && !uncaught.contains(&signal.number())).collect()
}

fn send(process: &Process, signals: &[Signal]) {
    for signal in signals {
        process.signal(*signal).unwrap();
    }
}

/// A `start` that waits in the constructor, and its server.
fn starting(ctrd: &FakeContainerd, gate: &Gate) -> Result<(Bundle, JoinHandle<Result<Output>>)> {
    let bundle = bundle(ctrd, "c1", "").annotation("fixture/gate-new", gate.path()).build()?;
    let launch = ctrd.launch(FIXTURE, &bundle, "start");
    Ok((bundle, std::thread::spawn(move || launch.run())))
}

fn server_of(ctrd: &FakeContainerd) -> Process {
    let server = listeners(&only_socket(ctrd).expect("a socket"));
    assert_eq!(server.len(), 1);
    Process::open(server[0]).unwrap()
}

/// The process of this run whose command line ends with an action.
fn process_with_action(ctrd: &FakeContainerd, action: &str) -> Process {
    let root = ctrd.root().to_str().unwrap();
    let is_it = |dir: &Path| {
        let line = std::fs::read(dir.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains(root) && line.trim_end_matches('\0').rsplit('\0').next() == Some(action)
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let mut found = entries.filter(|entry| is_it(&entry.path()));
    let pid = found.next().expect("that process").file_name().to_str().unwrap().parse().unwrap();
    Process::open(Pid::new(pid).unwrap()).unwrap()
}

fn answers_after_harmless_signals(shim: &Shim) -> Result<()> {
    let bundle = shim.bundle().clone();
    let reports = bundle.log().matches("holds ").count();
    send(shim.server()?, &harmless());
    until("the report", || bundle.log().matches("holds ").count() > reports);
    answers(shim)?;
    assert!(shim.server()?.is_alive());
    Ok(())
}

/// Ends a server by a signal, and what it leaves by the `delete` action.
fn terminate(mut shim: Shim, signal: Signal) -> Result<()> {
    shim.server()?.signal(signal)?;
    assert_eq!(exit_status(shim.server()?), Some(0));
    assert!(!shim.socket().exists(), "the socket is left");
    shim.delete_action()?;
    shim.abandon();
    Ok(())
}

#[test]
fn each_signal_of_the_64_ends_a_server_in_order_or_leaves_it_as_it_was() -> Result<()> {
    // The process group of a server whose parent lives in its session can be stopped by a terminal's signals.
    adopt_orphans();
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    for signal in harmless() {
        // More than once: a handler might put back the default.
        for _ in 0..3 {
            shim.server()?.signal(signal)?;
            answers(&shim).unwrap_or_else(|error| panic!("after {signal}: {error}"));
        }
        shim.server()?.signal_threads(signal)?;
        answers(&shim).unwrap_or_else(|error| panic!("after {signal} to each thread: {error}"));
    }
    end(shim)?;
    ctrd.check()
}

#[test]
fn a_fault_of_its_own_still_ends_a_server() -> Result<()> {
    for fault in ["abort", "overflow"] {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let mut shim = idle(&ctrd)?;
        // A fault that is sent from outside comes first: it must not be in the way of one's own.
        send(shim.server()?, &harmless());
        raw(&shim)?.begin(FAULTS, fault, Vec::new())?;
        assert!(shim.server()?.ended_within(LIMIT), "{fault}");
        shim.delete_action()?;
        shim.abandon();
        ctrd.check_leaks()?;
    }
    Ok(())
}

/// A mask or a disposition in a process's status file, as a set of bits.
fn signals_in(status: &str, field: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    u64::from_str_radix(value.trim(), 16).unwrap()
}

fn assert_default(what: &str, status: &str) {
    for field in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(signals_in(status, field), 0, "{field} of {what}");
    }
}

/// The C library's `posix_spawn` has its own two signals ignored in whatever it starts.
const RESERVED: u64 = 0b11 << 31;

#[test]
fn children_of_every_kind_start_with_each_signal_at_its_default_and_none_blocked() -> Result<()> {
    // What was ignored when the shim was started is not handed on either.
    let ignoring = "trap '' HUP INT QUIT USR1 USR2 PIPE ALRM TERM TSTP TTIN TTOU";
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim_binary = super::through(&ctrd, ignoring)?;
    let bundle = bundle(&ctrd, "c1", "").args(["sleep", "1000"]).build()?;
    let shim = ctrd.start(&shim_binary, &bundle)?;
    let status = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let name = |status: &str| status.lines().next().unwrap().to_owned();
    let created = shim.task().create(&bundle)?.pid;
    assert_default("the process at its gate", &status(created));
    let pid = shim.task().start()?.pid;
    assert_eq!(name(&status(pid)), "Name:\tsleep");
    assert_default("the container", &status(pid));
    let exec = shim.task().exec("e1");
    let null = ctrd.stdio("exec", shim_testing::Mode::Null, false)?;
    exec.add(&bundle, &["sleep", "1000"], &null)?;
    assert_default("the exec", &status(exec.start()?.pid));
    let mut connection = raw(&shim)?;
    assert_default("a runtime command", &super::ask(&mut connection, "status-of-command", "")?);
    let child = super::ask(&mut connection, "status-of-child", "")?;
    assert_eq!(signals_in(&child, "SigBlk"), 0);
    assert_eq!(signals_in(&child, "SigIgn") & !RESERVED, 0, "SigIgn of a child of `std`'s");
    exec.kill(Signal::KILL)?;
    exec.wait().answer(LIMIT)?;
    exec.delete()?;
    end(shim)?;
    ctrd.check()
}

#[test]
fn before_the_constructor_is_done() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let gate = Gate::new(ctrd.root(), "new");
    let (bundle, start) = starting(&ctrd, &gate)?;
    let at_gate = gate.reached();
    send(&server_of(&ctrd), &harmless());
    until("the report", || bundle.log().contains("holds 0 tasks"));
    drop(at_gate);
    let mut shim = ctrd.take_start(FIXTURE, &bundle, &start.join().unwrap()?)?;
    shim.run()?.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn an_end_before_the_constructor_is_done_fails_start_and_leaves_nothing() -> Result<()> {
    ENDING.into_iter().try_for_each(end_before_the_constructor_is_done)
}

fn end_before_the_constructor_is_done(signal: Signal) -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let gate = Gate::new(ctrd.root(), "new");
    let (bundle, start) = starting(&ctrd, &gate)?;
    let at_gate = gate.reached();
    send(&server_of(&ctrd), &[signal]);
    let output = start.join().unwrap()?;
    assert_eq!(output.code(), Some(1), "{output}");
    assert!(output.text().starts_with("the shim's server ended before it could serve"), "{output}");
    drop(at_gate);
    assert_eq!(only_socket(&ctrd), None);
    bundle.remove()?;
    ctrd.check()
}

#[test]
fn in_start() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let gate = Gate::new(ctrd.root(), "new");
    let (bundle, start) = starting(&ctrd, &gate)?;
    let at_gate = gate.reached();
    send(&process_with_action(&ctrd, "start"), &harmless());
    send(&process_with_action(&ctrd, "start"), &ENDING);
    drop(at_gate);
    let mut shim = ctrd.take_start(FIXTURE, &bundle, &start.join().unwrap()?)?;
    // What `start` does not obey, its server does.
    assert_eq!(shim.run()?.answer(LIMIT)?.exit_status, 0);
    shim.server()?.signal(Signal::TERM)?;
    assert!(shim.server()?.ended_within(LIMIT));
    assert!(!shim.socket().exists());
    shim.abandon();
    ctrd.check_leaks()
}

#[test]
fn in_delete() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let gate = Gate::new(ctrd.root(), "cleanup");
    let bundle = bundle(&ctrd, "c1", "").annotation("fixture/gate-cleanup", gate.path()).build()?;
    let shim = ctrd.start(FIXTURE, &bundle)?;
    shim.server()?.signal(Signal::TERM)?;
    assert!(shim.server()?.ended_within(LIMIT));
    let launch = ctrd.launch(FIXTURE, &bundle, "delete");
    let deleting = std::thread::spawn(move || launch.run());
    let at_gate = gate.reached();
    send(&process_with_action(&ctrd, "delete"), &harmless());
    send(&process_with_action(&ctrd, "delete"), &ENDING);
    drop(at_gate);
    let output = deleting.join().unwrap()?;
    assert!(output.success(), "{output}");
    bundle.remove()?;
    ctrd.check_leaks()
}

#[test]
fn while_idle_created_running_and_stopped() -> Result<()> {
    adopt_orphans();
    let phases = ["idle", "created", "running", "stopped"];
    for (phase, signal) in phases.into_iter().flat_map(|phase| ENDING.map(|signal| (phase, signal))) {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let bundle = bundle(&ctrd, "c1", "").args(["sleep", "1000"]).build()?;
        let shim = ctrd.start(FIXTURE, &bundle)?;
        if phase != "idle" {
            shim.task().create(&bundle)?;
        }
        if ["running", "stopped"].contains(&phase) {
            shim.task().start()?;
        }
        if phase == "stopped" {
            let waits = shim.task().wait();
            shim.task().kill(Signal::KILL)?;
            waits.answer(LIMIT)?;
        }
        answers_after_harmless_signals(&shim)?;
        terminate(shim, signal)?;
        ctrd.check_leaks()?;
    }
    Ok(())
}

#[test]
fn while_calls_hang() -> Result<()> {
    adopt_orphans();
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    let mut hung: RawConnection = raw(&shim)?;
    for _ in 0..100 {
        hung.begin(FAULTS, "hang", Vec::new())?;
    }
    answers_after_harmless_signals(&shim)?;
    terminate(shim, Signal::TERM)?;
    ctrd.check_leaks()
}

#[test]
fn while_the_shim_leaves() -> Result<()> {
    adopt_orphans();
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = idle(&ctrd)?;
    let bundle = shim.bundle().clone();
    shim.task().create(&bundle)?;
    // There is an event to be flushed, so leaving takes a while.
    ctrd.settle();
    ctrd.events().set_mute(true);
    shim.task().delete()?;
    shim.task().shutdown()?;
    shim.disconnect();
    until("the socket's end", || !shim.socket().exists());
    send(shim.server()?, &harmless());
    send(shim.server()?, &ENDING);
    assert_eq!(exit_status(shim.server()?), Some(0));
    bundle.remove()?;
    ctrd.check_leaks()
}

#[test]
fn a_storm_of_signals_loses_no_exit() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let server = shim.server()?;
        let over = &over;
        scope.spawn(move || {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                send(server, &harmless());
                std::thread::park_timeout(std::time::Duration::from_micros(200));
            }
        });
        let run = || -> Result<()> {
            let null = ctrd.stdio("exec", shim_testing::Mode::Null, false)?;
            for n in 0..40 {
                let exec = shim.task().exec(&format!("e{n}"));
                exec.add(shim.bundle(), &["sh", "-c", &format!("exit {n}")], &null)?;
                let waits = exec.wait();
                exec.start()?;
                assert_eq!(waits.answer(LIMIT)?.exit_status, n);
            }
            Ok(())
        };
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        ran.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    end(shim)?;
    ctrd.check()
}

/// Has a call wait at a gate, sends each thread of the shim a thousand signals meanwhile, and lets it go on.
fn under_a_thousand_signals<T: Send>(
    shim: &Shim,
    gate: &Gate,
    call: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let calling = scope.spawn(call);
        let at_gate = gate.reached();
        a_thousand_signals(shim.server()?);
        drop(at_gate);
        calling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn a_thousand_signals(server: &Process) {
    let kinds = [Signal::USR2.number(), nix::libc::SIGCHLD, nix::libc::SIGPROF, 34];
    for kind in kinds.into_iter().cycle().take(1000) {
        server.signal_threads(Signal::new(kind as u32).unwrap()).unwrap();
    }
}

/// A logging program that is ready once the gate was opened.
fn logger(ctrd: &FakeContainerd, gate: &Gate) -> Result<String> {
    use std::os::unix::fs::PermissionsExt;
    let path = ctrd.root().join("logger");
    let script = format!("#!/bin/sh\ncat {} >&5; printf x >&5; exec 5>&-; cat <&3 >/dev/null\n", gate.path());
    std::fs::write(&path, script)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(format!("binary://{}", path.display()))
}

#[test]
fn a_thousand_signals_to_each_thread_fail_no_call_that_waits() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let gate = |step: &str| Gate::new(ctrd.root(), step);
    let steps = ["start", "exec-e1", "pause", "resume", "kill-all", "delete"].map(|step| (step, gate(step)));
    let ready = gate("logger");
    let mut builder = bundle(&ctrd, "c1", "pausable").args(["sleep", "1000"]);
    for (step, gate) in &steps {
        builder = builder.annotation(&format!("fixture/gate-{step}"), gate.path());
    }
    let bundle = builder.log_uri(&logger(&ctrd, &ready)?).build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let (task, exec) = (shim.task(), shim.task().exec("e1"));
    let [start, exec_start, pause, resume, kill_all, delete] = steps.map(|(_, gate)| gate);
    under_a_thousand_signals(&shim, &ready, || task.create(&bundle))?;
    under_a_thousand_signals(&shim, &start, || task.start())?;
    let null = ctrd.stdio("exec", shim_testing::Mode::Null, false)?;
    exec.add(&bundle, &["sleep", "1000"], &null)?;
    under_a_thousand_signals(&shim, &exec_start, || exec.start())?;
    under_a_thousand_signals(&shim, &pause, || task.pause())?;
    under_a_thousand_signals(&shim, &resume, || task.resume())?;
    let (exec_waits, waits) = (exec.wait(), task.wait());
    exec.kill(Signal::KILL)?;
    exec_waits.answer(LIMIT)?;
    under_a_thousand_signals(&shim, &delete, || exec.delete())?;
    under_a_thousand_signals(&shim, &kill_all, || task.kill_with(Signal::KILL, true))?;
    // What an init leaves behind is killed once it has ended.
    under_a_thousand_signals(&shim, &kill_all, move || waits.answer(LIMIT))?;
    under_a_thousand_signals(&shim, &delete, || task.delete())?;
    shim.end()?;
    ctrd.check()
}

#[test]
fn a_thousand_signals_to_each_thread_fail_no_call_that_does_not() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let mut shim = sleeping(&ctrd)?;
    let over = std::sync::atomic::AtomicBool::new(false);
    let waits = shim.task().wait();
    std::thread::scope(|scope| -> Result<()> {
        let server = shim.server()?;
        let over = &over;
        scope.spawn(move || {
            a_thousand_signals(server);
            over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let task = shim.task();
        let mut connection = raw(&shim)?;
        while !over.load(std::sync::atomic::Ordering::Relaxed) {
            task.state()?;
            task.connect()?;
            task.pids()?;
            // There is none where a container has no cgroup of its own; the files are read nevertheless.
            let _ = task.stats();
            task.kill(Signal::WINCH)?;
            task.close_io()?;
            task.resize_pty(80, 24)?;
            // Nothing ends while a task is there.
            task.shutdown()?;
            let updated = task.update(&serde_json::json!({}));
            assert_eq!(updated.unwrap_err().code(), Some(Code::Unimplemented));
            super::ask(&mut connection, "status-of-command", "")?;
            super::ask(&mut connection, "status-of-child", "")?;
        }
        Ok(())
    })?;
    shim.task().kill(Signal::KILL)?;
    waits.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

//! Signals at each phase of a shim's life: SIGTERM and SIGINT end it in order, SIGUSR1 has it report, and the
//! others that may come are ignored (contract 9.2).

use std::path::Path;
use std::thread::JoinHandle;

use shim_runtime::testing::{
    Bundle, Dialect, FakeContainerd, Output, Process, RawConnection, Result, Shim, listeners,
};
use shim_runtime::{Pid, Signal};

use super::{
    FAULTS, FIXTURE, Gate, LIMIT, adopt_orphans, answers, bundle, end, exit_status, idle, only_socket, raw,
    sleeping, until,
};

/// What does not end a server.
const HARMLESS: [Signal; 3] = [Signal::HUP, Signal::PIPE, Signal::USR1];
/// What ends one in order.
const ENDING: [Signal; 2] = [Signal::TERM, Signal::INT];

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
    send(shim.server()?, &HARMLESS);
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
fn before_the_constructor_is_done() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let gate = Gate::new(ctrd.root(), "new");
    let (bundle, start) = starting(&ctrd, &gate)?;
    let at_gate = gate.reached();
    send(&server_of(&ctrd), &HARMLESS);
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
    send(&process_with_action(&ctrd, "start"), &HARMLESS);
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
    send(&process_with_action(&ctrd, "delete"), &HARMLESS);
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
    send(shim.server()?, &HARMLESS);
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
                send(server, &HARMLESS);
                std::thread::park_timeout(std::time::Duration::from_micros(200));
            }
        });
        let run = || -> Result<()> {
            let null = ctrd.stdio("exec", shim_runtime::testing::Mode::Null, false)?;
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

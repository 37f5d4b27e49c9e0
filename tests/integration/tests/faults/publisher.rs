//! A containerd that goes, refuses, hangs and comes back: events arrive in order, hold up no call (contract 7),
//! and arrive twice only where the connection broke between containerd's taking of one and its answer.

use std::time::Duration;

use shim_runtime::{Code, Signal};
use shim_testing::{Dialect, FakeContainerd, Frame, Mode, Result, api};

use super::{FIXTURE, LIMIT, answer, answers, bundle, end, number_in, raw, request, sleeping, until};

#[test]
fn events_arrive_in_order_though_containerd_goes_and_comes_while_processes_exit() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    let (task, events) = (shim.task(), ctrd.events());
    let null = ctrd.stdio("exec", Mode::Null, false)?;
    let mut expected = Vec::new();
    for round in 0..10 {
        for n in 0..4 {
            let exec = task.exec(&format!("e{round}-{n}"));
            exec.add(shim.bundle(), &["sh", "-c", &format!("exit {n}")], &null)?;
            let waits = exec.wait();
            if n == 1 {
                events.stop();
            }
            exec.start()?;
            assert_eq!(waits.answer(LIMIT)?.exit_status, n);
            if n == 2 {
                events.resume()?;
                events.lose_next_answer();
            }
            expected.push(format!("exit c1/e{round}-{n} {n}"));
        }
    }
    end(shim)?;
    expected.extend(["exit c1 137".to_owned(), "delete c1 137".to_owned()]);
    ctrd.assert_order(&expected.iter().map(String::as_str).collect::<Vec<_>>())?;
    let exits = events.all().iter().filter(|event| event.topic == "/tasks/exit").count();
    assert_eq!(exits, 41, "each once");
    ctrd.check()
}

#[test]
fn an_event_that_is_refused_for_good_is_logged_and_passed_over() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = bundle(&ctrd, "c1", "").args(["sleep", "1000"]).build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    ctrd.events().refuse_next(Code::InvalidArgument);
    shim.task().create(&bundle)?;
    until("the log of the refusal", || {
        bundle
            .log()
            .contains("containerd refused a /tasks/create event, which is passed over: refused on purpose")
    });
    shim.task().start()?;
    ctrd.events().wait_for("/tasks/start", LIMIT, |_| true)?;
    // One that may pass is tried again.
    ctrd.events().refuse_next(Code::Unavailable);
    let waits = shim.task().wait();
    shim.task().kill(Signal::KILL)?;
    waits.answer(LIMIT)?;
    ctrd.events().wait_for("/tasks/exit", LIMIT, |_| true)?;
    shim.abandon();
    assert!(ctrd.events().all().iter().all(|event| event.topic != "/tasks/create"));
    Ok(())
}

#[test]
fn a_containerd_that_is_silent_for_long_holds_up_no_call_and_gets_each_event_once() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let mut shim = sleeping(&ctrd)?;
    ctrd.settle();
    ctrd.events().set_mute(true);
    let waits = shim.task().wait();
    shim.task().kill(Signal::KILL)?;
    assert_eq!(waits.answer(LIMIT)?.exit_status, 137);
    assert_eq!(shim.task().state()?.exit_status, 137);
    shim.task().delete()?;
    // Longer than any try with a deadline would last.
    ctrd.events().wait_until::<()>(Duration::from_secs(6), |_| None);
    // A new connection to the shim is a sign of life, but not the answer.
    answers(&shim)?;
    ctrd.events().set_mute(false);
    ctrd.events().wait_for("/tasks/delete", LIMIT, |_| true)?;
    shim.end()?;
    let told: Vec<_> = ctrd.events().all().iter().map(ToString::to_string).collect();
    assert_eq!(told, ["create c1", "start c1", "exit c1 137", "delete c1 137"]);
    ctrd.check()
}

#[test]
fn an_idle_publisher_does_not_wake_up() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    ctrd.settle();
    let server = shim.server()?.pid();
    let switches = || {
        let tasks = std::fs::read_dir(format!("/proc/{server}/task")).unwrap().flatten();
        let is_it = |task: &std::fs::DirEntry| {
            shim_testing::kernel_text(task.path().join("comm")).is_ok_and(|name| name.trim() == "publisher")
        };
        let task = tasks.into_iter().find(is_it).expect("a publisher");
        number_in(&task.path().join("status").display().to_string(), "voluntary_ctxt_switches")
    };
    // The answer to the last event may just be on its way.
    let mut before = switches();
    let none = |limit| ctrd.events().wait_until::<()>(limit, |_| None);
    none(Duration::from_millis(100));
    while before != switches() {
        before = switches();
        none(Duration::from_millis(100));
    }
    none(Duration::from_millis(1500));
    assert_eq!(switches() - before, 0);
    end(shim)?;
    ctrd.check()
}

#[test]
fn the_queue_is_bounded_and_exits_are_the_last_to_go() -> Result<()> {
    const CAPACITY: u32 = 8192;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    ctrd.settle();
    ctrd.events().stop();
    let waits = shim.task().wait();
    let mut adding = raw(&shim)?;
    for n in 0..CAPACITY + 300 {
        let (id, exec_id) = ("c1".to_owned(), format!("e{n}"));
        let exec = api::ExecProcessRequest { id, exec_id, ..Default::default() };
        adding.send(&Frame::request(2 * n + 1, &request("Exec", &exec))?)?;
        assert_eq!(answer(&mut adding)?, (2 * n + 1, 0));
    }
    let bundle = shim.bundle().clone();
    shim.server()?.signal(Signal::USR1)?;
    until("the report", || bundle.log().contains(&format!("{CAPACITY} events unsent")));
    let dropped = "dropped a /tasks/exec-added event: 8192 events wait for containerd";
    assert_eq!(bundle.log().matches(dropped).count(), 300, "each is logged");
    shim.task().kill(Signal::KILL)?;
    waits.answer(LIMIT)?;
    shim.task().delete()?;
    ctrd.events().resume()?;
    ctrd.events().wait_for("/tasks/delete", LIMIT, |_| true)?;
    let came = ctrd.events().all();
    assert!(came.iter().any(|event| event.matches("exit c1 137")));
    assert!(came.iter().any(|event| event.matches("exec-added c1/e0")), "the head may be on its way");
    assert!(!came.iter().any(|event| event.matches("exec-added c1/e1")), "the oldest is given up");
    let mut shim = shim;
    shim.end()?;
    ctrd.check()
}

#[test]
fn events_that_are_left_are_flushed_before_the_end() -> Result<()> {
    super::adopt_orphans();
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    ctrd.settle();
    ctrd.events().stop();
    let waits = shim.task().wait();
    shim.task().kill(Signal::KILL)?;
    waits.answer(LIMIT)?;
    shim.task().delete()?;
    shim.task().shutdown()?;
    shim.disconnect();
    until("the socket's end", || !shim.socket().exists());
    ctrd.events().resume()?;
    assert_eq!(super::exit_status(shim.server()?), Some(0));
    let came: Vec<_> = ctrd.events().all().iter().map(ToString::to_string).collect();
    assert!(came.contains(&"delete c1 137".to_owned()), "{came:?}");
    shim.bundle().remove()?;
    ctrd.check()
}

//! Many children, and children of others: each exit goes to the one that waits for it (contract 6.5).

use std::fs::OpenOptions;
use std::io::Write;

use nix::sys::stat::Mode;
use protobuf::Message;
use rustix::process::{Pid as RawPid, Signal as RawSignal, kill_process};
use shim_runtime::Signal;
use shim_testing::{Dialect, FakeContainerd, Result, api};

use super::{
    FAULTS, FIXTURE, LIMIT, TASK, ask, bundle, children, end, raw, request, sleeping, status, until,
};

const STOP: u32 = 19;

#[test]
fn a_thousand_orphans_that_end_at_once_are_all_collected() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let go = ctrd.root().join("go");
    nix::unistd::mkfifo(&go, Mode::S_IRWXU).unwrap();
    let script = format!(
        "read x < {}; n=0; while [ $n -lt 1000 ]; do (: &); n=$((n + 1)); done; exec sleep 1000",
        go.display()
    );
    let bundle = bundle(&ctrd, "c1", "").args(["sh", "-c", &script]).build()?;
    let shim = ctrd.start(FIXTURE, &bundle)?;
    shim.task().create(&bundle)?;
    shim.task().start()?;
    let server = shim.server()?.pid();
    shim.server()?.signal(Signal::new(STOP).unwrap())?;
    OpenOptions::new().write(true).open(&go)?.write_all(b"go\n")?;
    until("a thousand zombies", || children(server).len() == 1001);
    shim.server()?.signal(Signal::CONT)?;
    until("their end", || children(server).len() == 1);
    assert_eq!(shim.task().state()?.status, api::Status::RUNNING.into());
    end(shim)?;
    ctrd.check()
}

#[test]
fn of_a_thousand_children_that_exit_at_once_no_exit_is_lost() -> Result<()> {
    const EXECS: u32 = 1000;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    let server = shim.server()?.pid();
    let spec = br#"{"args":["sleep","1000"],"cwd":"/","env":["PATH=/usr/bin:/bin"]}"#;
    let id = || "c1".to_owned();
    let mut calling = raw(&shim)?;
    let mut waiting = raw(&shim)?;
    for n in 0..EXECS {
        let exec_id = format!("e{n}");
        let any = protobuf::well_known_types::any::Any { value: spec.to_vec(), ..Default::default() };
        let exec = api::ExecProcessRequest {
            id: id(),
            exec_id: exec_id.clone(),
            spec: Some(any).into(),
            ..Default::default()
        };
        let _: api::Empty = calling.ask(TASK, "Exec", &exec)?;
        let wait = api::WaitRequest { id: id(), exec_id: exec_id.clone(), ..Default::default() };
        waiting.begin(TASK, "Wait", request("Wait", &wait).payload)?;
        let start = api::StartRequest { id: id(), exec_id, ..Default::default() };
        let _: api::StartResponse = calling.ask(TASK, "Start", &start)?;
    }
    let init = shim.task().connect()?.task_pid.to_string();
    shim.server()?.signal(Signal::new(STOP).unwrap())?;
    for child in children(server).into_iter().filter(|child| *child != init) {
        kill_process(RawPid::from_raw(child.parse().unwrap()).unwrap(), RawSignal::KILL).unwrap();
    }
    shim.server()?.signal(Signal::CONT)?;
    for _ in 0..EXECS {
        let frame = waiting.receive()?.unwrap();
        let answer = ttrpc::Response::parse_from_bytes(&frame.body).unwrap();
        assert_eq!(api::WaitResponse::parse_from_bytes(&answer.payload).unwrap().exit_status, 137);
    }
    until("the end of the zombies", || children(server) == [init.clone()]);
    let exits = |events: &[shim_testing::Event]| {
        (events.iter().filter(|event| event.topic == "/tasks/exit").count() == EXECS as usize).then_some(())
    };
    assert!(ctrd.events().wait_until(LIMIT, exits).is_some(), "{} events", ctrd.events().all().len());
    end(shim)?;
    ctrd.check()
}

#[test]
fn a_child_that_the_constructor_started_is_left_to_who_waits_for_it() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let build = |id: &str| bundle(&ctrd, id, "").group("pod").args(["true"]);
    let bundle = build("c1").annotation("fixture/new", "keeps-a-child").build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    // With their ends the reaper looks for all that it may take.
    shim.run()?.answer(LIMIT)?;
    let other = build("c2").build()?;
    let mut attached = ctrd.attach(&shim, &other)?;
    attached.run()?.answer(LIMIT)?;
    assert_eq!(ask(&mut raw(&shim)?, "collect-child", "")?, "7");
    attached.remove()?;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn a_worker_with_a_child_does_not_end_before_it_was_waited_for() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = bundle(&ctrd, "c1", "").args(["true"]).build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let server = shim.server()?.pid();
    // Two workers; the second has the child.
    let mut hung = raw(&shim)?;
    hung.begin(FAULTS, "hang", Vec::new())?;
    let mut asking = raw(&shim)?;
    ask(&mut asking, "keep-child", "")?;
    let threads = status(server, "Threads");
    drop(hung);
    until("the end of the first worker", || status(server, "Threads") < threads);
    shim.run()?.answer(LIMIT)?;
    assert_eq!(ask(&mut asking, "collect-child", "")?, "7");
    shim.remove()?;
    ctrd.check()
}

//! The wire (contract 6.6): both task services on one socket, and an answer to everything.

use shim_runtime::{Code, Signal, api};
use shim_testing::{Dialect, FakeContainerd, RawConnection, Result, Shim};

use super::{FIXTURE, LIMIT, shell};

fn running(ctrd: &FakeContainerd, kind: &str) -> Result<Shim> {
    let bundle = shell(ctrd, "c1", kind, "exec sleep 1000")?;
    let shim = ctrd.start(FIXTURE, &bundle)?;
    shim.task().create(&bundle)?;
    Ok(shim)
}

fn end(mut shim: Shim) -> Result<()> {
    shim.task().kill(Signal::KILL)?;
    shim.task().wait().answer(LIMIT)?;
    shim.remove().map(drop)
}

fn code(connection: &mut RawConnection, service: &str, method: &str) -> Result<i32> {
    Ok(connection.call(service, method, Vec::new())?.status.code.value())
}

#[test]
fn both_task_services_answer_on_one_socket_and_the_unknown_is_unimplemented() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = running(&ctrd, "")?;
    shim.task().start()?;
    let mut connection = shim.raw()?;
    let request = api::StateRequest { id: "c1".into(), ..Default::default() };
    for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
        let state: api::StateResponse = connection.ask(service, "State", &request)?;
        assert_eq!(state.status, api::Status::RUNNING.into());
        assert_eq!(code(&mut connection, service, "Levitate")?, Code::Unimplemented as i32);
    }
    assert_eq!(code(&mut connection, "containerd.task.v4.Task", "State")?, Code::Unimplemented as i32);
    end(shim)?;
    ctrd.check()
}

#[test]
fn state_connect_and_kill_go_on_while_a_start_hangs() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = running(&ctrd, "hangs-in-start")?;
    let mut hangs = shim.raw()?;
    let start =
        protobuf::Message::write_to_bytes(&api::StartRequest { id: "c1".into(), ..Default::default() });
    hangs.begin("containerd.task.v3.Task", "Start", start.unwrap())?;
    let task = shim.task();
    let waiting = task.wait();
    assert_eq!(task.state()?.status, api::Status::CREATED.into());
    assert_eq!(task.connect()?.task_pid, task.pids()?.processes[0].pid);
    task.kill(Signal::KILL)?;
    // Its exit is held until Start has returned, which it never does.
    assert!(waiting.answer(std::time::Duration::from_millis(100)).is_err());
    shim.server()?.signal(Signal::TERM)?;
    assert!(shim.server()?.ended_within(LIMIT), "a hung call does not keep the shim from ending");
    Ok(())
}

#[test]
fn a_thousand_waits_cost_no_thread_and_are_all_answered() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = running(&ctrd, "")?;
    shim.task().start()?;
    let mut connection = shim.raw()?;
    let wait = api::WaitRequest { id: "c1".into(), ..Default::default() };
    let wait = protobuf::Message::write_to_bytes(&wait).unwrap();
    for _ in 0..1000 {
        connection.begin("containerd.task.v3.Task", "Wait", wait.clone())?;
    }
    // Answered after them, so they are all parked by now.
    shim.task().state()?;
    let mut asking = shim.raw()?;
    let state = api::StateRequest { id: "c1".into(), ..Default::default() };
    let _: api::StateResponse = asking.ask("containerd.task.v3.Task", "State", &state)?;
    let status = shim_testing::kernel_text(format!("/proc/{}/status", shim.server()?.pid()))?;
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap().trim();
    assert!(threads.parse::<u32>().unwrap() <= 4, "{threads} threads");
    shim.task().kill(Signal::KILL)?;
    connection.set_timeout(Some(LIMIT))?;
    for _ in 0..1000 {
        assert!(connection.receive()?.is_some());
    }
    drop(connection);
    shim.task().wait().answer(LIMIT)?;
    let mut shim = shim;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn wrong_moves_are_refused_with_the_codes_that_containerd_acts_upon() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = running(&ctrd, "")?;
    let task = shim.task();
    let again = task.create(shim.bundle()).unwrap_err();
    assert_eq!(again.code(), Some(Code::AlreadyExists));
    task.start()?;
    assert_eq!(task.start().unwrap_err().code(), Some(Code::FailedPrecondition));
    let refused = task.delete().unwrap_err();
    assert!(refused.to_string().contains("cannot delete container `c1`: it is running"), "{refused}");
    for missing in [task.container("other").state().map(drop), task.exec("none").kill(Signal::TERM)] {
        assert_eq!(missing.unwrap_err().code(), Some(Code::NotFound));
    }
    assert_eq!(task.pause().unwrap_err().code(), Some(Code::Unimplemented));
    assert_eq!(task.resume().unwrap_err().code(), Some(Code::FailedPrecondition));
    task.resize_pty(80, 24)?;
    task.shutdown()?;
    assert_eq!(task.state()?.status, api::Status::RUNNING.into(), "a shim with a task stays");
    let waits = task.wait();
    task.kill(Signal::KILL)?;
    waits.answer(LIMIT)?;
    assert_eq!(task.kill(Signal::KILL).unwrap_err().code(), Some(Code::NotFound));
    let first = task.delete()?;
    let second = task.delete()?;
    assert_eq!(first, second, "a Delete whose answer was lost can be asked for again");
    assert_eq!(task.state().unwrap_err().code(), Some(Code::NotFound));
    let mut shim = shim;
    shim.end()?;
    ctrd.check()
}

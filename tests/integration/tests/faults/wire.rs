//! Clients that break the wire's rules: each gets the answer that the rule has for it, and its connection
//! lives on (contract 6.6).

use std::io::Write;
use std::time::Duration;

use protobuf::Message;
use shim_runtime::{Code, Signal};
use shim_testing::{Dialect, FakeContainerd, Frame, Result, api};

use super::{
    FAULTS, FIXTURE, Gate, LIMIT, MIB, TASK, answer, answers, ask, bundle, children, code_of, end, idle,
    memory, raw, sleeping, state_request, until, wait_request,
};

/// The head of a frame, whatever follows.
fn header(length: u32, stream: u32, kind: u8, flags: u8) -> Vec<u8> {
    let mut bytes = [length.to_be_bytes(), stream.to_be_bytes()].concat();
    bytes.extend([kind, flags]);
    bytes
}

#[test]
fn a_frame_above_the_limit_is_refused_and_skipped_and_its_connection_lives_on() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let mut shim = idle(&ctrd)?;
    let mut connection = raw(&shim)?;
    let length = 4 * MIB + 1;
    connection.stream().write_all(&header(length as u32, 1, 1, 0))?;
    assert_eq!(answer(&mut connection)?, (1, Code::ResourceExhausted as i32));
    connection.stream().write_all(&vec![0xff; length])?;
    // Its stream was used up, and data of that size on none is no better.
    connection.send(&Frame::request(1, &state_request("c1"))?)?;
    assert_eq!(answer(&mut connection)?, (1, Code::InvalidArgument as i32));
    connection.stream().write_all(&header(length as u32, 9, 3, 0))?;
    assert_eq!(answer(&mut connection)?, (9, Code::ResourceExhausted as i32));
    connection.stream().write_all(&vec![0xff; length])?;
    connection.send(&Frame::request(3, &state_request("c1"))?)?;
    assert_eq!(answer(&mut connection)?, (3, Code::NotFound as i32));
    shim.end()?;
    ctrd.check()
}

#[test]
fn a_connection_of_another_user_is_closed_and_logged() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("SHIM_TESTS").is_none_or(|tests| tests != "all"), "root is needed");
        println!("left out: faults::wire needs root to connect as another user");
        return Ok(());
    }
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let mut shim = idle(&ctrd)?;
    let socket = shim.socket();
    // The permissions would keep others out before anybody looks at their credentials.
    for (path, mode) in [(ctrd.root().join("s"), 0o755), (socket.clone(), 0o777)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    let connect = move || {
        let other = rustix::process::Uid::from_raw(65534);
        // Of this thread alone.
        rustix::thread::set_thread_res_uid(other, other, other).unwrap();
        let mut connection = shim_testing::RawConnection::connect(socket).unwrap();
        connection.set_timeout(Some(LIMIT)).unwrap();
        connection.receive().unwrap()
    };
    assert_eq!(std::thread::spawn(connect).join().unwrap(), None);
    let bundle = shim.bundle().clone();
    until("the log", || bundle.log().contains("refused a connection of another user"));
    answers(&shim)?;
    shim.end()?;
    ctrd.check()
}

#[test]
fn a_false_length_costs_neither_memory_nor_the_calls_of_others() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let mut shim = idle(&ctrd)?;
    answers(&shim)?;
    let before = memory(shim.server()?.pid());
    for length in [0x7fff_ffff, 0xffff_ffff] {
        let mut connection = raw(&shim)?;
        connection.stream().write_all(&header(length, 1, 1, 0))?;
        assert_eq!(answer(&mut connection)?, (1, Code::ResourceExhausted as i32));
        for _ in 0..64 {
            connection.stream().write_all(&vec![1; MIB])?;
        }
        answers(&shim)?;
    }
    let grown = memory(shim.server()?.pid()).saturating_sub(before);
    assert!(grown < MIB, "{grown} bytes more");
    shim.end()?;
    ctrd.check()
}

#[test]
fn a_frame_may_come_byte_by_byte_and_may_break_off_anywhere() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let mut shim = idle(&ctrd)?;
    let mut bytes = Vec::new();
    Frame::request(1, &state_request("c1"))?.write_to(&mut bytes)?;
    let mut slow = raw(&shim)?;
    for byte in &bytes {
        slow.stream().write_all(&[*byte])?;
    }
    assert_eq!(answer(&mut slow)?, (1, Code::NotFound as i32));
    for length in 0..bytes.len() {
        let mut broken = raw(&shim)?;
        broken.stream().write_all(&bytes[..length])?;
        broken.stream().shutdown(std::net::Shutdown::Write)?;
        assert_eq!(broken.receive()?, None, "a half-close is a hang-up");
    }
    answers(&shim)?;
    shim.end()?;
    ctrd.check()
}

#[test]
fn each_broken_rule_has_its_code_and_the_next_call_is_answered() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let mut shim = idle(&ctrd)?;
    let mut connection = raw(&shim)?;
    let state = || state_request("c1");
    let frame = |stream, flags, request: &ttrpc::Request| -> Result<Frame> {
        Ok(Frame { flags, ..Frame::request(stream, request)? })
    };
    let odd_kind = |kind| Frame { stream: 101, kind, flags: 0, body: b"whatever".to_vec() };
    // Types that mean nothing to a server are passed over.
    for kind in [0, 2, 4, 7, 255] {
        connection.send(&odd_kind(kind))?;
    }
    let unknown = ttrpc::Request { service: "no.such.Service".into(), ..state() };
    let expired = ttrpc::Request { timeout_nano: -1, ..state() };
    let garbled = ttrpc::Request { payload: vec![0xff; 5], ..state() };
    let garbled_offloaded = ttrpc::Request { method: "Create".into(), ..garbled.clone() };
    let garbled_parked = ttrpc::Request { method: "Wait".into(), ..garbled.clone() };
    let levitate = ttrpc::Request { method: "Levitate".into(), ..state() };
    let not_a_request = Frame { stream: 21, kind: 1, flags: 0, body: vec![0xff; 9] };
    for (frame, code) in [
        (frame(7, 0, &state())?, Code::NotFound),
        (frame(8, 0, &state())?, Code::InvalidArgument),
        (frame(7, 0, &state())?, Code::InvalidArgument),
        (frame(5, 0, &state())?, Code::InvalidArgument),
        (frame(0, 0, &state())?, Code::InvalidArgument),
        (frame(9, 2, &state())?, Code::Unimplemented),
        (frame(11, 1, &state())?, Code::NotFound),
        (frame(13, 0, &unknown)?, Code::Unimplemented),
        (frame(15, 0, &levitate)?, Code::Unimplemented),
        (frame(17, 0, &expired)?, Code::DeadlineExceeded),
        (frame(19, 0, &garbled)?, Code::Internal),
        (not_a_request, Code::InvalidArgument),
        (frame(23, 0, &garbled_offloaded)?, Code::Internal),
        (frame(25, 0, &garbled_parked)?, Code::Internal),
        (odd_kind(3), Code::InvalidArgument),
        (Frame { stream: 27, kind: 1, flags: 0, body: Vec::new() }, Code::Unimplemented),
        (frame(u32::MAX, 0, &state())?, Code::NotFound),
        // There is no greater one.
        (frame(1, 0, &state())?, Code::InvalidArgument),
    ] {
        connection.send(&frame)?;
        assert_eq!(answer(&mut connection)?, (frame.stream, code as i32), "{frame:?}");
    }
    answers(&shim)?;
    shim.end()?;
    ctrd.check()
}

#[test]
fn a_wait_ends_at_its_deadline_and_makes_room() -> Result<()> {
    const PARKED: u32 = 4096;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    let mut connection = raw(&shim)?;
    let brief = ttrpc::Request { timeout_nano: 1_000_000, ..wait_request("c1") };
    // More in all than may wait at a time: what has ended takes no place.
    for round in 0..3 {
        for n in 0..PARKED / 2 {
            connection.send(&Frame::request(2 * (round * PARKED + n) + 1, &brief)?)?;
        }
        for _ in 0..PARKED / 2 {
            assert_eq!(answer(&mut connection)?.1, Code::DeadlineExceeded as i32);
        }
    }
    end(shim)?;
    ctrd.check()
}

#[test]
fn an_answer_above_the_limit_becomes_resource_exhausted() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let mut shim = idle(&ctrd)?;
    let mut connection = raw(&shim)?;
    for (length, code) in [
        (4 * MIB - 100, 0),
        (4 * MIB, Code::ResourceExhausted as i32),
        (64 * MIB, Code::ResourceExhausted as i32),
    ] {
        let answer = connection.call(FAULTS, "big", length.to_string().into())?;
        assert_eq!(answer.status.code.value(), code, "{length}");
        assert_eq!(answer.payload.len(), if code == 0 { length } else { 0 });
    }
    shim.end()?;
    ctrd.check()
}

#[test]
fn metadata_reaches_the_call() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let mut shim = idle(&ctrd)?;
    let mut connection = raw(&shim)?;
    let pair = |key: &str, value: &str| ttrpc::proto::KeyValue {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    };
    let request = ttrpc::Request {
        service: FAULTS.into(),
        method: "metadata".into(),
        payload: b"b".to_vec(),
        metadata: vec![pair("a", "1"), pair("b", "2"), pair("b", "3")],
        ..Default::default()
    };
    connection.send(&Frame::request(1, &request)?)?;
    let frame = connection.receive()?.unwrap();
    assert_eq!(ttrpc::Response::parse_from_bytes(&frame.body).unwrap().payload, b"2");
    shim.end()?;
    ctrd.check()
}

#[test]
fn a_panic_in_an_authors_service_is_internal_logged_with_its_place_and_harms_nothing() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    let mut connection = raw(&shim)?;
    for _ in 0..50 {
        let answer = connection.call(FAULTS, "panic", Vec::new())?;
        assert_eq!(answer.status.code.value(), Code::Internal as i32);
        assert!(answer.status.message.contains("the service panics on purpose"), "{answer:?}");
    }
    let bundle = shim.bundle().clone();
    until("the log of a panic", || bundle.log().contains("panic at tests/integration/fixture/faults.rs:"));
    assert_eq!(shim.task().state()?.status, api::Status::RUNNING.into());
    end(shim)?;
    ctrd.check()
}

#[test]
fn a_client_that_goes_away_cancels_its_call() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let mut shim = idle(&ctrd)?;
    let mut going = raw(&shim)?;
    going.begin(FAULTS, "hang", Vec::new())?;
    let mut asking = raw(&shim)?;
    assert_eq!(ask(&mut asking, "cancelled", "")?, "0");
    drop(going);
    let asking = std::cell::RefCell::new(asking);
    until("the cancelled call", || ask(&mut asking.borrow_mut(), "cancelled", "").unwrap() == "1");
    // A deadline that passes does the same, and the answer still comes.
    let brief = ttrpc::Request {
        service: FAULTS.into(),
        method: "hang".into(),
        timeout_nano: 1_000_000,
        ..Default::default()
    };
    let mut expiring = raw(&shim)?;
    expiring.send(&Frame::request(1, &brief)?)?;
    assert_eq!(answer(&mut expiring)?, (1, 0));
    shim.end()?;
    ctrd.check()
}

#[test]
fn create_and_delete_finish_without_their_client() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let (create, delete) = (Gate::new(ctrd.root(), "create"), Gate::new(ctrd.root(), "delete"));
    let bundle = bundle(&ctrd, "c1", "")
        .annotation("fixture/gate-create", create.path())
        .annotation("fixture/gate-delete", delete.path())
        .args(["sleep", "1000"])
        .build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let path = bundle.path().display().to_string();
    let begin = |method: &str, message: &dyn protobuf::MessageDyn| -> Result<()> {
        let mut client = raw(&shim)?;
        client.begin(TASK, method, message.write_to_bytes_dyn().unwrap())?;
        let gate = if method == "Create" { &create } else { &delete };
        let at_gate = gate.reached();
        drop(client);
        // Taken before what follows, so the hang-up has been seen.
        answers(&shim)?;
        drop(at_gate);
        Ok(())
    };
    begin("Create", &api::CreateTaskRequest { id: "c1".into(), bundle: path, ..Default::default() })?;
    let task = shim.task();
    until("the container", || task.state().is_ok());
    task.start()?;
    task.kill(Signal::KILL)?;
    task.wait().answer(LIMIT)?;
    begin("Delete", &api::DeleteRequest { id: "c1".into(), ..Default::default() })?;
    until("the deletion", || task.state().is_err_and(|failure| failure.code() == Some(Code::NotFound)));
    assert_eq!(task.delete()?.exit_status, 137, "who asks again is told");
    assert_eq!(children(shim.server()?.pid()), Vec::<String>::new());
    shim.end()?;
    ctrd.assert_order(&["create c1", "start c1", "exit c1 137", "delete c1 137"])?;
    ctrd.check()
}

/// Behind a Create that hangs, as a daemon's calls that were given up: it hangs up when it has sent the last.
#[test]
fn of_a_client_that_has_left_a_delete_that_waits_is_done_and_a_start_is_not() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let gate = Gate::new(ctrd.root(), "create");
    let builder = bundle(&ctrd, "c1", "").annotation("fixture/gate-create", gate.path());
    let bundle = builder.args(["sleep", "1000"]).build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let mut leaving = raw(&shim)?;
    let (id, path) = ("c1".to_owned(), bundle.path().display().to_string());
    let create = api::CreateTaskRequest { id: id.clone(), bundle: path, ..Default::default() };
    leaving.begin(TASK, "Create", create.write_to_bytes().unwrap())?;
    let hanging = gate.reached();
    let start = api::StartRequest { id: id.clone(), ..Default::default() };
    leaving.begin(TASK, "Start", start.write_to_bytes().unwrap())?;
    let delete = api::DeleteRequest { id, ..Default::default() };
    leaving.begin(TASK, "Delete", delete.write_to_bytes().unwrap())?;
    drop(leaving);
    // Taken after the hang-up.
    answers(&shim)?;
    drop(hanging);
    ctrd.events().wait_for("/tasks/delete", LIMIT, |_| true)?;
    shim.end()?;
    let told: Vec<_> = ctrd.events().all().iter().map(ToString::to_string).collect();
    assert!(!told.iter().any(|event| event.starts_with("start")), "{told:?}");
    ctrd.check()
}

#[test]
fn the_answer_to_shutdown_arrives_before_the_end_whoever_gives_it() -> Result<()> {
    for task in ["plain", "wrapped"] {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let bundle = bundle(&ctrd, "c1", "").annotation("fixture/task", task).build()?;
        let shim = ctrd.start(FIXTURE, &bundle)?;
        let mut connection = raw(&shim)?;
        // A call that hangs does not keep the shim.
        raw(&shim)?.begin(FAULTS, "hang", Vec::new())?;
        let mut hung = raw(&shim)?;
        hung.begin(FAULTS, "hang", Vec::new())?;
        let shutdown = api::ShutdownRequest { id: "c1".into(), ..Default::default() };
        shim.disconnect();
        connection.begin(TASK, "Shutdown", shutdown.write_to_bytes().unwrap())?;
        let frame = connection.receive()?.unwrap_or_else(|| panic!("{task}: the end came first"));
        assert_eq!(code_of(&frame), 0);
        assert_eq!(connection.receive()?, None);
        assert!(shim.server()?.ended_within(LIMIT));
        assert!(!shim.socket().exists());
        bundle.remove()?;
        ctrd.check_leaks()?;
    }
    Ok(())
}

/// After a Create that took too long the daemon hangs up, and nobody would ask again.
#[test]
fn a_shutdown_counts_although_its_deadline_has_passed() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = bundle(&ctrd, "c1", "").build()?;
    let shim = ctrd.start(FIXTURE, &bundle)?;
    let mut connection = raw(&shim)?;
    shim.disconnect();
    let shutdown = api::ShutdownRequest { id: "c1".into(), ..Default::default() };
    let request = ttrpc::Request {
        method: "Shutdown".into(),
        payload: shutdown.write_to_bytes().unwrap(),
        timeout_nano: -1,
        ..state_request("c1")
    };
    connection.send(&Frame::request(1, &request)?)?;
    drop(connection);
    assert!(shim.server()?.ended_within(LIMIT));
    bundle.remove()?;
    ctrd.check_leaks()
}

#[test]
fn a_hung_call_of_an_authors_service_does_not_hold_up_kill_stats_and_pids() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    let mut hung = raw(&shim)?;
    for _ in 0..200 {
        hung.begin(FAULTS, "hang", Vec::new())?;
    }
    let task = shim.task().within(Duration::from_secs(20));
    task.pids()?;
    let _ = task.stats();
    end(shim)?;
    ctrd.check()
}

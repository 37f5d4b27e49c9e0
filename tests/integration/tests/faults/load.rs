//! Too much of everything: what is not paid for by the one who sends it is bounded, and others go on.

use std::io::{ErrorKind, Read, Write};

use protobuf::Message;
use shim_runtime::{Code, Pid, Signal};
use shim_testing::{Dialect, FakeContainerd, Frame, Mutations, RawConnection, Result, Shim, api};

use super::{
    FAULTS, FIXTURE, Gate, LIMIT, MIB, TASK, answer, answers, ask, bundle, descriptors, end, idle, memory,
    raw, request, sleeping, state_request, status, until, wait_request,
};

/// What a shim has at the most that serves no blocking call: the main thread, the publisher, the thread that is kept
/// back, and a worker of each of two kinds that has not ended yet.
const THREADS: usize = 5;

fn connections(shim: &Shim, count: usize) -> Result<Vec<RawConnection>> {
    (0..count).map(|_| raw(shim)).collect()
}

#[test]
fn five_hundred_half_open_connections_take_no_thread_and_hold_nobody_up() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    let server = shim.server()?.pid();
    let mut half_open = connections(&shim, 500)?;
    for (n, connection) in half_open.iter_mut().enumerate() {
        // Silent, in the middle of a header, in the middle of a body.
        connection.stream().write_all(&[0, 0, 0, 9, 0, 0, 0, 1, 1, 0, 7, 7][..n % 12])?;
    }
    answers(&shim)?;
    assert_eq!(shim.task().state()?.status, api::Status::RUNNING.into());
    assert!(status(server, "Threads") <= THREADS, "{} threads", status(server, "Threads"));
    let open = descriptors(server);
    assert!(open > 500, "all are open: {open}");
    drop(half_open);
    until("the end of the connections", || descriptors(server) <= open - 500);
    end(shim)?;
    ctrd.check()
}

#[test]
fn two_hundred_random_byte_streams_harm_nobody() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    let server = shim.server()?.pid();
    ctrd.settle();
    let before = descriptors(server);
    let mut random = Mutations::seeded(200);
    let mut all = connections(&shim, 200)?;
    for connection in &mut all {
        connection.stream().set_nonblocking(true)?;
        for _ in 0..=random.below(4) {
            let length = random.below(8192);
            // The shim may have hung up, or may not read on before its answers are taken.
            let _ = connection.stream().write(&random.bytes(length));
        }
    }
    answers(&shim)?;
    drop(all);
    until("the end of the connections", || descriptors(server) <= before);
    assert!(shim.server()?.is_alive());
    end(shim)?;
    ctrd.check()
}

#[test]
fn a_hundred_frames_of_four_mebibytes_that_never_come_cost_nothing() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let mut shim = idle(&ctrd)?;
    answers(&shim)?;
    let server = shim.server()?.pid();
    let before = memory(server);
    let mut all = connections(&shim, 100)?;
    for connection in &mut all {
        let mut head = (4 * MIB as u32).to_be_bytes().to_vec();
        head.extend([0, 0, 0, 1, 1, 0, 10, 200]);
        connection.stream().write_all(&head)?;
    }
    answers(&shim)?;
    let grown = memory(server).saturating_sub(before);
    assert!(grown < MIB, "{grown} bytes more");
    drop(all);
    shim.end()?;
    ctrd.check()
}

/// Sends requests until the shim takes no more of them, at most `count`.
fn send_unread(connection: &mut RawConnection, request: &ttrpc::Request, count: u32) -> Result<()> {
    connection.stream().set_nonblocking(true)?;
    let mut bytes = Vec::new();
    for n in 0..count {
        bytes.clear();
        Frame::request(2 * n + 1, request)?.write_to(&mut bytes)?;
        let mut sent = 0;
        while sent < bytes.len() {
            match connection.stream().write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock && is_full(connection) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Whether the shim has stopped to read: nothing can be sent for a while.
fn is_full(connection: &mut RawConnection) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
    let mut writable = [PollFd::new(connection.stream(), PollFlags::OUT)];
    poll(&mut writable, Some(&limit)).is_ok_and(|ready| ready == 0)
}

#[test]
fn twenty_thousand_requests_whose_answers_are_never_read_cost_no_memory_and_hold_nobody_up() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    let server = shim.server()?.pid();
    let pids = request("Pids", &api::PidsRequest { id: "c1".into(), ..Default::default() });
    shim.task().pids()?;
    for request in [state_request("c1"), pids] {
        let before = memory(server);
        let mut greedy = raw(&shim)?;
        send_unread(&mut greedy, &request, 20_000)?;
        answers(&shim)?;
        let grown = memory(server).saturating_sub(before);
        assert!(grown < MIB, "{}: {grown} bytes more", request.method);
    }
    end(shim)?;
    ctrd.check()
}

#[test]
fn large_answers_that_nobody_reads_are_left_out_beyond_a_bound() -> Result<()> {
    const CALLS: u32 = 500;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let mut shim = idle(&ctrd)?;
    answers(&shim)?;
    let server = shim.server()?.pid();
    let before = memory(server);
    let mut greedy = raw(&shim)?;
    greedy.begin_many(FAULTS, "big", MIB.to_string().into(), CALLS)?;
    // All calls are under way before a client that comes later has its own.
    ask(&mut raw(&shim)?, "cancelled", "")?;
    until("the end of the calls", || memory(server) < before + 24 * MIB);
    let mut codes = [0; 2];
    for _ in 0..CALLS {
        match answer(&mut greedy)?.1 {
            0 => codes[0] += 1,
            code => {
                assert_eq!(code, Code::ResourceExhausted as i32);
                codes[1] += 1;
            }
        }
    }
    assert!(codes[0] >= 8 && codes[1] > 0, "{codes:?}");
    assert_eq!(ask(&mut greedy, "big", "100000")?.len(), 100_000, "it is served as before");
    drop(greedy);
    shim.end()?;
    ctrd.check()
}

/// A Create that is as large as a message may be, or less.
fn create(id: &str, bundle: &str, size: usize) -> ttrpc::Request {
    let options = protobuf::well_known_types::any::Any { value: vec![7; size], ..Default::default() };
    let (id, bundle) = (id.to_owned(), bundle.to_owned());
    let options = protobuf::MessageField::some(options);
    request("Create", &api::CreateTaskRequest { id, bundle, options, ..Default::default() })
}

#[test]
fn large_calls_behind_one_that_hangs_are_bounded_by_their_bytes_and_go_with_their_client() -> Result<()> {
    const CALLS: u32 = 60;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let gate = Gate::new(ctrd.root(), "create");
    let builder = bundle(&ctrd, "c1", "").annotation("fixture/gate-create", gate.path());
    let shim = ctrd.start(FIXTURE, &builder.args(["sleep", "1000"]).build()?)?;
    let (server, path) = (shim.server()?.pid(), shim.bundle().path().display().to_string());
    let mut first = raw(&shim)?;
    first.send(&Frame::request(1, &create("c1", &path, 0))?)?;
    let hanging = gate.reached();
    let before = memory(server);
    let mut greedy = raw(&shim)?;
    let large = create("c1", &path, 4 * MIB - 1000);
    for n in 0..CALLS {
        greedy.send(&Frame::request(2 * n + 1, &large)?)?;
    }
    // It is read on, and what is small has room: only what did not fit is answered, by its code.
    greedy.send(&Frame::request(2 * CALLS + 1, &create("c1", &path, 0))?)?;
    greedy.send(&Frame::request(2 * CALLS + 3, &state_request("nobody"))?)?;
    let mut refused = 0;
    while answer(&mut greedy)? != (2 * CALLS + 3, Code::NotFound as i32) {
        refused += 1;
    }
    assert!((CALLS - 4..CALLS).contains(&refused), "{refused} were refused");
    let grown = memory(server).saturating_sub(before);
    assert!(grown < 24 * MIB, "{grown} bytes more");
    // Another client has room of its own.
    let mut other = raw(&shim)?;
    other.send(&Frame::request(1, &large)?)?;
    other.send(&Frame::request(3, &state_request("nobody"))?)?;
    assert_eq!(answer(&mut other)?, (3, Code::NotFound as i32), "the large one waits");
    drop((greedy, other));
    until("the memory's return", || memory(server) < before + 2 * MIB);
    drop(hanging);
    assert_eq!(answer(&mut first)?, (1, 0));
    drop(first);
    shim.task().start()?;
    end(shim)?;
    ctrd.check()
}

#[test]
fn unfinished_frames_of_many_clients_are_bounded_together() -> Result<()> {
    const CLIENTS: usize = 40;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let mut shim = idle(&ctrd)?;
    answers(&shim)?;
    let server = shim.server()?.pid();
    let before = memory(server);
    let mut bytes = Vec::new();
    let state = ttrpc::Request { payload: vec![0; 4 * MIB - 1000], ..state_request("nobody") };
    Frame::request(1, &state)?.write_to(&mut bytes)?;
    let (last, bytes) = bytes.split_last().unwrap();
    let mut clients = connections(&shim, CLIENTS)?;
    for client in &mut clients {
        client.stream().write_all(bytes)?;
    }
    answers(&shim)?;
    let grown = memory(server).saturating_sub(before);
    assert!(grown < 80 * MIB, "{grown} bytes more");
    let mut codes = Vec::new();
    for client in &mut clients {
        client.stream().write_all(&[*last])?;
        let (stream, code) = answer(client)?;
        assert_eq!(stream, 1);
        codes.push(code);
        client.send(&Frame::request(3, &state_request("nobody"))?)?;
        assert_eq!(answer(client)?, (3, Code::NotFound as i32), "it is served as before");
    }
    let exhausted = codes.iter().filter(|code| **code == Code::ResourceExhausted as i32).count();
    assert!(exhausted > 0 && CLIENTS - exhausted >= 12, "{codes:?}");
    drop(clients);
    until("the memory's return", || memory(server) < before + 2 * MIB);
    shim.end()?;
    ctrd.check()
}

#[test]
fn a_reader_that_is_always_behind_costs_no_memory() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let mut shim = idle(&ctrd)?;
    answers(&shim)?;
    let server = shim.server()?.pid();
    let before = memory(server);
    let mut behind = raw(&shim)?;
    behind.stream().set_nonblocking(true)?;
    // The answer repeats the name, so 64 MiB of requests are 64 MiB of answers.
    let long = "x".repeat(8192);
    let mut part = vec![0; MIB / 16];
    for n in 0..8192 {
        let mut bytes = Vec::new();
        Frame::request(2 * n + 1, &state_request(&long))?.write_to(&mut bytes)?;
        let mut left = &bytes[..];
        while !left.is_empty() {
            match behind.stream().write(left) {
                Ok(count) => left = &left[count..],
                // A little is read, less than what waits to be sent.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    match behind.stream().read(&mut part) {
                        Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
                        _ => std::thread::yield_now(),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    let grown = memory(server).saturating_sub(before);
    assert!(grown < 2 * MIB, "{grown} bytes more");
    drop(behind);
    shim.end()?;
    ctrd.check()
}

#[test]
fn of_five_hundred_waits_whose_clients_vanish_nothing_is_left() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    let server = shim.server()?.pid();
    // With them comes the connection to the events service.
    ctrd.settle();
    let before = descriptors(server);
    let mut grown = Vec::new();
    for _ in 0..4 {
        let mut waiting = connections(&shim, 250)?;
        for connection in &mut waiting {
            // One that waits for ever and one with a deadline that does not come.
            connection.send(&Frame::request(1, &wait_request("c1"))?)?;
            let patient = ttrpc::Request { timeout_nano: 1 << 50, ..wait_request("c1") };
            connection.send(&Frame::request(3, &patient)?)?;
            connection.send(&Frame::request(5, &state_request("c1"))?)?;
            assert_eq!(answer(connection)?, (5, 0));
        }
        drop(waiting);
        until("the end of the connections", || descriptors(server) <= before);
        assert!(status(server, "Threads") <= THREADS);
        grown.push(memory(server));
    }
    assert!(grown[3].saturating_sub(grown[0]) < MIB / 4, "{grown:?}");
    shim.server()?.signal(Signal::USR1)?;
    let bundle = shim.bundle().clone();
    until("the report", || bundle.log().contains("holds 1 tasks and 1 connections"));
    end(shim)?;
    ctrd.check()
}

#[test]
fn calls_beyond_the_limits_of_a_connection_are_refused_and_the_others_answered() -> Result<()> {
    const CALLS: u32 = 1024;
    const PARKED: u32 = 4096;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    let exhausted = Code::ResourceExhausted as i32;
    let mut hung = raw(&shim)?;
    for _ in 0..CALLS {
        hung.begin(FAULTS, "hang", Vec::new())?;
    }
    for stream in [2 * CALLS + 1, 2 * CALLS + 3] {
        assert_eq!(hung.begin(FAULTS, "cancelled", Vec::new())?, stream);
        assert_eq!(answer(&mut hung)?, (stream, exhausted));
    }
    let mut parked = raw(&shim)?;
    for n in 0..PARKED {
        parked.send(&Frame::request(2 * n + 1, &wait_request("c1"))?)?;
    }
    let next = 2 * PARKED + 1;
    parked.send(&Frame::request(next, &wait_request("c1"))?)?;
    assert_eq!(answer(&mut parked)?, (next, exhausted));
    parked.send(&Frame::request(next + 2, &state_request("c1"))?)?;
    assert_eq!(answer(&mut parked)?, (next + 2, 0), "others are not counted among the waiting");
    shim.task().kill(Signal::KILL)?;
    for _ in 0..PARKED {
        assert_eq!(answer(&mut parked)?.1, 0);
    }
    drop(hung);
    let mut shim = shim;
    shim.task().wait().answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn with_64_hung_starts_and_200_queued_all_other_calls_are_answered() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let group = |id: &str, kind: &str| bundle(&ctrd, id, kind).group("pod").args(["sleep", "1000"]).build();
    let first = group("c1", "")?;
    let shim = ctrd.start(FIXTURE, &first)?;
    let task = shim.task();
    task.create(&first)?;
    task.start()?;
    let hanging = group("hanging", "hangs")?;
    let path = hanging.path().display().to_string();
    let mut starting = raw(&shim)?;
    for n in 0..264 {
        let id = format!("h{n}");
        let create = api::CreateTaskRequest { id: id.clone(), bundle: path.clone(), ..Default::default() };
        let _: api::CreateTaskResponse = starting.ask(TASK, "Create", &create)?;
    }
    let start = |id: String| api::StartRequest { id, ..Default::default() }.write_to_bytes().unwrap();
    for n in 0..264 {
        starting.begin(TASK, "Start", start(format!("h{n}")))?;
    }
    let server = shim.server()?.pid();
    until("64 hung calls", || status(server, "Threads") >= 64 + 2);
    assert_eq!(task.state()?.status, api::Status::RUNNING.into());
    assert_ne!(task.connect()?.task_pid, 0);
    assert_eq!(task.pids()?.processes.len(), 1);
    // Whether there is something to be measured depends on the machine.
    let _ = task.stats().inspect_err(|failure| assert_ne!(failure.code(), Some(Code::DeadlineExceeded)));
    let other = task.container("h7");
    assert_eq!(other.state()?.status, api::Status::CREATED.into());
    other.pids()?;
    let waits = task.wait();
    task.kill(Signal::KILL)?;
    assert_eq!(waits.answer(LIMIT)?.exit_status, 137);
    let threads = status(server, "Threads");
    assert!(threads <= 64 + 16 + 3, "{threads} threads");
    shim.server()?.signal(Signal::TERM)?;
    assert!(shim.server()?.ended_within(LIMIT), "hung calls do not keep the shim");
    assert!(!shim.socket().exists());
    Ok(())
}

/// Of a task of the author's, whose every call goes to a worker.
#[test]
fn state_connect_and_wait_are_answered_while_the_author_s_kills_and_states_hang() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle =
        bundle(&ctrd, "c1", "").annotation("fixture/task", "wrapped").args(["sleep", "1000"]).build()?;
    let shim = ctrd.start(FIXTURE, &bundle)?;
    let (task, waiting) = (shim.task(), shim.run()?);
    let server = shim.server()?.pid();
    let mut hung = raw(&shim)?;
    for n in 0..200 {
        // More than there are threads of that kind, and more than one container may have.
        for id in [format!("hangs-{}", n % 100), "hangs-0".to_owned()] {
            let kill = api::KillRequest { id, signal: 9, ..Default::default() };
            hung.begin(TASK, "Kill", kill.write_to_bytes().unwrap())?;
        }
    }
    until("hung kills", || status(server, "Threads") >= 64);
    assert_eq!(task.state()?.status, api::Status::RUNNING.into());
    assert_ne!(task.connect()?.task_pid, 0);
    let state = api::StateRequest { id: "hangs-1".into(), ..Default::default() };
    for _ in 0..64 {
        hung.begin(TASK, "State", state.write_to_bytes().unwrap())?;
    }
    assert_eq!(task.state()?.status, api::Status::RUNNING.into());
    assert_ne!(task.connect()?.task_pid, 0);
    assert_eq!(task.exec("e1").state().unwrap_err().code(), Some(Code::NotFound));
    // The end of the init is told to who waited before, and to who waits now.
    let pid = Pid::new(task.state()?.pid).unwrap();
    shim_testing::Process::open(pid)?.signal(Signal::KILL)?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 137);
    assert_eq!(task.wait().answer(LIMIT)?.exit_status, 137);
    task.delete()?;
    assert!(status(server, "Threads") <= 64 + 4 + 5, "{} threads", status(server, "Threads"));
    shim.server()?.signal(Signal::TERM)?;
    assert!(shim.server()?.ended_within(LIMIT), "hung calls do not keep the shim");
    bundle.remove()?;
    ctrd.check_leaks()
}

#[test]
fn a_helper_that_floods_standard_error_holds_nobody_up() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = sleeping(&ctrd)?;
    let pid = ask(&mut raw(&shim)?, "flood-stderr", "")?;
    let bundle = shim.bundle().clone();
    until("the flood", || bundle.log().contains("msg=\"y\""));
    for _ in 0..20 {
        answers(&shim)?;
    }
    let flooding = shim_testing::Process::open(Pid::new(pid.parse().unwrap()).unwrap())?;
    assert!(flooding.is_alive());
    flooding.signal(Signal::KILL)?;
    end(shim)?;
    ctrd.check()
}

//! A system that has no more to give: what cannot be had is gone without, or waited for without spinning.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::sys::stat::Mode;
use shim_runtime::{Code, Pid, Signal};
use shim_testing::{Dialect, FakeContainerd, Frame, Process, RawConnection, Result, Shim, listeners};

use super::{FIXTURE, LIMIT, MIB, answers, bundle, idle, memory, raw, state_request, through};

#[test]
fn a_log_that_nobody_reads_holds_nothing_up() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = bundle(&ctrd, "c1", "").args(["sh", "-c", "exit 5"]).build()?;
    let path = bundle.path().join("log");
    std::fs::remove_file(&path)?;
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    let mut log =
        OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(&path)?;
    while !log.write(&[b'x'; 512]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {}
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    // The first costs a worker and its stack.
    raw(&shim)?.call(super::FAULTS, "panic", Vec::new())?;
    let before = memory(shim.server()?.pid());
    for _ in 0..200 {
        shim.server()?.signal(Signal::USR1)?;
        // What goes to standard error goes to the log.
        assert!(raw(&shim)?.call(super::FAULTS, "panic", Vec::new())?.status.code.value() != 0);
    }
    assert_eq!(shim.run()?.answer(LIMIT)?.exit_status, 5);
    let grown = memory(shim.server()?.pid()).saturating_sub(before);
    assert!(grown < MIB, "{grown} bytes more");
    shim.remove()?;
    ctrd.check()
}

/// Processor time that a process has used, in ticks of 10 ms.
fn ticks(pid: Pid) -> u64 {
    let stat = shim_testing::kernel_text(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn connections_beyond_the_descriptor_limit_are_served_later_and_cost_no_time_meanwhile() -> Result<()> {
    const CLIENTS: usize = 60;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let limited = through(&ctrd, "ulimit -n 32")?;
    let bundle = bundle(&ctrd, "c1", "").args(["sh", "-c", "exit 6"]).build()?;
    let mut shim = ctrd.start(&limited, &bundle)?;
    let server = shim.server()?.pid();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = shim.raw()?;
        client.send(&Frame::request(1, &state_request("nobody"))?)?;
        clients.push(client);
    }
    // As many as there are descriptors are served; the others wait in the backlog.
    let mut waiting = Vec::new();
    let mut answered = Vec::new();
    for mut client in clients {
        client.set_timeout(Some(Duration::from_millis(if waiting.is_empty() { 2000 } else { 1 })))?;
        match client.receive() {
            Ok(Some(_)) => answered.push(client),
            _ => waiting.push(client),
        }
    }
    assert!(!answered.is_empty() && waiting.len() > CLIENTS / 4, "{} wait", waiting.len());
    let before = ticks(server);
    let none = |limit| ctrd.events().wait_until::<()>(limit, |_| None);
    none(Duration::from_secs(2));
    let used = ticks(server) - before;
    assert!(used <= 20, "{used} ticks of 200 while it could do nothing");
    assert_eq!(bundle.log().matches("cannot accept a connection for now").count(), 1, "said once");
    // Those who leave make room for those who wait.
    drop(answered);
    for mut client in waiting {
        client.set_timeout(Some(LIMIT))?;
        assert!(client.receive()?.is_some());
    }
    assert_eq!(shim.run()?.answer(LIMIT)?.exit_status, 6);
    shim.remove()?;
    ctrd.check()
}

#[test]
fn without_descriptors_calls_fail_by_name_and_the_end_is_in_order() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let limited = through(&ctrd, "ulimit -n 32")?;
    let bundle = bundle(&ctrd, "c1", "").args(["sleep", "1000"]).build()?;
    let shim = ctrd.start(&limited, &bundle)?;
    let clients: Vec<_> = (0..60).map(|_| shim.raw()).collect::<Result<_, _>>()?;
    // The shim's own connection was accepted before them, and its descriptors are used up by them.
    super::until("the shortage", || super::descriptors(shim.server().unwrap().pid()) >= 32);
    let refused = shim.task().create(&bundle).unwrap_err();
    assert!(refused.to_string().contains("/config.json`: "), "{refused}");
    assert_eq!(shim.task().state().unwrap_err().code(), Some(Code::NotFound));
    shim.server()?.signal(Signal::TERM)?;
    assert!(shim.server()?.ended_within(LIMIT));
    assert!(!shim.socket().exists(), "the socket is left");
    drop(clients);
    shim.bundle().remove()?;
    ctrd.check_leaks()
}

/// What is said of a shortage of descriptors must begin with what could not be had; the call alone is too little.
fn assert_named(text: &str) {
    let Some((before, _)) = text.split_once(": Too many open files") else {
        // Where the shortage is met by another program, such as the shell, that program tells of it.
        return;
    };
    let clause = before.rsplit(": ").next().unwrap();
    let says_what = clause.starts_with("cannot ") && !clause.starts_with("cannot create container");
    assert!(says_what, "what could not be had is not named: {text}");
}

#[test]
fn a_start_that_lacks_descriptors_names_what_it_needed_one_for() -> Result<()> {
    let mut refused = 0;
    for limit in 4..32 {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let limited = through(&ctrd, &format!("ulimit -n {limit}"))?;
        let bundle = bundle(&ctrd, "c1", "").args(["sleep", "1000"]).build()?;
        let output = ctrd.launch(&limited, &bundle, "start").run()?;
        if output.success() {
            // What it then still has is enough to begin with; nobody uses it.
            for server in listeners(&super::only_socket(&ctrd).unwrap()) {
                let server = Process::open(server)?;
                server.signal(Signal::TERM)?;
                assert!(server.ended_within(LIMIT));
            }
            bundle.remove()?;
            break;
        }
        refused += 1;
        assert_named(&output.text());
        assert_eq!(super::only_socket(&ctrd), None, "limit {limit}: {output}");
        bundle.remove()?;
    }
    assert!(refused > 4, "{refused} limits were too low");
    Ok(())
}

#[test]
fn a_create_that_lacks_descriptors_names_what_it_needed_one_for() -> Result<()> {
    const DESCRIPTORS: usize = 48;
    let mut refused = 0;
    for left in 0..12 {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let limited = through(&ctrd, &format!("ulimit -n {DESCRIPTORS}"))?;
        let bundle = bundle(&ctrd, "c1", "").args(["sleep", "1000"]).capture().build()?;
        let mut shim = ctrd.start(&limited, &bundle)?;
        let server = shim.server()?.pid();
        let mut clients = Vec::new();
        while super::descriptors(server) < DESCRIPTORS - left {
            let held = super::descriptors(server);
            clients.push(shim.raw()?);
            super::until("the connection", || super::descriptors(server) > held);
        }
        if let Err(error) = shim.task().create(&bundle) {
            refused += 1;
            assert_named(&error.to_string());
        }
        shim.server()?.signal(Signal::KILL)?;
        assert!(shim.server()?.ended_within(LIMIT));
        drop(clients);
        shim.delete_action()?;
        shim.abandon();
    }
    assert!(refused > 4, "{refused} numbers of descriptors were too few");
    Ok(())
}

#[test]
fn a_shortage_of_descriptors_leaves_no_console_socket_behind() -> Result<()> {
    let (mut created, mut refused) = (0, 0);
    for limit in 12..48 {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let folder = ctrd.root().join("tmp");
        std::fs::create_dir(&folder)?;
        let script = format!("ulimit -n {limit}; export TMPDIR={}; unset XDG_RUNTIME_DIR", folder.display());
        let builder = bundle(&ctrd, "c1", "console").args(["sleep", "1000"]).terminal();
        let bundle = builder.capture().build()?;
        // With too few there is not even a shim.
        let Ok(shim) = ctrd.start(&through(&ctrd, &script)?, &bundle) else { continue };
        match shim.task().create(&bundle) {
            Ok(_) => created += 1,
            Err(_) => refused += 1,
        }
        shim.server()?.signal(Signal::TERM)?;
        assert!(shim.server()?.ended_within(LIMIT));
        let left: Vec<_> = std::fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "with {limit} descriptors {left:?} is left");
    }
    assert!(created > 0 && refused > 0, "{created} created, {refused} refused");
    Ok(())
}

#[test]
fn an_idle_shim_uses_no_time() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let mut shim = idle(&ctrd)?;
    let mut silent = raw(&shim)?;
    silent.stream().write_all(&[0, 0, 0])?;
    // A frame that is being skipped, and one that will not end.
    let mut skipping = raw(&shim)?;
    skipping.stream().write_all(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0, 1])?;
    assert!(skipping.receive()?.is_some_and(|frame| frame.write_to(std::io::sink()).is_ok()));
    answers(&shim)?;
    let before = ticks(shim.server()?.pid());
    ctrd.events().wait_until::<()>(Duration::from_secs(1), |_| None);
    let used = ticks(shim.server()?.pid()) - before;
    assert!(used <= 5, "{used} ticks of 100");
    // Who has called nothing yet is waited for.
    drop((silent, skipping));
    shim.end()?;
    ctrd.check()
}

/// Takes from a shim the room for further threads, until the returned connection is dropped and the limit lifted.
fn take_threads(shim: &Shim) -> Result<RawConnection> {
    let server = shim.server()?.pid();
    // Until the workers that started it have ended, they would take the calls.
    super::until("the end of the workers", || super::status(server, "Threads") <= 3);
    // Less than a stack, were it not for those of threads that have ended, which are used again.
    limit_memory(server, Some((super::status(server, "VmSize") as u64 + 256) << 10));
    let mut hung = raw(shim)?;
    for _ in 0..32 {
        hung.begin(super::FAULTS, "hang", Vec::new())?;
    }
    // Behind them, so they have been read, and have taken the stacks that were left.
    let state = state_request("c1");
    hung.call(&state.service, &state.method, state.payload)?;
    Ok(hung)
}

fn limit_memory(server: Pid, limit: Option<u64>) {
    use rustix::process::{Resource, Rlimit, prlimit};
    let pid = rustix::process::Pid::from_raw(server.get() as i32);
    prlimit(pid, Resource::As, Rlimit { current: limit, maximum: None }).unwrap();
}

#[test]
fn calls_for_which_there_is_no_thread_are_refused_and_the_others_answered() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = super::sleeping(&ctrd)?;
    let mut calling = raw(&shim)?;
    let hung = take_threads(&shim)?;
    let pids =
        super::request("Pids", &shim_runtime::api::PidsRequest { id: "c1".into(), ..Default::default() });
    let answer = calling.call(&pids.service, &pids.method, pids.payload.clone())?;
    assert_eq!(answer.status.code.value(), Code::ResourceExhausted as i32, "{answer:?}");
    answers(&shim)?;
    limit_memory(shim.server()?.pid(), None);
    drop(hung);
    let answer = calling.call(&pids.service, &pids.method, pids.payload)?;
    assert_eq!(answer.status.code.value(), 0, "{answer:?}");
    super::end(shim)?;
    ctrd.check()
}

#[test]
fn a_container_is_ended_and_deleted_where_there_is_no_thread_to_be_had() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    // Its pids are not its own, so that its exit is told after a kill of the rest, which needs a thread as well.
    let mut shim = super::sleeping(&ctrd)?;
    let waiting = shim.task().wait();
    let hung = take_threads(&shim)?;
    shim.task().kill(Signal::KILL)?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 137);
    shim.task().delete()?;
    assert!(shim.bundle().log().contains("cannot start a worker"));
    limit_memory(shim.server()?.pid(), None);
    drop(hung);
    shim.end()?;
    ctrd.check()
}

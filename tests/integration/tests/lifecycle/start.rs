//! `start` and the end of servers: who gets the socket, and what is left when something fails (contract 2.5, 4).

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use shim_runtime::{Pid, Signal};
use shim_testing::{
    Bundle, Dialect, FakeContainerd, KERNEL_LACKS, Launch, Process, RawConnection, Result, STOP_AT,
    listeners, related_to,
};

use super::{BOTH, FIXTURE, LIMIT, bundle, names, shell};

/// Runs `start` and gives back its sentence; it must fail and leave nothing.
fn refused(ctrd: &FakeContainerd, launch: &Launch) -> Result<String> {
    let before = names(&launch.cwd);
    let output = launch.run()?;
    assert_eq!(output.code(), Some(1), "{output}");
    assert!(!output.kept_open, "something holds the output");
    assert_eq!(names(&launch.cwd), before, "nothing may be left in the bundle");
    assert_eq!(names(&ctrd.root().join("s")), Vec::<String>::new(), "no socket may be left");
    let text = output.text();
    assert_eq!(text.trim_end().lines().count(), 1, "one sentence: {text}");
    Ok(text)
}

#[test]
fn a_server_that_panics_in_the_constructor_fails_start_with_its_words() -> Result<()> {
    for (behaviour, words) in [
        ("panic", "the shim panicked: the constructor panics on purpose"),
        ("fail", "the constructor fails on purpose"),
    ] {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let bundle = bundle(&ctrd, "c1", "").annotation("fixture/new", behaviour).args(["true"]).build()?;
        let text = refused(&ctrd, &ctrd.launch(FIXTURE, &bundle, "start"))?;
        assert_eq!(text.trim_end(), words);
        bundle.remove()?;
        ctrd.check()?;
    }
    Ok(())
}

#[test]
fn a_server_without_a_log_or_an_events_address_fails_start() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::LEGACY)?;
    let bundle = shell(&ctrd, "c1", "", "true")?;
    let mut launch = ctrd.launch(FIXTURE, &bundle, "start");
    launch.env.retain(|(name, _)| name != "TTRPC_ADDRESS");
    assert!(refused(&ctrd, &launch)?.starts_with("events have nowhere to go"));
    std::fs::remove_file(bundle.path().join("log"))?;
    let launch = ctrd.launch(FIXTURE, &bundle, "start");
    assert!(refused(&ctrd, &launch)?.contains("cannot open log"));
    bundle.remove()?;
    ctrd.check()
}

/// Where the shim of `c1` listened, which has ended.
fn former_socket(ctrd: &FakeContainerd) -> Result<PathBuf> {
    let bundle = shell(ctrd, "c1", "", "exit 0")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    shim.run()?.answer(LIMIT)?;
    shim.remove()?;
    assert!(!shim.socket().exists());
    Ok(shim.socket())
}

#[test]
fn a_stale_socket_is_taken_over_at_once() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let socket = former_socket(&ctrd)?;
    // Bound and closed: nobody will ever answer there.
    drop(UnixListener::bind(&socket)?);
    let again = shell(&ctrd, "c1", "", "exit 0")?;
    let mut shim = ctrd.start(FIXTURE, &again)?;
    assert_eq!(shim.socket(), socket);
    shim.run()?.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn a_shim_that_is_being_killed_is_no_shim_of_its_group_any_more() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let socket = former_socket(&ctrd)?;
    // The kernel ends a process's connections one by one, so it may still be listening.
    let listener = UnixListener::bind(&socket)?;
    let dying = std::thread::spawn(move || drop((listener.accept(), listener)));
    let again = shell(&ctrd, "c1", "", "exit 0")?;
    let mut shim = ctrd.start(FIXTURE, &again)?;
    dying.join().unwrap();
    shim.run()?.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

/// Waits until a process that runs `start` for a bundle has stopped itself.
fn stopped_start(bundle: &Bundle) -> Process {
    let is_it = |pid: &Pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        line.ends_with(b"\0start\0") && state.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"))
    };
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(pid) = related_to(bundle.path().to_str().unwrap()).iter().find(|pid| is_it(pid)) {
            return Process::open(*pid).unwrap();
        }
        assert!(Instant::now() < end, "no `start` has stopped");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn a_start_that_is_stopped_while_it_holds_its_lock_holds_up_no_other_shim() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let build = |id: &str, group: &str| bundle(&ctrd, id, "").group(group).args(["true"]).build();
    let (first, mate, other) = (build("c1", "pod")?, build("c2", "pod")?, build("c3", "other")?);
    let mut launch = ctrd.launch(FIXTURE, &first, "start");
    launch.env.push((STOP_AT.into(), "socket.locked".into()));
    let starting = std::thread::spawn(move || launch.run());
    let stopped = stopped_start(&first);
    let mut shim = ctrd.start(FIXTURE, &other)?;
    shim.run()?.answer(LIMIT)?;
    shim.remove()?;
    let refused = ctrd.launch(FIXTURE, &mate, "start").run()?;
    assert_eq!(refused.code(), Some(1), "{refused}");
    assert!(refused.text().contains(".lock` for 2s; it may be stopped"), "{refused}");
    stopped.signal(Signal::CONT)?;
    let mut shim = ctrd.take_start(FIXTURE, &first, &starting.join().unwrap()?)?;
    assert_eq!(names(&ctrd.root().join("s")).len(), 1, "the lock goes with its holder");
    let mut second = ctrd.start(FIXTURE, &mate)?;
    for shim in [&mut shim, &mut second] {
        shim.run()?.answer(LIMIT)?;
        shim.remove()?;
    }
    ctrd.check()
}

#[test]
fn a_lock_that_a_killed_start_left_behind_is_taken_over_and_removed() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let socket = former_socket(&ctrd)?;
    std::fs::write(socket.with_added_extension("lock"), "")?;
    let bundle = shell(&ctrd, "c1", "", "exit 0")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    assert_eq!(names(&ctrd.root().join("s")).len(), 1);
    shim.run()?.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

/// Fills the queue of a listener that takes no connection.
fn fill(socket: &Path) -> Vec<std::os::fd::OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket as make};
    let address = UnixAddr::new(socket).unwrap();
    let connecting = || {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = make(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &address).ok().map(|()| fd)
    };
    std::iter::from_fn(connecting).collect()
}

#[test]
fn a_shim_that_does_not_answer_is_named_as_that_whether_its_queue_is_full_or_not() -> Result<()> {
    for is_full in [false, true] {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let socket = former_socket(&ctrd)?;
        let mute = UnixListener::bind(&socket)?;
        let waiting = if is_full { fill(&socket) } else { Vec::new() };
        let bundle = shell(&ctrd, "c1", "", "exit 0")?;
        let output = ctrd.launch(FIXTURE, &bundle, "start").run()?;
        assert_eq!(output.code(), Some(1), "{output}");
        let (text, path) = (output.text(), socket.display());
        let expected =
            format!("the shim at socket `{path}` does not answer within 10s; it may be stopped, or hang");
        assert_eq!(text.trim_end(), expected);
        assert!(socket.exists(), "a living shim's socket is not for others to take away");
        drop((mute, waiting));
        std::fs::remove_file(&socket)?;
        bundle.remove()?;
        ctrd.check()?;
    }
    Ok(())
}

#[test]
fn a_handoff_by_hand_takes_no_descriptor_that_is_in_use() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "exit 0")?;
    // The standard ones, none, a file under the number that `start` uses, and one that cannot be.
    for (number, more) in [("0", ""), ("1", ""), ("2", ""), ("4", ""), ("4", "4</dev/null"), ("-1", "")] {
        let command = format!("exec {FIXTURE} -namespace n -id c1 -handoff={number} {more}");
        let output =
            std::process::Command::new("sh").args(["-c", &command]).current_dir(bundle.path()).output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.starts_with(&format!("`-handoff {number}` is what `start` says to its server")),
            "{text}"
        );
        assert!(text.trim_end().ends_with("; say `start`"), "{text}");
    }
    bundle.remove()?;
    ctrd.check()
}

#[test]
fn of_many_starts_of_one_group_at_once_one_makes_the_server_and_all_get_it() -> Result<()> {
    for dialect in BOTH {
        let ctrd = FakeContainerd::new(dialect)?;
        let build = |n: usize| bundle(&ctrd, &format!("c{n}"), "").group("pod").args(["true"]).build();
        let bundles = (0..8).map(build).collect::<Result<Vec<_>>>()?;
        let outputs = std::thread::scope(|scope| {
            let starts = bundles.iter().map(|bundle| {
                let launch = ctrd.launch(FIXTURE, bundle, "start");
                scope.spawn(move || launch.run())
            });
            let starts: Vec<_> = starts.collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect::<Result<Vec<_>>>()
        })?;
        let take = |(bundle, output)| ctrd.take_start(FIXTURE, bundle, output);
        let mut shims = bundles.iter().zip(&outputs).map(take).collect::<Result<Vec<_>>>()?;
        let servers = listeners(&shims[0].socket());
        assert_eq!(servers.len(), 1, "{servers:?}");
        for shim in &mut shims {
            shim.run()?.answer(LIMIT)?;
            shim.remove()?;
        }
        ctrd.check()?;
    }
    Ok(())
}

#[test]
fn a_start_for_a_living_group_answers_in_the_form_that_it_was_asked_in() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let build = |id: &str| bundle(&ctrd, id, "").group("pod").args(["true"]).build();
    let (first, second) = (build("c1")?, build("c2")?);
    let mut one = ctrd.start(FIXTURE, &first)?;
    let mut two = ctrd.start(FIXTURE, &second)?;
    assert_eq!((one.answer().version, one.socket()), (two.answer().version, two.socket()));
    for shim in [&mut one, &mut two] {
        shim.run()?.answer(LIMIT)?;
    }
    one.remove()?;
    two.remove()?;
    ctrd.check()
}

#[test]
fn a_server_ends_on_sigterm_without_its_socket_and_delete_ends_its_container() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "exec sleep 1000")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    shim.run()?;
    shim.server()?.signal(Signal::TERM)?;
    assert!(shim.server()?.ended_within(LIMIT));
    assert!(!shim.socket().exists(), "the socket goes in order");
    assert_eq!(shim.delete_action()?.exit_status, 137);
    shim.abandon();
    Ok(())
}

#[test]
fn a_kernel_that_lacks_the_newer_calls_is_enough_for_a_life_and_its_delete() -> Result<()> {
    let lacking = "close_range,pidfd_open,LOOP_CONFIGURE";
    let ctrd = FakeContainerd::builder(Dialect::PARAMS).env(KERNEL_LACKS, lacking).build()?;
    // A descriptor that the daemon has let through.
    let script = ctrd.root().join("containerd-shim-fixture-v1");
    std::fs::write(&script, format!("#!/bin/sh\nexec {FIXTURE} \"$@\" 7</dev/zero\n"))?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let bundle = shell(&ctrd, "c1", "", "exec sleep 1000")?;
    let mut shim = ctrd.start(&script, &bundle)?;
    shim.run()?;
    let held = std::fs::read_dir(format!("/proc/{}/fd", shim.server()?.pid()))?.flatten();
    let held: Vec<_> = held.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect();
    assert!(!held.contains(&PathBuf::from("/dev/zero")), "{held:?}");
    let init = Process::open(Pid::new(shim.task().state()?.pid).unwrap())?;
    shim.server()?.signal(Signal::KILL)?;
    assert!(shim.server()?.ended_within(LIMIT));
    assert_eq!(shim.delete_action()?.exit_status, 137);
    assert!(!init.is_alive(), "`delete` waits for the end of what it kills");
    shim.abandon();
    Ok(())
}

#[test]
fn delete_after_a_killed_shim_tells_the_exit_that_was_seen() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "exit 9")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let exit = shim.run()?.answer(LIMIT)?;
    shim.server()?.signal(Signal::KILL)?;
    assert!(shim.server()?.ended_within(LIMIT));
    for _ in 0..2 {
        let deleted = shim.delete_action()?;
        assert_eq!((deleted.exit_status, deleted.exited_at), (9, exit.exited_at.clone()));
    }
    assert!(!shim.socket().exists(), "a dead shim's socket is removed");
    shim.abandon();
    Ok(())
}

/// Which is all that a shim of Go's leaves there under containerd 2.
#[test]
fn delete_takes_a_dead_shim_s_socket_away_that_only_the_daemon_s_file_names() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "exit 9")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    shim.run()?.answer(LIMIT)?;
    shim.server()?.signal(Signal::KILL)?;
    assert!(shim.server()?.ended_within(LIMIT));
    let address = std::fs::read_to_string(bundle.path().join("address"))?;
    let told = serde_json::json!({ "version": 3, "address": address, "protocol": "ttrpc" });
    std::fs::write(bundle.path().join("bootstrap.json"), told.to_string())?;
    std::fs::remove_file(bundle.path().join("address"))?;
    shim.delete_action()?;
    assert!(!shim.socket().exists());
    shim.abandon();
    Ok(())
}

#[test]
fn a_shim_that_nobody_uses_ends_by_itself() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "true")?;
    let output = ctrd.launch(FIXTURE, &bundle, "start").run()?;
    let answer = shim_testing::bootstrap::Answer::parse(Dialect::PARAMS, &output.stdout).unwrap();
    let socket = answer.path().unwrap();
    let server = Process::open(listeners(&socket)[0])?;
    let began = Instant::now();
    // A connection that never says anything is no use.
    let _silent = std::os::unix::net::UnixStream::connect(&socket)?;
    assert!(server.ended_within(LIMIT));
    assert!(began.elapsed() > Duration::from_secs(20), "it has to wait for a slow daemon");
    assert!(!socket.exists());
    bundle.remove()?;
    ctrd.check()
}

#[test]
fn the_server_s_oom_score_is_one_above_the_daemon_s() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "exit 0")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let score = |process: &str| -> Result<i32> {
        let text = shim_testing::kernel_text(format!("/proc/{process}/oom_score_adj"))?;
        Ok(text.trim().parse().unwrap())
    };
    // This process is the daemon here.
    assert_eq!(score(&shim.server()?.pid().to_string())?, (score("self")? + 1).min(1000));
    shim.run()?.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn core_scheduling_is_had_or_start_fails_with_a_sentence() -> Result<()> {
    let ctrd = FakeContainerd::builder(Dialect::PARAMS).env("SCHED_CORE", "1").build()?;
    let bundle = shell(&ctrd, "c1", "", "exit 0")?;
    let output = ctrd.launch(FIXTURE, &bundle, "start").run()?;
    if output.success() {
        let mut shim = ctrd.take_start(FIXTURE, &bundle, &output)?;
        shim.run()?.answer(LIMIT)?;
        shim.remove()?;
    } else {
        // Whether the machine's cores and kernel can do it is not ours to choose.
        assert!(output.text().starts_with("cannot schedule the shim on cores of its own"), "{output}");
        assert_eq!(names(&ctrd.root().join("s")), Vec::<String>::new());
        bundle.remove()?;
    }
    ctrd.check()
}

#[test]
fn a_shim_cgroup_that_does_not_exist_fails_start_by_name() -> Result<()> {
    use protobuf::Message;
    let options = containerd_shim_protos::shim::oci::Options {
        shim_cgroup: "/no-such-cgroup".into(),
        ..Default::default()
    };
    for dialect in BOTH {
        let ctrd = FakeContainerd::new(dialect)?;
        let bundle = bundle(&ctrd, "c1", "").args(["true"]);
        let bundle =
            bundle.options("containerd.runc.v1.Options", options.write_to_bytes().unwrap()).build()?;
        let text = refused(&ctrd, &ctrd.launch(FIXTURE, &bundle, "start"))?;
        assert!(text.contains("into cgroup `/no-such-cgroup`: no hierarchy has it"), "{text}");
        bundle.remove()?;
        ctrd.check()?;
    }
    Ok(())
}

#[test]
fn a_shim_serves_in_the_foreground_on_a_socket_of_the_user_s_choice() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::LEGACY)?;
    let bundle = shell(&ctrd, "c1", "", "true")?;
    let socket = ctrd.root().join("by-hand.sock");
    let launch = ctrd.launch(FIXTURE, &bundle, "start");
    let mut args: Vec<_> = launch.args[..launch.args.len() - 1].to_vec();
    args.extend(["-socket".into(), socket.clone().into()]);
    let mut shim = std::process::Command::new(FIXTURE);
    shim.args(args).envs(launch.env).current_dir(bundle.path()).stderr(std::process::Stdio::piped());
    let mut shim = shim.spawn()?;
    let process = Process::open(Pid::new(shim.id()).unwrap())?;
    // It says so on its standard error once it listens.
    let mut log = std::io::BufReader::new(shim.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut log, &mut line)?;
    assert!(line.contains("serving"), "{line}");
    let request = shim_runtime::api::ConnectRequest { id: "c1".into(), ..Default::default() };
    let mut connection = RawConnection::connect(&socket)?;
    let answer: shim_runtime::api::ConnectResponse =
        connection.ask("containerd.task.v2.Task", "Connect", &request)?;
    assert_eq!(answer.shim_pid, shim.id());
    process.signal(Signal::INT)?;
    assert!(shim.wait()?.success());
    assert!(!socket.exists());
    bundle.remove()?;
    ctrd.check()
}

#[test]
fn the_version_is_printed_without_any_other_flag() -> Result<()> {
    for flag in ["-v", "--version"] {
        let output = std::process::Command::new(FIXTURE).arg(flag).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && output.stderr.is_empty());
        assert!(text.starts_with("io.containerd.fixture.v1:\n  Version:  0.1.0\n"), "{text}");
    }
    Ok(())
}

#[test]
fn the_server_is_put_into_the_shim_cgroup_of_the_options() -> Result<()> {
    use protobuf::Message;
    // A version 1 hierarchy in which an empty group costs nothing.
    let parent = Path::new("/sys/fs/cgroup/pids");
    let name = format!("shim-cgroup-{}", std::process::id());
    let cgroup = parent.join(&name);
    if !parent.join("cgroup.procs").exists() || std::fs::create_dir(&cgroup).is_err() {
        let needed = std::env::var_os("SHIM_TESTS").is_some_and(|tests| tests == "all");
        assert!(!needed, "root and a pids hierarchy of version 1 are needed");
        println!("left out: lifecycle::start::shim_cgroup needs root and a pids hierarchy of version 1");
        return Ok(());
    }
    let options =
        containerd_shim_protos::shim::oci::Options { shim_cgroup: name.clone(), ..Default::default() };
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = bundle(&ctrd, "c1", "").args(["true"]);
    let bundle = bundle.options("containerd.runc.v1.Options", options.write_to_bytes().unwrap()).build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let member = shim_testing::kernel_text(format!("/proc/{}/cgroup", shim.server()?.pid()))?;
    shim.run()?.answer(LIMIT)?;
    shim.remove()?;
    std::fs::remove_dir(&cgroup)?;
    assert!(member.lines().any(|line| line.ends_with(&format!(":pids:/{name}"))), "{member}");
    ctrd.check()
}

#[test]
fn the_author_s_own_destructors_run_at_the_end_and_never_on_the_main_thread() -> Result<()> {
    for how in ["shut down", "killed by SIGTERM"] {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let dropped = ctrd.root().join("dropped");
        let bundle =
            bundle(&ctrd, "c1", "").annotation("fixture/dropped", &dropped.display().to_string()).build()?;
        let mut shim = ctrd.start(FIXTURE, &bundle)?;
        if how == "shut down" {
            shim.end()?;
        } else {
            shim.server()?.signal(Signal::TERM)?;
            assert!(shim.server()?.ended_within(LIMIT));
            shim.abandon();
        }
        assert_eq!(std::fs::read_to_string(&dropped)?, "worker", "{how}");
    }
    Ok(())
}

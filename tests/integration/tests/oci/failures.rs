//! What an engine's failures become: its words, the codes that containerd acts on, and nothing left behind.

use std::path::Path;
use std::time::{Duration, Instant};

use containerd_shim_protos::shim::oci::Options;
use protobuf::Message;
use serde_json::json;
use shim_runtime::api::{Any, CreateTaskRequest, KillRequest, PauseRequest, Status};
use shim_runtime::{Code, Pid, Signal};
use shim_testing::{Dialect, Failure, FakeContainerd, Mode, Process, Result, STOP_COMMANDS};

use crate::recorder::{Recorder, until, with_options};
use crate::{LIMIT, shim};

#[test]
fn the_last_error_in_the_engine_s_log_is_what_the_client_reads() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let task = shim.task();
    let words = |error: Failure, verb: &str| {
        assert_eq!(message(&error), format!("OCI runtime {verb} failed: no {verb} today"));
        assert_eq!(error.code(), Some(Code::Unknown));
    };
    for verb in ["start", "exec", "pause", "resume", "update", "checkpoint", "kill", "delete"] {
        recorder.fail(verb, &format!("no {verb} today"))?;
    }
    task.create(&bundle)?;
    words(task.start().unwrap_err(), "start");
    recorder.mend("start");
    let exit = task.wait();
    task.start()?;
    let exec = task.exec("e1");
    exec.add(&bundle, &["true"], &ctrd.stdio("e1", Mode::Null, false)?)?;
    words(exec.start().unwrap_err(), "exec");
    words(task.pause().unwrap_err(), "pause");
    recorder.mend("pause");
    task.pause()?;
    words(task.resume().unwrap_err(), "resume");
    recorder.mend("resume");
    task.resume()?;
    words(task.update(&json!({})).unwrap_err(), "update");
    words(task.checkpoint("/image").unwrap_err(), "checkpoint");
    exec.delete()?;
    words(task.kill(Signal::TERM).unwrap_err(), "kill");
    let error = task.kill_with(Signal::TERM, true).unwrap_err();
    assert_eq!(message(&error), "OCI runtime killall failed: no kill today");
    recorder.mend("kill");
    task.kill(Signal::KILL)?;
    exit.answer(LIMIT)?;
    words(task.delete().unwrap_err(), "delete");
    recorder.mend("delete");
    shim.remove()?;
    ctrd.check()
}

/// The sentence of an error, which the client shows.
fn message(error: &Failure) -> String {
    let shown = error.to_string();
    shown.split_once("Unknown: ").map_or(shown.clone(), |(_, message)| message.to_owned())
}

#[test]
fn an_engine_that_gives_up_or_writes_to_its_standard_error_alone_is_told_in_its_words_too() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1").capture(), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let fatal = r#"{"level":"warning","msg":"hm"}
{"level":"fatal","msg":"no way"}
{"level":"info","msg":"bye"}
"#;
    recorder.log("create", fatal)?;
    let error = shim.task().create(&bundle).unwrap_err();
    assert_eq!(message(&error), "OCI runtime create failed: no way");
    // Nothing in the log: the end of what it wrote, in whole lines.
    let lines = (0..2000).map(|n| format!("line {n}")).collect::<Vec<_>>().join("\n");
    for (verb, text) in [("create", "one\ntwo\n"), ("start", lines.as_str()), ("exec", "so\n")] {
        recorder.log(verb, "")?;
        recorder.say(verb, text)?;
    }
    let error = shim.task().create(&bundle).unwrap_err();
    assert_eq!(message(&error), "OCI runtime create failed: one\ntwo");
    shim.end()?;

    recorder.mend("create");
    let bundle = with_options(ctrd.bundle("c2").capture(), &recorder.options()).build()?;
    let mut shim = ctrd.start(crate::shim(), &bundle)?;
    shim.task().create(&bundle)?;
    let error = message(&shim.task().start().unwrap_err());
    let said = error.strip_prefix("OCI runtime start failed: ").expect("the engine's words come first");
    assert!(said.starts_with("line ") && said.ends_with("line 1999") && said.len() <= 4096, "{said}");
    recorder.mend("start");
    let exit = shim.task().wait();
    shim.task().start()?;
    let exec = shim.task().exec("e1");
    let stdio = ctrd.stdio("e1", Mode::Capture, false)?;
    exec.add(&bundle, &["true"], &stdio)?;
    assert_eq!(message(&exec.start().unwrap_err()), "OCI runtime exec failed: so");
    exec.delete()?;
    let exec = shim.task().exec("e2");
    let stdio = ctrd.stdio("e2", Mode::Capture, true)?;
    exec.add(&bundle, &["true"], &stdio)?;
    assert_eq!(message(&exec.start().unwrap_err()), "OCI runtime exec failed: so", "with a terminal");
    exec.delete()?;
    shim.task().kill(Signal::KILL)?;
    exit.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn what_an_engine_complains_of_is_not_output_of_the_container_that_it_could_not_make() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1").capture(), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    recorder.say("create", "a complaint\n")?;
    recorder.fail("create", "no")?;
    let error = shim.task().create(&bundle).unwrap_err();
    assert_eq!(message(&error), "OCI runtime create failed: no");
    let captured = bundle.stdio().finish(LIMIT)?;
    assert_eq!((captured.stdout, captured.stderr), (Vec::new(), Vec::new()));
    shim.end()?;

    // An exec, and a file instead of FIFOs.
    let file = ctrd.root().join("output");
    let bundle = with_options(ctrd.bundle("c2"), &recorder.options());
    let bundle = bundle.log_uri(&format!("file://{}", file.display())).build()?;
    let mut shim = ctrd.start(crate::shim(), &bundle)?;
    assert!(shim.task().create(&bundle).is_err());
    shim.end()?;
    assert_eq!(std::fs::read_to_string(&file)?, "");
    recorder.mend("create");
    recorder.say("create", "a warning\n")?;
    let bundle = with_options(ctrd.bundle("c3"), &recorder.options());
    let bundle = bundle.log_uri(&format!("file://{}", file.display())).build()?;
    let mut shim = ctrd.start(crate::shim(), &bundle)?;
    let exit = shim.run()?;
    recorder.say("exec", "a complaint\n")?;
    recorder.fail("exec", "no")?;
    let exec = shim.task().exec("e1");
    let stdio = ctrd.stdio("e1", Mode::Capture, false)?;
    exec.add(&bundle, &["true"], &stdio)?;
    assert_eq!(message(&exec.start().unwrap_err()), "OCI runtime exec failed: no");
    exec.delete()?;
    let captured = stdio.finish(LIMIT)?;
    assert_eq!((captured.stdout, captured.stderr), (Vec::new(), Vec::new()));
    shim.task().kill(Signal::KILL)?;
    exit.answer(LIMIT)?;
    shim.remove()?;
    // What an engine says that succeeds may be the container's, and is delivered.
    assert_eq!(std::fs::read_to_string(&file)?, "a warning\n");
    ctrd.check()
}

/// A hook may, for example. What it writes fills the pipe that is the container's.
#[test]
fn an_engine_that_writes_much_while_it_makes_a_container_does_not_wait_for_good() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1").capture(), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let much = "a line of a hook\n".repeat(20_000);
    recorder.say("create", &much)?;
    let exit = shim.run()?;
    assert!(bundle.stdio().wait_for(LIMIT, |captured| captured.stderr == much.as_bytes()));
    shim.task().kill(Signal::KILL)?;
    exit.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn nothing_is_left_of_an_exec_whose_specification_cannot_be_written() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let exit = shim.run()?;
    let spec = bundle.path().join("exec-e1.json");
    // Stands for a full disk: the file is there, and takes nothing.
    std::os::unix::fs::symlink("/dev/full", &spec)?;
    let exec = shim.task().exec("e1");
    exec.add(&bundle, &["true"], &ctrd.stdio("e1", Mode::Null, false)?)?;
    let error = exec.start().unwrap_err().to_string();
    assert!(error.contains(&format!("cannot write `{}`: ", spec.display())), "{error}");
    assert!(spec.symlink_metadata().is_err(), "it is left");
    exec.delete()?;
    shim.task().kill(Signal::KILL)?;
    exit.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

/// It would run beside the `delete` that cleans up after the shim, and make what was given up.
#[test]
fn a_command_that_was_forked_while_its_shim_died_is_never_run() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::builder(Dialect::PARAMS).env(STOP_COMMANDS, "1").build()?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options());
    let bundle = bundle.annotation("fixture/kind", "oci").build()?;
    let mut shim = ctrd.start(env!("CARGO_BIN_EXE_containerd-shim-fixture-v1"), &bundle)?;
    let mut client = shim.raw()?;
    let request = CreateTaskRequest {
        id: "c1".into(),
        bundle: bundle.path().to_string_lossy().into_owned(),
        options: Some(Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: recorder.options().write_to_bytes().unwrap_or_default(),
            ..Any::default()
        })
        .into(),
        ..CreateTaskRequest::default()
    };
    client.begin(&shim.task().service(), "Create", request.write_to_bytes().unwrap_or_default())?;
    let server = shim.server()?.pid();
    let mut command = None;
    until("the command to be forked, and to stop", || {
        command = stopped_child(server);
        command.is_some()
    });
    let command = Process::open(command.expect("it was waited for"))?;
    shim.server()?.signal(Signal::KILL)?;
    assert!(shim.server()?.ended_within(LIMIT));
    command.signal(Signal::CONT)?;
    assert!(command.ended_within(LIMIT), "the command is left");
    assert_eq!(recorder.read("calls"), "");
    shim.delete_action()?;
    shim.abandon();
    ctrd.check_leaks()
}

/// A child of a process that has stopped.
fn stopped_child(parent: Pid) -> Option<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    let is_stopped = |child: &&str| {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"))
    };
    children.split_ascii_whitespace().find(is_stopped).and_then(|child| child.parse().ok()).and_then(Pid::new)
}

#[test]
fn a_container_that_the_engine_refuses_to_make_is_none_of_its_containers() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    recorder.fail("create", "container with given ID already exists")?;
    let error = shim.task().create(&bundle).unwrap_err();
    assert_eq!(message(&error), "OCI runtime create failed: container with given ID already exists");
    shim.end()?;
    let calls = recorder.calls(bundle.path());
    assert_eq!(calls.len(), 1, "another one's container must not be touched, nor by `delete`: {calls:?}");
    ctrd.check()
}

/// The note that there may be something of ours stands before there is.
#[test]
fn delete_gives_up_what_an_engine_had_made_when_its_shim_died_before_it_could_know() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    std::fs::write(recorder.file("shim-dies"), "")?;
    assert!(shim.task().create(&bundle).is_err());
    assert!(shim.server()?.ended_within(LIMIT));
    let init = recorder.init()?;
    shim.delete_action()?;
    assert!(init.ended_within(LIMIT), "{:?}", recorder.calls(bundle.path()));
    shim.abandon();
    ctrd.check_leaks()
}

#[test]
fn delete_waits_for_no_fifo_in_place_of_a_file() -> Result<()> {
    for name in ["shim.json", "init.pid", "options.json", "runtime", "address", "bootstrap.json"] {
        let recorder = Recorder::new()?;
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
        let mut shim = ctrd.start(shim(), &bundle)?;
        shim.run()?;
        shim.server()?.signal(Signal::KILL)?;
        assert!(shim.server()?.ended_within(LIMIT));
        let (file, kept) = (bundle.path().join(name), bundle.path().join("kept"));
        let _ = std::fs::rename(&file, &kept);
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU)?;
        assert_eq!(shim.delete_action()?.exit_status, 137, "{name}");
        let calls = recorder.read("calls");
        assert!(calls.lines().any(|call| call.ends_with(" delete --force c1")), "{name}: {calls}");
        std::fs::remove_file(&file)?;
        let _ = std::fs::rename(&kept, &file);
        shim.abandon();
        ctrd.check_leaks()?;
    }
    Ok(())
}

#[test]
fn delete_ends_an_engine_that_hangs_in_its_own_time_and_does_the_rest() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    shim.run()?;
    let init = recorder.init()?;
    shim.server()?.signal(Signal::KILL)?;
    assert!(shim.server()?.ended_within(LIMIT));
    recorder.hang("delete")?;
    let output = ctrd.launch(crate::shim(), &bundle, "delete").run()?;
    assert!(!output.success() && output.code().is_some(), "it was to end by itself: {output}");
    assert!(output.text().contains("was killed at the call's deadline"), "{output}");
    ended(&recorder);
    assert!(init.ended_within(LIMIT));
    assert!(!shim.socket().exists());
    recorder.mend("delete");
    shim.delete_action()?;
    shim.abandon();
    ctrd.check_leaks()
}

/// Of a second daemon that shares the engine's root, whatever has become of our own.
#[test]
fn a_container_that_was_made_for_another_bundle_is_never_given_up() -> Result<()> {
    let (recorder, elsewhere) = (Recorder::new()?, tempfile::tempdir()?);
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let deletions = || {
        let calls = recorder.calls(bundle.path());
        calls.into_iter().filter(|call| call.contains(" delete ")).count()
    };
    let state = |bundle: &Path| serde_json::json!({ "id": "c1", "bundle": bundle }).to_string();
    std::fs::write(recorder.file("state"), state(elsewhere.path()))?;
    recorder.die("create")?;
    assert!(shim.task().create(&bundle).is_err());
    assert_eq!(deletions(), 0, "by the shim");
    // As left by a shim that died while its engine was at work.
    std::fs::write(bundle.path().join("init.pid"), "")?;
    shim.server()?.signal(Signal::KILL)?;
    assert!(shim.server()?.ended_within(LIMIT));
    shim.delete_action()?;
    assert_eq!(deletions(), 0, "by `delete`");
    // The same folder under another name is no other.
    let link = elsewhere.path().join("link");
    std::os::unix::fs::symlink(bundle.path(), &link)?;
    std::fs::write(recorder.file("state"), state(&link))?;
    shim.delete_action()?;
    assert_eq!(deletions(), 1);
    shim.abandon();
    ctrd.check_leaks()
}

/// The engine has not heard of it, and whatever it knows by that id is somebody else's.
#[test]
fn an_image_that_was_never_restored_is_killed_updated_and_deleted_without_the_engine() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let task = shim.task();
    let value = recorder.options().write_to_bytes().unwrap_or_default();
    task.create_with(&CreateTaskRequest {
        id: "c1".into(),
        bundle: bundle.path().to_string_lossy().into_owned(),
        checkpoint: "/image".into(),
        options: Some(Any { type_url: "containerd.runc.v1.Options".into(), value, ..Any::default() }).into(),
        ..CreateTaskRequest::default()
    })?;
    assert_eq!(task.kill(Signal::USR1).unwrap_err().code(), Some(Code::NotFound));
    assert_eq!(task.update(&json!({})).unwrap_err().code(), Some(Code::NotFound));
    task.delete()?;
    shim.end()?;
    assert_eq!(recorder.calls(bundle.path()), Vec::<String>::new());
    ctrd.check()
}

/// By the kernel for want of memory, for example: whatever it had made by then nobody else would take away.
#[test]
fn an_engine_that_is_killed_while_it_makes_a_container_is_told_to_forget_it() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    recorder.die("create")?;
    let error = shim.task().create(&bundle).unwrap_err().to_string();
    assert!(
        error.contains("OCI runtime create failed: ") && error.ends_with("ended with status 137"),
        "{error}"
    );
    let calls = recorder.calls(bundle.path());
    assert!(calls.last().is_some_and(|call| call.ends_with(" delete --force c1")), "{calls:?}");
    shim.end()?;
    ctrd.check()
}

#[test]
fn an_engine_that_is_missing_is_named() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let options = Options { binary_name: "no-such-engine".into(), ..Options::default() };
    let bundle = with_options(ctrd.bundle("c1"), &options).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let error = shim.task().create(&bundle).unwrap_err().to_string();
    // In the quotes that containerd's own tests look for.
    assert!(error.contains("OCI runtime create failed: exec: \"no-such-engine\": "), "{error}");
    shim.end()?;
    ctrd.check()
}

#[test]
fn options_of_another_type_are_refused_by_its_name() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = ctrd.bundle("c1").options("example.v1.Options", vec![10, 1, b'x']).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let error = shim.task().create(&bundle).unwrap_err();
    assert_eq!(error.code(), Some(Code::InvalidArgument));
    assert!(error.to_string().contains("`example.v1.Options`"), "{error}");
    shim.end()?;
    ctrd.check()
}

#[test]
fn a_kill_of_what_is_gone_is_not_found_in_whatever_words_the_engine_says_so() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let exit = shim.run()?;
    let kill = |words: &str| -> Result<Option<Code>> {
        recorder.fail("kill", words)?;
        Ok(shim.task().kill_with(Signal::TERM, true).unwrap_err().code())
    };
    for words in [
        "os: process already finished",
        "container not running",
        "No such process",
        "container does not exist",
    ] {
        assert_eq!(kill(words)?, Some(Code::NotFound), "{words}");
    }
    assert_eq!(kill("permission denied")?, Some(Code::Unknown));
    recorder.mend("kill");
    shim.task().kill(Signal::KILL)?;
    exit.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn a_create_that_hangs_ends_at_its_deadline_and_the_engine_is_told_to_forget_it() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    recorder.hang("create")?;
    let error = shim.task().within(Duration::from_millis(500)).create(&bundle).unwrap_err();
    assert_eq!(error.code(), Some(Code::DeadlineExceeded));
    let deleted = || recorder.read("calls").lines().any(|call| call.ends_with(" delete --force c1"));
    until("the engine to be told", deleted);
    ended(&recorder);
    shim.end()?;
    ctrd.check()
}

#[test]
fn a_command_ends_with_the_client_that_it_is_run_for() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let exit = shim.run()?;
    recorder.hang("pause")?;
    let mut client = shim.raw()?;
    let task = shim.task();
    let request = PauseRequest { id: "c1".into(), ..PauseRequest::default() };
    client.begin(&task.service(), "Pause", request.write_to_bytes().unwrap_or_default())?;
    recorder.until_it_hangs();
    drop(client);
    ended(&recorder);
    until("the pause to be undone", || {
        task.state().is_ok_and(|state| state.status == Status::RUNNING.into())
    });
    task.kill(Signal::KILL)?;
    exit.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

/// Processes that are left hold the container's output open, and its client waits for the end of that before it
/// deletes (contract 6.5, 4).
#[test]
fn what_an_init_leaves_in_the_pid_namespace_of_others_is_killed_before_its_exit_is_told() -> Result<()> {
    let others = ["/proc/1/ns/pid", ""].map(|path| json!([{"type": "mount"}, {"type": "pid", "path": path}]));
    for (namespaces, kills) in others.into_iter().chain([json!([{"type": "mount"}])]).zip([1, 0, 1]) {
        let recorder = Recorder::new()?;
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let builder = ctrd.bundle("c1").config(json!({ "linux": { "namespaces": namespaces } }));
        let bundle = with_options(builder, &recorder.options()).build()?;
        let mut shim = ctrd.start(shim(), &bundle)?;
        let exit = shim.run()?;
        recorder.init()?.signal(Signal::KILL)?;
        assert_eq!(exit.answer(LIMIT)?.exit_status, 137);
        let calls = recorder.read("calls");
        let seen = calls.lines().filter(|call| call.ends_with(" kill --all c1 9")).count();
        assert_eq!(seen, kills, "{namespaces}: {calls}");
        shim.remove()?;
        ctrd.check()?;
    }
    Ok(())
}

/// A kill that hangs keeps the exit back for a while only.
#[test]
fn an_exit_is_told_although_what_is_left_cannot_be_killed() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let exit = shim.run()?;
    recorder.hang("kill")?;
    recorder.init()?.signal(Signal::KILL)?;
    assert_eq!(exit.answer(LIMIT)?.exit_status, 137);
    recorder.noted("hangs")?.signal(Signal::KILL)?;
    shim.remove()?;
    ctrd.check()
}

/// The client hangs up after Delete, and would lose the answer to a Kill that is still under way.
#[test]
fn a_delete_lets_a_kill_come_back_first_but_waits_not_for_good() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1").full_spec(), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let exit = shim.run()?;
    recorder.hang("kill")?;
    let mut client = shim.raw()?;
    let task = shim.task();
    let request = KillRequest { id: "c1".into(), signal: 15, ..KillRequest::default() };
    client.begin(&task.service(), "Kill", request.write_to_bytes().unwrap_or_default())?;
    recorder.until_it_hangs();
    recorder.init()?.signal(Signal::KILL)?;
    exit.answer(LIMIT)?;
    let begin = Instant::now();
    task.delete()?;
    assert!(begin.elapsed() >= Duration::from_secs(2), "the kill was not waited for");
    drop(client);
    ended(&recorder);
    shim.end()?;
    ctrd.check()
}

/// Waits for the end of the engine that hangs.
fn ended(recorder: &Recorder) {
    let pid = recorder.read("hangs").trim().parse().ok().and_then(Pid::new);
    if let Some(Ok(engine)) = pid.map(Process::open) {
        assert!(engine.ended_within(LIMIT), "the engine still hangs");
    }
}

//! The command lines of contract 11.2 and 11.4, and the bundle's files of 11.3.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use containerd_shim_protos::shim::oci::{CheckpointOptions, Options};
use protobuf::Message;
use serde_json::{Value, json};
use shim_runtime::api::{Any, CheckpointTaskRequest, CreateTaskRequest, Empty};
use shim_runtime::{Code, Pid, Signal};
use shim_testing::{Dialect, FakeContainerd, Mode, Process, Result};

use crate::recorder::{Recorder, with_options};
use crate::{LIMIT, shim};

#[test]
fn a_whole_life_takes_the_commands_that_runc_s_shim_uses_and_no_more() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    // With a pid namespace of its own, whose rest the kernel ends.
    let bundle = with_options(ctrd.bundle("c1").full_spec(), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let exit = shim.run()?;
    let task = shim.task();
    let exec = task.exec("e1");
    exec.add(&bundle, &["true"], &ctrd.stdio("e1", Mode::Null, false)?)?;
    let exec_exit = exec.wait();
    exec.start()?;
    exec.kill(Signal::KILL)?;
    assert_eq!(exec_exit.answer(LIMIT)?.exit_status, 137);
    exec.delete()?;
    task.pause()?;
    task.resume()?;
    task.update(&json!({"pids": {"limit": 9}}))?;
    task.kill(Signal::TERM)?;
    assert_eq!(exit.answer(LIMIT)?.exit_status, 143);
    let b = bundle.path().to_owned();
    let seen = recorder.calls(&b);
    shim.remove()?;
    let root = format!("--root /tmp/state/{}", ctrd.namespace());
    let b = b.display();
    let expected = [
        format!("{root} create --bundle {b} --pid-file {b}/init.pid c1"),
        format!("{root} start c1"),
        format!("{root} exec --detach --process {b}/exec-e1.json --pid-file {b}/exec-e1.pid c1"),
        format!("{root} pause c1"),
        format!("{root} resume c1"),
        format!("{root} update --resources=- c1"),
        format!("{root} kill c1 15"),
    ];
    assert_eq!(seen, expected);
    let all = recorder.calls(b.to_string().as_ref());
    assert_eq!(&all[expected.len()..], [format!("{root} delete c1")], "the delete action needs no command");
    assert_eq!(recorder.read("resources"), r#"{"pids":{"limit":9}}"#);
    let process: Value = serde_json::from_str(&recorder.read("process")).unwrap_or_default();
    assert_eq!((&process["args"], &process["terminal"]), (&json!(["true"]), &json!(false)));
    ctrd.check()
}

/// Programs that stand in for an engine read `config.json` there.
#[test]
fn every_command_of_the_engine_runs_in_its_container_s_bundle() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let first = with_options(ctrd.bundle("c0").group("pod"), &recorder.options()).build()?;
    let bundle = with_options(ctrd.bundle("c1").group("pod"), &recorder.options()).build()?;
    // The second container's bundle is not the one that its shim was started in.
    let mut first_shim = ctrd.start(shim(), &first)?;
    let mut shim = ctrd.attach(&first_shim, &bundle)?;
    let first_exit = first_shim.run()?;
    let exit = shim.run()?;
    let task = shim.task();
    let exec = task.exec("e1");
    exec.add(&bundle, &["true"], &ctrd.stdio("e1", Mode::Null, false)?)?;
    exec.start()?;
    task.pause()?;
    task.resume()?;
    task.update(&json!({}))?;
    task.checkpoint("/image")?;
    exec.kill(Signal::KILL)?;
    exec.wait().answer(LIMIT)?;
    exec.delete()?;
    task.kill(Signal::KILL)?;
    exit.answer(LIMIT)?;
    let path = bundle.path().display().to_string();
    shim.remove()?;
    for verb in ["create", "start", "exec", "pause", "resume", "update", "checkpoint", "kill", "delete"] {
        assert_eq!(recorder.read(&format!("cwd-{verb}")).trim(), path, "{verb}");
    }
    let _ = fs::remove_file(recorder.file("cwd-delete"));
    // The recorder's own `kill` knows one container: the last.
    Process::open(Pid::new(first_shim.task().state()?.pid).expect("it runs"))?.signal(Signal::KILL)?;
    first_exit.answer(LIMIT)?;
    first_shim.remove()?;
    assert_eq!(recorder.read("cwd-delete").trim(), first.path().display().to_string());
    ctrd.check()
}

/// Its files lie beside those of the container, whose own process has one that is called `init.pid`.
#[test]
fn an_exec_may_be_called_as_anything_in_the_bundle_is() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1").full_spec(), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let exit = shim.run()?;
    let read = |name: &str| fs::read_to_string(bundle.path().join(name)).unwrap_or_default();
    let pid = read("init.pid");
    assert!(!pid.is_empty());
    for name in ["init", "config.json", "log.json", "options", "shim", "exec-init", "init.exec"] {
        let kept = ["config.json", "options.json", "shim.json"].map(read);
        let exec = shim.task().exec(name);
        exec.add(&bundle, &["true"], &ctrd.stdio(name, Mode::Null, false)?)?;
        let exec_exit = exec.wait();
        exec.start()?;
        exec.kill(Signal::KILL)?;
        exec_exit.answer(LIMIT)?;
        exec.delete()?;
        assert_eq!(read("init.pid"), pid, "{name}");
        assert_eq!(["config.json", "options.json", "shim.json"].map(read), kept, "{name}");
    }
    shim.task().kill(Signal::KILL)?;
    exit.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn options_become_flags_and_are_kept_in_the_bundle() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::builder(Dialect::LEGACY).env("NOTIFY_SOCKET", "/run/notify").build()?;
    let options =
        Options { no_pivot_root: true, no_new_keyring: true, systemd_cgroup: true, ..recorder.options() };
    let bundle = with_options(ctrd.bundle("c1").terminal(), &options).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    shim.task().create(&bundle)?;
    let call = recorder.calls(bundle.path()).remove(0);
    let b = bundle.path().display().to_string();
    let (before, after) = call.split_once(" --console-socket ").expect("a terminal has a console socket");
    assert_eq!(
        before,
        format!("--root /tmp/state/{} --systemd-cgroup create --bundle {b}", ctrd.namespace())
    );
    let after = after.split_once(' ').map(|(_socket, rest)| rest);
    let flags = format!("--no-pivot --no-new-keyring --pid-file {b}/init.pid c1");
    assert_eq!(after, Some(flags.as_str()));
    assert!(!recorder.read("env-create").contains("NOTIFY_SOCKET"));
    let mode =
        |name: &str| fs::metadata(bundle.path().join(name)).map(|file| file.permissions().mode() & 0o777);
    assert_eq!((mode("options.json")?, mode("runtime")?), (0o600, 0o600));
    let program = recorder.program().to_string_lossy().into_owned();
    let kept: Value =
        serde_json::from_str(&fs::read_to_string(bundle.path().join("options.json"))?).unwrap_or_default();
    let expected = json!({"no_pivot_root": true, "no_new_keyring": true, "systemd_cgroup": true,
        "binary_name": program, "root": "/tmp/state"});
    assert_eq!((kept, fs::read_to_string(bundle.path().join("runtime"))?), (expected, program));
    shim.task().kill(Signal::KILL)?;
    shim.task().wait().answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn all_processes_are_meant_where_the_client_says_so() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let exit = shim.run()?;
    shim.task().kill_with(Signal::KILL, true)?;
    exit.answer(LIMIT)?;
    let calls = recorder.calls(bundle.path());
    assert!(calls.iter().any(|call| call.ends_with(" kill --all c1 9")), "{calls:?}");
    shim.remove()?;
    ctrd.check()
}

#[test]
fn what_an_init_leaves_in_a_shared_pid_namespace_is_killed_before_its_exit_is_told() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let exit = shim.run()?;
    shim.task().kill(Signal::TERM)?;
    exit.answer(LIMIT)?;
    let calls = recorder.calls(bundle.path());
    assert!(calls.last().is_some_and(|call| call.ends_with(" kill --all c1 9")), "{calls:?}");
    shim.remove()?;
    ctrd.check()
}

#[test]
fn a_checkpoint_is_written_as_its_options_say_and_criu_s_log_kept_when_it_fails() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let exit = shim.run()?;
    let mut options = CheckpointOptions {
        open_tcp: true,
        external_unix_sockets: true,
        terminal: true,
        file_locks: true,
        empty_namespaces: vec!["network".into()],
        ..CheckpointOptions::default()
    };
    let checkpoint = |options: &CheckpointOptions| -> Result<Empty> {
        let value = options.write_to_bytes().unwrap_or_default();
        let any = Any { type_url: "containerd.runc.v1.CheckpointOptions".into(), value, ..Any::default() };
        let request = CheckpointTaskRequest {
            id: "c1".into(),
            path: "/image".into(),
            options: Some(any).into(),
            ..CheckpointTaskRequest::default()
        };
        shim.task().call("Checkpoint", &request, LIMIT)
    };
    let b = bundle.path().display().to_string();
    let last = || {
        recorder
            .calls(bundle.path())
            .pop()
            .and_then(|call| Some(call.split_once(" checkpoint ")?.1.to_owned()))
    };
    checkpoint(&options)?;
    let flags = "--leave-running --tcp-established --ext-unix-sk --shell-job --file-locks --empty-ns network";
    assert_eq!(last().unwrap(), format!("--image-path /image --work-path {b}/work/criu-work {flags} c1"));

    // Since containerd 2.4 with the image that it is to differ from, a field that older messages do not know.
    options = CheckpointOptions {
        exit: true,
        work_path: b.clone() + "/w",
        image_path: "/other".into(),
        ..CheckpointOptions::default()
    };
    options.special_fields.mut_unknown_fields().add_length_delimited(10, b"/parent".to_vec());
    fs::create_dir(bundle.path().join("w"))?;
    fs::write(bundle.path().join("w/dump.log"), "why")?;
    recorder.fail("checkpoint", "criu failed")?;
    let error = checkpoint(&options).unwrap_err();
    assert!(error.to_string().contains("OCI runtime checkpoint failed: criu failed"), "{error}");
    assert_eq!(last().unwrap(), format!("--image-path /other --work-path {b}/w --parent-path /parent c1"));
    assert_eq!(fs::read_to_string(bundle.path().join("criu-dump.log"))?, "why");
    shim.task().kill(Signal::KILL)?;
    exit.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn a_checkpointed_container_is_restored_by_start_and_until_then_has_no_pid_and_no_execs() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let task = shim.task();
    let value = recorder.options().write_to_bytes().unwrap_or_default();
    let request = CreateTaskRequest {
        id: "c1".into(),
        bundle: bundle.path().to_string_lossy().into_owned(),
        checkpoint: "/image".into(),
        parent_checkpoint: "/parent".into(),
        options: Some(Any { type_url: "containerd.runc.v1.Options".into(), value, ..Any::default() }).into(),
        ..CreateTaskRequest::default()
    };
    assert_eq!(task.create_with(&request)?.pid, 0);
    let exec = task.exec("e1").add(&bundle, &["true"], &ctrd.stdio("e1", Mode::Null, false)?);
    assert_eq!(exec.unwrap_err().code(), Some(Code::FailedPrecondition));
    assert_eq!(recorder.read("calls"), "", "nothing is run before the start");
    let exit = task.wait();
    let pid = task.start()?.pid;
    assert_eq!(recorder.read("init").trim(), pid.to_string());
    let b = bundle.path().display().to_string();
    let call = recorder.calls(bundle.path()).pop().unwrap_or_default();
    let expected = format!(
        "restore --image-path /image --work-path {b}/work --parent-path /parent --detach --no-subreaper \
         --bundle {b} --pid-file {b}/init.pid c1"
    );
    assert_eq!(call.split_once(" restore ").map(|(_, rest)| format!("restore {rest}")), Some(expected));
    task.kill(Signal::KILL)?;
    assert_eq!(exit.answer(LIMIT)?.exit_status, 137);
    shim.remove()?;
    ctrd.check()
}

#[test]
fn a_killed_shim_s_container_is_deleted_by_force_with_the_engine_and_root_of_its_options() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(shim(), &bundle)?;
    let pid = shim.task().create(&bundle)?.pid;
    shim.server()?.signal(Signal::KILL)?;
    assert!(shim.server()?.ended_within(LIMIT));
    // As an older shim leaves it.
    fs::remove_file(bundle.path().join("shim.json"))?;
    fs::remove_file(bundle.path().join("options.json"))?;
    let deleted = shim.delete_action()?;
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 137));
    let calls = recorder.calls(bundle.path());
    assert!(calls.last().is_some_and(|call| call.ends_with(" delete --force c1")), "{calls:?}");
    // No record, so nobody may kill by the pid; the engine would have done it.
    let left = Pid::new(pid).map(Process::open);
    left.expect("it has a pid")?.signal(Signal::KILL)?;
    shim.abandon();
    Ok(())
}

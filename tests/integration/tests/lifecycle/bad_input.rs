//! Bad input: one sentence that names the thing, and nothing is left behind.

use std::os::unix::fs::PermissionsExt;

use containerd_shim_protos::bootstrap_api::BootstrapParams;
use protobuf::Message;
use shim_runtime::Signal;
use shim_testing::{Dialect, FakeContainerd, Launch, Output, Process, Result};

use super::{FIXTURE, LIMIT, bundle, names, shell};

/// Runs something that must fail with one sentence, and leave bundle and socket directory as they were.
fn sentence(ctrd: &FakeContainerd, launch: &Launch) -> Result<(Option<i32>, String)> {
    let places = [launch.cwd.clone(), ctrd.root().join("s")];
    let before = places.clone().map(|place| names(&place));
    let output: Output = launch.run()?;
    assert!(!output.success() && !output.kept_open, "{output}");
    assert_eq!(places.map(|place| names(&place)), before);
    let text = output.text().trim_end().to_owned();
    assert_eq!(text.lines().count(), 1, "one sentence: {text}");
    assert!(text.starts_with(|first: char| !first.is_uppercase()) && !text.ends_with('.'), "{text}");
    Ok((output.code(), text))
}

#[test]
fn a_bad_command_line_is_exit_2_and_names_the_flag() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::LEGACY)?;
    let bundle = shell(&ctrd, "c1", "", "true")?;
    for (args, words) in [
        (&["-colour", "red", "start"][..], "unknown flag `-colour`"),
        (&["-namespace"], "flag `-namespace` needs a value"),
        (&["-debug=perhaps", "start"], "flag `-debug` is true or false, not \"perhaps\""),
        (&["-namespace", "n", "-id", "c1", "stop"], "unknown action \"stop\""),
        (&["start", "-id", "c1"], "unexpected argument \"-id\" after `start`"),
    ] {
        let mut launch = ctrd.launch(FIXTURE, &bundle, "start");
        launch.args = args.iter().map(Into::into).collect();
        let (code, text) = sentence(&ctrd, &launch)?;
        assert_eq!(code, Some(2), "{text}");
        assert!(text.starts_with(words), "{text}");
    }
    Ok(())
}

#[test]
fn ids_and_namespaces_that_could_leave_their_folder_are_refused_by_name() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::LEGACY)?;
    let bundle = shell(&ctrd, "c1", "", "true")?;
    for action in ["start", "delete"] {
        for (flag, bad) in [
            ("-id", "a/b"),
            ("-id", ".."),
            ("-id", "a..b"),
            ("-id", "a\nb"),
            ("-id", "a\u{1b}b"),
            ("-id", "-a"),
            ("-namespace", "a/b"),
            ("-namespace", ""),
        ] {
            let mut launch = ctrd.launch(FIXTURE, &bundle, action);
            let place = launch.args.iter().position(|arg| arg == flag).unwrap();
            launch.args[place + 1] = bad.into();
            let (code, text) = sentence(&ctrd, &launch)?;
            assert_eq!(code, Some(1));
            let what = if flag == "-id" { "container id" } else { "namespace" };
            assert!(text.contains(what) && (bad.is_empty() || text.contains(&format!("{bad:?}"))), "{text}");
        }
    }
    Ok(())
}

#[test]
fn bytes_on_standard_input_that_are_no_message_are_refused() -> Result<()> {
    for dialect in super::BOTH {
        let ctrd = FakeContainerd::new(dialect)?;
        let bundle = shell(&ctrd, "c1", "", "true")?;
        let mut launch = ctrd.launch(FIXTURE, &bundle, "start");
        launch.stdin = vec![0xff; 9];
        let (_, text) = sentence(&ctrd, &launch)?;
        assert!(
            text.starts_with("9 bytes on standard input are neither bootstrap parameters nor options"),
            "{text}"
        );
        launch.stdin = vec![0; (10 << 20) + 1];
        assert!(sentence(&ctrd, &launch)?.1.contains("holds more than 10485760 bytes"));
    }
    Ok(())
}

#[test]
fn a_broken_or_missing_config_is_named() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "true")?;
    let config = bundle.path().join("config.json");
    for broken in ["", "{", "[]", r#"{"annotations":{"a":1}}"#] {
        std::fs::write(&config, broken)?;
        let (_, text) = sentence(&ctrd, &ctrd.launch(FIXTURE, &bundle, "start"))?;
        assert!(text.starts_with(&format!("cannot understand `{}`", config.display())), "{text}");
    }
    std::fs::remove_file(&config)?;
    let (_, text) = sentence(&ctrd, &ctrd.launch(FIXTURE, &bundle, "start"))?;
    assert!(text.starts_with(&format!("cannot read `{}`", config.display())), "{text}");
    Ok(())
}

/// It needs them to know the group, and nothing else.
#[test]
fn start_reads_the_annotations_alone_and_create_names_what_is_broken_in_the_rest() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "true")?;
    let config = bundle.path().join("config.json");
    std::fs::write(&config, r#"{"process":7,"root":[],"annotations":{"io.containerd.runc.v2.group":null}}"#)?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let refused = shim.task().create(&bundle).unwrap_err().to_string();
    assert!(refused.contains(&format!("cannot understand `{}`", config.display())), "{refused}");
    shim.end()?;
    ctrd.check()
}

/// To open one waits until somebody writes.
#[test]
fn a_fifo_in_place_of_the_config_is_refused_at_once() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "true")?;
    let config = bundle.path().join("config.json");
    std::fs::remove_file(&config)?;
    nix::unistd::mkfifo(&config, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (_, text) = sentence(&ctrd, &ctrd.launch(FIXTURE, &bundle, "start"))?;
    assert_eq!(text, format!("cannot read `{}`: it is not a regular file", config.display()));
    Ok(())
}

/// A bundle that was tampered with must not have `delete` remove what is no socket.
#[test]
fn an_address_that_names_a_file_costs_neither_the_file_nor_the_clean_up() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "exec sleep 1000")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    shim.run()?;
    let init = Process::open(shim_runtime::Pid::new(shim.task().state()?.pid).unwrap())?;
    shim.server()?.signal(Signal::KILL)?;
    assert!(shim.server()?.ended_within(LIMIT));
    let address = std::fs::read(bundle.path().join("address"))?;
    let file = ctrd.root().join("precious");
    std::fs::write(&file, "kept")?;
    std::fs::write(bundle.path().join("address"), format!("unix://{}", file.display()))?;
    let output = ctrd.launch(FIXTURE, &bundle, "delete").run()?;
    assert!(output.success(), "{output}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.trim_end(), format!("cannot remove socket `{}`: it is not a socket", file.display()));
    assert_eq!(std::fs::read(&file)?, b"kept");
    assert!(init.ended_within(LIMIT));
    std::fs::write(bundle.path().join("address"), address)?;
    shim.abandon();
    ctrd.check_leaks()
}

#[test]
fn a_program_that_cannot_be_executed_fails_create_by_name() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let file = ctrd.root().join("not-executable");
    std::fs::write(&file, "")?;
    let file = file.display().to_string();
    for program in ["no-such-program", "/no/such/program", &file, "/"] {
        let bundle = bundle(&ctrd, "c1", "").args([program]).build()?;
        let mut shim = ctrd.start(FIXTURE, &bundle)?;
        let failed = shim.task().create(&bundle).unwrap_err().to_string();
        assert!(failed.contains(&format!("cannot execute `{program}`")), "{failed}");
        shim.end()?;
    }
    ctrd.assert_events(&[])?;
    ctrd.check()
}

#[test]
fn a_socket_directory_that_cannot_be_used_is_named() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "true")?;
    let mut launch = ctrd.launch(FIXTURE, &bundle, "start");
    for (dir, words) in [
        (ctrd.root().join("file/s"), "cannot use socket directory"),
        (ctrd.root().join("open"), "others may write to it"),
        (ctrd.root().join("d".repeat(80)), "at most 106 are possible"),
    ] {
        std::fs::write(ctrd.root().join("file"), "")?;
        let _ = std::fs::create_dir(ctrd.root().join("open"));
        std::fs::set_permissions(ctrd.root().join("open"), std::fs::Permissions::from_mode(0o777))?;
        launch.stdin = params(&ctrd, &dir.display().to_string()).write_to_bytes().unwrap();
        let (_, text) = sentence(&ctrd, &launch)?;
        assert!(text.contains(words) && text.contains(&dir.display().to_string()), "{text}");
    }
    Ok(())
}

fn params(ctrd: &FakeContainerd, socket_dir: &str) -> BootstrapParams {
    BootstrapParams {
        instance_id: "c1".into(),
        namespace: ctrd.namespace().into(),
        containerd_ttrpc_address: "/nowhere".into(),
        socket_dir: Some(socket_dir.into()),
        ..BootstrapParams::default()
    }
}

#[test]
fn a_server_started_by_hand_says_how_it_is_meant() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::LEGACY)?;
    let bundle = shell(&ctrd, "c1", "", "true")?;
    let mut launch = ctrd.launch(FIXTURE, &bundle, "start");
    launch.args.pop();
    let (_, text) = sentence(&ctrd, &launch)?;
    assert!(text.contains("say `start`, or `-socket PATH`"), "{text}");
    Ok(())
}

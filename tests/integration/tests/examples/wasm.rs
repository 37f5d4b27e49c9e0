//! `wasm`: programs that WASI lets see what a container is given, that end with their status, and that can be
//! ended although they are threads.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use integration::workspace;
use shim_runtime::{Code, Signal};
use shim_testing::{Bundle, BundleBuilder, Dialect, FakeContainerd, Mode, Result, Shim};

use crate::LIMIT;
use crate::shim;

type Done = Result<(), Box<dyn Error>>;

/// The folder with the programs in their text form.
fn programs() -> PathBuf {
    workspace::root().join("examples/wasm/programs")
}

fn bundle(ctrd: &FakeContainerd, id: &str, args: &[&str]) -> BundleBuilder {
    ctrd.bundle(id).rootfs(programs()).args(args.iter().copied()).capture()
}

/// Runs one container to its end: its status and what it wrote.
fn run_bundle(ctrd: &FakeContainerd, bundle: &Bundle) -> Result<(u32, String, String)> {
    let mut shim = ctrd.start(shim("wasm"), bundle)?;
    let status = shim.run()?.answer(LIMIT)?.exit_status;
    shim.remove()?;
    let captured = bundle.stdio().finish(LIMIT)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((status, text(&captured.stdout), text(&captured.stderr)))
}

#[test]
fn a_program_has_arguments_and_environment_and_ends_with_its_status() -> Result<()> {
    for dialect in Dialect::ALL {
        let ctrd = FakeContainerd::new(dialect)?;
        let bundle =
            bundle(&ctrd, "c1", &["/hello.wat", "one", "two"]).env("GREETING", "hi there").build()?;
        let (status, stdout, _) = run_bundle(&ctrd, &bundle)?;
        let lines: Vec<_> = stdout.lines().collect();
        assert_eq!((status, &lines[..3]), (3, &["/hello.wat", "one", "two"][..]));
        assert!(lines[3..].contains(&"GREETING=hi there"), "{lines:?}");
        ctrd.assert_events(&["create c1", "start c1", "exit c1 3", "delete c1 3"])?;
        ctrd.check()?;
        assert!(ctrd.broken().is_empty(), "{:?}\n{}", ctrd.broken(), ctrd.timeline());
    }
    Ok(())
}

#[test]
fn input_passes_through_a_program_until_its_end() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = bundle(&ctrd, "c1", &["cat.wat"]).build()?;
    let mut shim = ctrd.start(shim("wasm"), &bundle)?;
    let waiting = shim.run()?;
    let input = "0123456789".repeat(10_000);
    bundle.stdio().write(input.as_str());
    bundle.stdio().close_stdin();
    shim.task().close_io()?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 0);
    shim.remove()?;
    let captured = bundle.stdio().finish(LIMIT)?;
    assert!(captured.stdout == input.as_bytes(), "{} bytes came", captured.stdout.len());
    assert!(!captured.stderr.is_empty() && captured.stderr.iter().all(|byte| *byte == b'.'));
    ctrd.check()
}

#[test]
fn the_root_file_system_is_all_that_a_program_sees() -> Done {
    /// WASI's error for a path that would lead out of its directory.
    const NOT_PERMITTED: u32 = 63;
    let dir = tempfile::tempdir()?;
    let root = dir.path().join("rootfs");
    fs::create_dir_all(root.join("etc"))?;
    fs::copy(programs().join("read.wat"), root.join("read.wat"))?;
    fs::write(root.join("etc/motd"), "welcome\n")?;
    fs::write(dir.path().join("secret"), "secret\n")?;
    std::os::unix::fs::symlink("../secret", root.join("link"))?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let read = |id: &str, path: &str| {
        let bundle = ctrd.bundle(id).rootfs(&root).args(["/read.wat", path]).capture().build()?;
        run_bundle(&ctrd, &bundle).map(|(status, stdout, _)| (status, stdout))
    };
    assert_eq!(read("c1", "etc/motd")?, (0, "welcome\n".to_owned()));
    assert_eq!(read("c2", "../secret")?, (NOT_PERMITTED, String::new()));
    assert_eq!(read("c3", "link")?, (NOT_PERMITTED, String::new()));
    ctrd.check()?;
    Ok(())
}

#[test]
fn a_module_in_its_binary_form_runs_as_well() -> Done {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("hello.wasm"), wat::parse_file(programs().join("hello.wat"))?)?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = ctrd.bundle("c1").rootfs(dir.path()).args(["/hello.wasm"]).capture().build()?;
    let (status, stdout, _) = run_bundle(&ctrd, &bundle)?;
    assert_eq!((status, stdout.lines().next()), (3, Some("/hello.wasm")));
    ctrd.check()?;
    Ok(())
}

/// A container that computes for ever, and has begun to.
fn endless(ctrd: &FakeContainerd, id: &str) -> Result<(Shim, shim_testing::Waiting)> {
    let bundle = bundle(ctrd, id, &["endless.wat"]).build()?;
    let shim = ctrd.start(shim("wasm"), &bundle)?;
    let waiting = shim.run()?;
    assert!(bundle.stdio().wait_for(LIMIT, |captured| captured.stdout == b"running\n"));
    Ok((shim, waiting))
}

#[test]
fn a_program_that_never_ends_is_ended_by_a_signal_with_its_status() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    for (id, signal, status) in [("c1", Signal::KILL, 137), ("c2", Signal::TERM, 143)] {
        let (mut shim, waiting) = endless(&ctrd, id)?;
        // Not every signal ends a process that has no handler for it.
        shim.task().kill(Signal::WINCH)?;
        shim.task().kill(Signal::new(0).expect("0 is one"))?;
        shim.task().kill(signal)?;
        assert_eq!(waiting.answer(LIMIT)?.exit_status, status);
        shim.remove()?;
    }
    ctrd.check()
}

#[test]
fn a_program_that_waits_for_input_is_ended_by_the_next_or_given_up() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    for (id, signal, status) in [("c1", Signal::TERM, 143), ("c2", Signal::KILL, 137)] {
        let bundle = bundle(&ctrd, id, &["cat.wat"]).build()?;
        let mut shim = ctrd.start(shim("wasm"), &bundle)?;
        let waiting = shim.run()?;
        bundle.stdio().write("a");
        assert!(bundle.stdio().wait_for(LIMIT, |captured| captured.stderr == b"."));
        shim.task().kill(signal)?;
        if signal == Signal::TERM {
            bundle.stdio().write("b");
        }
        assert_eq!(waiting.answer(LIMIT)?.exit_status, status);
        shim.remove()?;
    }
    ctrd.check()
}

#[test]
fn many_programs_share_one_process_and_one_ends_without_the_others() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundles = (0..8)
        .map(|n| bundle(&ctrd, &format!("c{n}"), &["endless.wat"]).group("pod").build())
        .collect::<Result<Vec<_>>>()?;
    let first = ctrd.start(shim("wasm"), &bundles[0])?;
    let mut shims = vec![first];
    for bundle in &bundles[1..] {
        shims.push(ctrd.attach(&shims[0], bundle)?);
    }
    let waiting = shims.iter().map(Shim::run).collect::<Result<Vec<_>>>()?;
    for (n, (mut shim, waiting)) in shims.into_iter().zip(waiting).enumerate() {
        assert!(bundles[n].stdio().wait_for(LIMIT, |captured| captured.stdout == b"running\n"));
        shim.task().kill(Signal::KILL)?;
        assert_eq!(waiting.answer(LIMIT)?.exit_status, 137);
        shim.remove()?;
    }
    ctrd.check()
}

#[test]
fn an_exec_is_refused_with_a_sentence() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let (mut shim, waiting) = endless(&ctrd, "c1")?;
    let exec = shim.task().exec("e1");
    exec.add(shim.bundle(), &["hello.wat"], &ctrd.stdio("e1", Mode::Null, false)?)?;
    let refused = exec.start().unwrap_err();
    assert_eq!(refused.code(), Some(Code::Unimplemented));
    assert!(refused.to_string().contains("this runtime does not support exec"), "{refused}");
    exec.delete()?;
    shim.task().kill(Signal::KILL)?;
    waiting.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn what_is_no_program_is_refused_by_create_or_told_on_standard_error() -> Done {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("text"), "no module")?;
    fs::write(dir.path().join("trap.wat"), r#"(module (func (export "_start") unreachable))"#)?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    for (id, program, words) in
        [("c1", "/text", "`/text` is no WebAssembly module"), ("c2", "/none", "cannot read `/none`")]
    {
        let bundle = ctrd.bundle(id).rootfs(dir.path()).args([program]).build()?;
        let mut shim = ctrd.start(shim("wasm"), &bundle)?;
        let refused = shim.task().create(&bundle).unwrap_err();
        assert!(refused.to_string().contains(words), "{refused}");
        shim.abandon();
    }
    let bundle = ctrd.bundle("c3").rootfs(dir.path()).args(["/trap.wat"]).capture().build()?;
    let (status, _, stderr) = run_bundle(&ctrd, &bundle)?;
    assert!(status == 134 && stderr.contains("unreachable"), "{status} {stderr}");
    ctrd.check()?;
    Ok(())
}

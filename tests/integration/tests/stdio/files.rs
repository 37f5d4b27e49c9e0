//! Output that goes to files (contract 5.2).

use std::fs;
use std::os::unix::fs::PermissionsExt;

use shim_testing::{Mode, Result, Stdio};

use super::{Host, numbers, until, when};

#[test]
fn a_file_gets_both_streams_behind_what_it_has() -> Result<()> {
    let host = Host::new()?;
    let folder = host.ctrd.root().join("logs");
    let file = folder.join("a b/log");
    let stdio = Stdio::log(&format!("file://{}/a%20b/log", folder.display()), false);
    for _ in 0..2 {
        host.run("e1", "echo one; echo two >&2; echo three", &stdio)?.delete()?;
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "one\ntwo\nthree\n".repeat(2));
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    // As far as the umask lets it.
    assert_eq!((mode(&file) & !0o644, mode(file.parent().unwrap()) & !0o755), (0, 0));
    host.end()
}

#[test]
fn a_file_gets_the_output_of_a_terminal() -> Result<()> {
    let host = Host::new()?;
    let file = host.ctrd.root().join("log");
    let stdio = Stdio::log(&format!("file://{}", file.display()), true);
    host.run("e1", "seq 20000", &stdio)?.delete()?;
    let expected = numbers(20_000, "\r\n");
    assert!(fs::read_to_string(&file).unwrap() == expected);
    host.end()
}

#[test]
fn a_file_that_is_given_as_a_path_is_appended_to_and_never_made() -> Result<()> {
    let host = Host::new()?;
    let file = host.ctrd.root().join("log");
    let stdio = Stdio::log(&file.to_string_lossy(), false);
    let exec = host.add("e1", "echo hi", &stdio)?;
    let refused = exec.start().unwrap_err();
    assert!(refused.to_string().contains(&*file.to_string_lossy()), "{refused}");
    exec.delete()?;
    fs::write(&file, "before\n").unwrap();
    host.run("e1", "echo hi; echo oh >&2", &stdio)?.delete()?;
    assert_eq!(fs::read_to_string(&file).unwrap(), "before\nhi\noh\n");
    host.end()
}

#[test]
fn a_file_costs_a_thread_only_while_something_is_written() -> Result<()> {
    let host = Host::new()?;
    let (file, end) = (host.ctrd.root().join("log"), host.ctrd.root().join("end"));
    let tasks = format!("/proc/{}/task", host.shim.server()?.pid());
    let copies = || {
        let names = fs::read_dir(&tasks).unwrap().flatten().map(|task| task.path().join("comm"));
        names.filter(|name| fs::read_to_string(name).is_ok_and(|name| name == "file\n")).count()
    };
    let stdio = Stdio::log(&format!("file://{}", file.display()), false);
    let exec = host.add("e1", &format!("echo one; {}; echo two", when(&end)), &stdio)?;
    exec.start()?;
    let waiting = exec.wait();
    super::until_text(&file, "one\n");
    until("the copying thread to end", || copies() == 0);
    fs::write(&end, "").unwrap();
    waiting.answer(super::LIMIT)?;
    exec.delete()?;
    assert_eq!(fs::read_to_string(&file).unwrap(), "one\ntwo\n");
    host.end()
}

#[test]
fn a_full_disk_loses_output_and_does_not_hold_up_the_container() -> Result<()> {
    let host = Host::new()?;
    let stdio = Stdio::log("/dev/full", false);
    host.run("e1", "head -c 1000000 /dev/zero", &stdio)?.delete()?;
    // Once, and not for every block.
    until("what was lost", || host.bundle.log().contains("1000000 bytes of the output of `e1` were dropped"));
    let log = host.bundle.log();
    assert_eq!(log.matches("No space left on device").count(), 1, "{log}");
    host.end()
}

#[test]
fn input_from_a_file_ends_with_it() -> Result<()> {
    let host = Host::new()?;
    let (input, output) = (host.ctrd.root().join("input"), host.ctrd.stdio("e1", Mode::Capture, false)?);
    fs::write(&input, "line\n").unwrap();
    let exec = host.shim.task().exec("e1");
    exec.add_with(&host.bundle, &["cat"], &output, |request| {
        request.stdin = input.to_string_lossy().into_owned();
    })?;
    exec.start()?;
    exec.wait().answer(super::LIMIT)?;
    exec.delete()?;
    assert_eq!(output.finish(super::LIMIT)?.stdout, b"line\n");
    host.end()
}

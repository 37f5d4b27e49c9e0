//! The example `host` under every dialect and both task services, through the stand-in and through `shimctl`.
//! Needs no root, no containerd and no OCI runtime; as root it is also run as somebody who is not.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use integration::built;
use shim_runtime::{Code, Signal};
use shim_testing::{Dialect, FakeContainerd, Result};

const NAME: &str = "containerd-shim-host-v1";
const LIMIT: Duration = Duration::from_secs(10);

type Done = Result<(), Box<dyn Error>>;

/// The example's binary.
fn host() -> &'static Path {
    built::example(NAME)
}

#[test]
fn every_dialect_and_both_task_services_run_a_container() -> Done {
    for dialect in Dialect::ALL {
        for version in [2, 3] {
            let ctrd = FakeContainerd::builder(dialect).task_version(version).build()?;
            let bundle =
                ctrd.bundle("c1").args(["sh", "-c", "cat; echo err >&2; exit 3"]).capture().build()?;
            let mut shim = ctrd.start(host(), &bundle)?;
            let waiting = shim.run()?;
            bundle.stdio().write("hi\n");
            bundle.stdio().close_stdin();
            shim.task().close_io()?;
            assert_eq!(waiting.answer(LIMIT)?.exit_status, 3);
            shim.remove()?;
            let captured = bundle.stdio().finish(LIMIT)?;
            assert_eq!(
                (captured.stdout.as_slice(), captured.stderr.as_slice()),
                (&b"hi\n"[..], &b"err\n"[..])
            );
            ctrd.assert_events(&["create c1", "start c1", "exit c1 3", "delete c1 3"])?;
            ctrd.check()?;
            assert!(ctrd.broken().is_empty(), "{:?}\n{}", ctrd.broken(), ctrd.timeline());
        }
    }
    Ok(())
}

#[test]
fn a_pod_is_served_by_one_process_with_and_without_further_starts() -> Done {
    for dialect in [Dialect::LEGACY, Dialect::PARAMS] {
        let ctrd = FakeContainerd::new(dialect)?;
        let make = |id: &str| ctrd.bundle(id).args(["sleep", "1000"]).group("pod").build();
        let (first, second) = (make("c1")?, make("c2")?);
        let mut one = ctrd.start(host(), &first)?;
        let attaches = one.answer().version == 3;
        let mut two = if attaches { ctrd.attach(&one, &second)? } else { ctrd.start(host(), &second)? };
        assert_eq!(one.socket(), two.socket());
        let waiting = [one.run()?, two.run()?];
        one.task().kill(Signal::KILL)?;
        assert_eq!(waiting[0].answer(LIMIT)?.exit_status, 137);
        one.remove()?;
        two.task().kill(Signal::KILL)?;
        assert_eq!(waiting[1].answer(LIMIT)?.exit_status, 137);
        two.remove()?;
        ctrd.check()?;
    }
    Ok(())
}

#[test]
fn a_killed_server_s_container_is_ended_by_delete() -> Done {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = ctrd.bundle("c1").args(["sleep", "1000"]).build()?;
    let shim = ctrd.start(host(), &bundle)?;
    let waiting = shim.run()?;
    shim.server()?.signal(Signal::KILL)?;
    assert_eq!(waiting.answer(LIMIT).err().and_then(|failure| failure.code()), Some(Code::Unavailable));
    shim.delete_action()?;
    ctrd.check_leaks()?;
    Ok(())
}

/// `shimctl run` with the example, as the own user or as somebody else.
fn shimctl(as_nobody: bool, args: &[&str]) -> Result<Output, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let (shimctl, shim) = (dir.path().join("shimctl"), dir.path().join(NAME));
    fs::copy(built::shimctl(), &shimctl)?;
    fs::copy(host(), &shim)?;
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut command = Command::new(if as_nobody { Path::new("setpriv") } else { &shimctl });
    if as_nobody {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&shimctl);
    }
    command.arg("run").arg(&shim).args(args).current_dir("/").stdin(Stdio::null());
    Ok(command.output()?)
}

#[test]
fn shimctl_passes_output_and_status_on_and_prints_the_timeline() -> Done {
    let output = shimctl(false, &["--env", "A=b", "--", "sh", "-c", "echo $A; exit 3"])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"b\n"[..]), "{stderr}");
    let calls = [
        "start c1",
        "Create c1",
        "Wait c1",
        "Start c1",
        "> exit c1 3",
        "Delete c1",
        "Shutdown c1",
        "delete c1",
    ];
    for call in calls {
        assert!(stderr.contains(call), "no `{call}` in:\n{stderr}");
    }
    Ok(())
}

#[test]
fn shimctl_finds_a_shim_in_path_by_its_name_alone() -> Done {
    let mut command = Command::new(built::shimctl());
    command.args(["run", "--quiet", NAME, "--", "sh", "-c", "exit 3"]).stdin(Stdio::null());
    let found = command.env("PATH", host().parent().ok_or("no folder")?).output()?;
    assert_eq!(found.status.code(), Some(3), "{}", String::from_utf8_lossy(&found.stderr));
    let missed = command.env("PATH", "/no/such/folder").output()?;
    let stderr = String::from_utf8_lossy(&missed.stderr);
    assert_eq!(missed.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains(&format!("cannot find the shim `{NAME}`")), "{stderr}");
    Ok(())
}

#[test]
fn shimctl_needs_no_root() -> Done {
    let as_nobody = nix::unistd::geteuid().is_root();
    for bootstrap in ["legacy", "params"] {
        let output = shimctl(as_nobody, &["--bootstrap", bootstrap, "--", "sh", "-c", "echo hi; exit 3"])?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"hi\n"[..]), "{stderr}");
        assert!(!stderr.contains("broken promise"), "{stderr}");
    }
    Ok(())
}

#[test]
fn shimctl_ends_with_125_when_the_run_fails() -> Done {
    let output = shimctl(false, &["--", "no-such-program"])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("no-such-program") && !stderr.contains("broken promise"), "{stderr}");
    Ok(())
}

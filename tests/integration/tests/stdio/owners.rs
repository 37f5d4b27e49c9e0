//! Streams belong to the container's user, who can open them again (contract 5.3: `io_uid`, `io_gid`).

use containerd_shim_protos::shim::oci::Options;
use protobuf::Message;
use shim_testing::{Dialect, FakeContainerd, Result};

use super::{FIXTURE, LIMIT, has_runc};

/// Tells who owns the outputs, and opens them once more.
const SCRIPT: &str =
    "stat -L -c %u:%g /dev/stdout /dev/stderr; echo again >/dev/stdout; echo oh >/dev/stderr";

#[test]
fn streams_belong_to_whom_the_options_name_and_can_be_opened_again() -> Result<()> {
    if !has_runc() {
        return Ok(());
    }
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    // A group that the runtime would not think of by itself.
    let root = ctrd.root().join("engine").to_string_lossy().into_owned();
    let options = Options { io_uid: 1234, io_gid: 5678, root, ..Options::default() };
    let options = options.write_to_bytes().expect("options can be encoded");
    let builder = ctrd.bundle("c1").args(["sh", "-c", SCRIPT]).full_spec().user(1234, 1234).capture();
    let builder = builder.busybox("/bin/busybox").annotation("fixture/kind", "oci");
    let bundle = builder.options("containerd.runc.v1.Options", options).build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    assert_eq!(shim.run()?.answer(LIMIT)?.exit_status, 0);
    shim.remove()?;
    let captured = bundle.stdio().finish(LIMIT)?;
    assert_eq!(String::from_utf8_lossy(&captured.stdout), "1234:5678\n1234:5678\nagain\n");
    assert_eq!(captured.stderr, b"oh\n");
    ctrd.check()
}

#[test]
fn a_process_under_another_user_has_streams_of_its_own_even_as_a_terminal() -> Result<()> {
    if !has_runc() {
        return Ok(());
    }
    for terminal in [false, true] {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let mut builder = ctrd.bundle("c1").args(["sh", "-c", SCRIPT]).user(1234, 5678);
        if terminal {
            builder = builder.terminal();
        }
        let bundle = builder.cwd("/").capture().build()?;
        let mut shim = ctrd.start(FIXTURE, &bundle)?;
        assert_eq!(shim.run()?.answer(LIMIT)?.exit_status, 0);
        shim.remove()?;
        let printed = String::from_utf8_lossy(&bundle.stdio().finish(LIMIT)?.stdout).replace("\r\n", "\n");
        let own: Vec<_> = printed.lines().filter(|line| line.starts_with("1234:")).collect();
        assert_eq!(own.len(), 2, "{printed}");
        assert!(terminal || own == ["1234:5678"; 2], "{printed}");
        assert!(printed.contains("again\n"), "{printed}");
        ctrd.check()?;
    }
    Ok(())
}

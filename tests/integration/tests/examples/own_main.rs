//! `own-main`: a flag and a start-up of its own, before the runtime's.

use std::error::Error;
use std::path::Path;
use std::process::Command;

use shim_runtime::Code;
use shim_testing::{Dialect, FakeContainerd, Result};

use crate::LIMIT;
use crate::shim;

const VARIABLE: &str = "OWN_MAIN_ALLOWED";

/// A stand-in whose shims are allowed what is in `file`.
fn allowing(dialect: Dialect, file: &Path) -> Result<FakeContainerd> {
    FakeContainerd::builder(dialect).env(VARIABLE, file).build()
}

#[test]
fn what_main_read_is_known_to_the_server_that_start_spawned() -> Result<(), Box<dyn Error>> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(&file, "sh\ntrue\n")?;
    for dialect in [Dialect::LEGACY, Dialect::PARAMS] {
        let ctrd = allowing(dialect, file.path())?;
        let bundle = ctrd.bundle("c1").args(["sh", "-c", "exit 3"]).build()?;
        let mut running = ctrd.start(shim("own-main"), &bundle)?;
        assert_eq!(running.run()?.answer(LIMIT)?.exit_status, 3);
        running.remove()?;

        let bundle = ctrd.bundle("c2").args(["sleep", "1000"]).build()?;
        let mut refused = ctrd.start(shim("own-main"), &bundle)?;
        let failure = refused.task().create(&bundle).unwrap_err();
        assert_eq!(failure.code(), Some(Code::PermissionDenied));
        assert!(failure.to_string().contains("program `sleep` is not allowed"), "{failure}");
        refused.abandon();
        ctrd.check()?;
    }
    Ok(())
}

#[test]
fn a_start_up_that_fails_is_the_answer_of_start_and_delete_works_nevertheless() -> Result<()> {
    let ctrd = allowing(Dialect::PARAMS, Path::new("/no/such/file"))?;
    let bundle = ctrd.bundle("c1").args(["true"]).build()?;
    let started = ctrd.launch(shim("own-main"), &bundle, "start").run()?;
    assert_eq!(started.code(), Some(1), "{started}");
    assert!(
        started.text().starts_with("cannot read `/no/such/file`, named by `OWN_MAIN_ALLOWED`"),
        "{started}"
    );
    assert!(ctrd.launch(shim("own-main"), &bundle, "delete").run()?.success());
    bundle.remove()?;
    ctrd.check()
}

#[test]
fn its_own_flag_is_its_own_and_all_others_are_the_runtime_s() -> Result<(), Box<dyn Error>> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(&file, "sh\ntrue\n")?;
    let run = |flag: &str| Command::new(shim("own-main")).arg(flag).env(VARIABLE, file.path()).output();
    let own = run("-allowed")?;
    assert_eq!((own.status.code(), &*own.stdout), (Some(0), &b"sh\ntrue\n"[..]));
    assert!(String::from_utf8(run("-v")?.stdout)?.contains("io.containerd.own-main.v1"));
    assert_eq!(run("-forbidden")?.status.code(), Some(2));
    Ok(())
}

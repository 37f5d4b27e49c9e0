//! `one-change`: one call of the container and one RPC differ, the rest is as managed.

use shim_runtime::{Code, Signal};
use shim_testing::{Dialect, FakeContainerd, Mode, Result};

use crate::LIMIT;
use crate::shim;

#[test]
fn a_polite_request_to_end_reaches_the_program_as_an_interrupt() -> Result<()> {
    for dialect in [Dialect::LEGACY, Dialect::PARAMS] {
        let ctrd = FakeContainerd::new(dialect)?;
        let script = "trap 'exit 7' INT; trap 'exit 8' TERM; echo ready; while :; do sleep 0.05; done";
        let bundle = ctrd.bundle("c1").args(["sh", "-c", script]).capture().build()?;
        let mut shim = ctrd.start(shim("one-change"), &bundle)?;
        let waiting = shim.run()?;
        assert!(bundle.stdio().wait_for(LIMIT, |captured| captured.stdout == b"ready\n"));
        shim.task().kill(Signal::TERM)?;
        assert_eq!(waiting.answer(LIMIT)?.exit_status, 7);
        shim.remove()?;
        ctrd.assert_events(&["create c1", "start c1", "exit c1 7", "delete c1 7"])?;
        ctrd.check()?;
    }
    Ok(())
}

#[test]
fn an_exec_is_refused_before_anything_is_told_of_it() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = ctrd.bundle("c1").args(["sleep", "1000"]).build()?;
    let mut shim = ctrd.start(shim("one-change"), &bundle)?;
    let waiting = shim.run()?;
    let stdio = ctrd.stdio("e1", Mode::Null, false)?;
    let refused = shim.task().exec("e1").add(&bundle, &["true"], &stdio).unwrap_err();
    assert_eq!(refused.code(), Some(Code::PermissionDenied));
    assert!(refused.to_string().contains("cannot enter container `c1`: it is sealed"), "{refused}");
    shim.task().kill(Signal::KILL)?;
    waiting.answer(LIMIT)?;
    shim.remove()?;
    ctrd.assert_events(&["create c1", "start c1", "exit c1 137", "delete c1 137"])?;
    ctrd.check()
}

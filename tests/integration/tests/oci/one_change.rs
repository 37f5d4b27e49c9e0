//! The example `runc-one-change`: one call of the container and one RPC differ, the rest is as with `runc`.

use shim_runtime::{Code, Signal};
use shim_testing::{Dialect, FakeContainerd, Result};

use crate::LIMIT;
use integration::built;

use crate::recorder::{Recorder, with_options};

#[test]
fn the_engine_is_told_to_interrupt_and_never_to_checkpoint() -> Result<()> {
    let recorder = Recorder::new()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = with_options(ctrd.bundle("c1"), &recorder.options()).build()?;
    let mut shim = ctrd.start(built::example("containerd-shim-runc-one-change-v1"), &bundle)?;
    let exit = shim.run()?;
    let error = shim.task().checkpoint("/image").unwrap_err();
    assert_eq!(error.code(), Some(Code::PermissionDenied));
    shim.task().kill(Signal::TERM)?;
    let calls = recorder.calls(bundle.path());
    assert!(calls.last().is_some_and(|call| call.ends_with(" kill c1 2")), "{calls:?}");
    // A shell's background process, which the recorder starts, ignores interrupts.
    shim.task().kill(Signal::KILL)?;
    assert_eq!(exit.answer(LIMIT)?.exit_status, 137);
    shim.remove()?;
    ctrd.check()
}

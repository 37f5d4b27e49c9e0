//! What the runtime leaves alone when the attribute of a shim at the low level switches it off.

use std::time::Instant;

use shim_runtime::Code;
use shim_testing::{Bundle, Dialect, FakeContainerd, Result, Shim};

use super::LIMIT;

/// A shim without one part of the runtime. It publishes no events, so the stand-in's verdict is not asked for.
fn without(part: &str) -> Result<(Bundle, Shim)> {
    let fixture = env!("CARGO_BIN_EXE_containerd-shim-bare-v1");
    let ctrd = FakeContainerd::builder(Dialect::PARAMS).env("FIXTURE_WITHOUT", part).build()?;
    let bundle = ctrd.bundle("c1").build()?;
    let shim = ctrd.start(fixture, &bundle)?;
    Ok((bundle, shim))
}

fn end(shim: &Shim) -> Result<()> {
    shim.task().shutdown()?;
    shim.disconnect();
    assert!(shim.server()?.ended_within(LIMIT));
    Ok(())
}

#[test]
fn without_the_reaper_children_are_left_to_the_author() -> Result<()> {
    let (bundle, shim) = without("reaper")?;
    let child = shim.task().create(&bundle)?.pid;
    // Calls that went through the main thread since the child's end: it has had every occasion.
    for _ in 0..3 {
        shim.task().connect()?;
    }
    assert_eq!(shim.task().start()?.pid, child);
    let refused = shim.task().pause().unwrap_err();
    assert_eq!(refused.code(), Some(Code::FailedPrecondition));
    assert!(refused.to_string().contains("not with `reaper = false`"), "{refused}");
    end(&shim)
}

#[test]
fn without_the_subreaper_orphans_go_to_someone_else() -> Result<()> {
    let (bundle, shim) = without("subreaper")?;
    shim.task().create(&bundle)?;
    end(&shim)
}

#[test]
fn without_the_logger_the_log_is_what_was_printed() -> Result<()> {
    let (bundle, shim) = without("logger")?;
    let refused = shim.task().create(&bundle).unwrap_err();
    assert_eq!(refused.code(), Some(Code::Internal));
    let deadline = Instant::now() + LIMIT;
    // Not a line of the runtime's logger, in which both would be quoted; the panic is as Rust prints it.
    let complete = |log: &str| {
        let mut lines = log.lines();
        lines.any(|line| line == "printed: a line of the author's")
            && lines.any(|line| line == "create panics on purpose")
    };
    while !complete(&bundle.log()) {
        assert!(Instant::now() < deadline, "{}", bundle.log());
        std::thread::yield_now();
    }
    end(&shim)
}

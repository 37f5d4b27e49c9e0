//! The binary, started as each generation of containerd does it.

use std::time::Duration;

use shim_testing::{Dialect, FakeContainerd, Result};

const SHIM: &str = env!(concat!("CARGO_BIN_EXE_", env!("CARGO_PKG_NAME")));
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn every_containerd_can_run_a_container() -> Result<()> {
    for dialect in Dialect::ALL {
        let ctrd = FakeContainerd::new(dialect)?;
        let bundle = ctrd
            .bundle("c1")
            .args(["hello", "world"])
            .capture()
            .build()?;
        let shim = ctrd.start(SHIM, &bundle)?;
        let task = shim.task();
        task.create(&bundle)?;
        let exit = task.wait();
        task.start()?;
        assert_eq!(exit.answer(LIMIT)?.exit_status, 2);
        assert_eq!(task.delete()?.exit_status, 2);
        assert_eq!(bundle.stdio().finish(LIMIT)?.stdout, b"hello world\n");
        task.shutdown()?;
        assert!(shim.server()?.ended_within(LIMIT));
    }
    Ok(())
}

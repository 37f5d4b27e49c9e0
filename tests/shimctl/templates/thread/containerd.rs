//! The binary, driven as each generation of containerd does it.

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
        let mut shim = ctrd.start(SHIM, &bundle)?;
        let exit = shim.run()?;
        assert_eq!(exit.answer(LIMIT)?.exit_status, 2);
        shim.remove()?;
        assert_eq!(bundle.stdio().finish(LIMIT)?.stdout, b"hello world\n");
        ctrd.assert_events(&["create c1", "start c1", "exit c1 2", "delete c1 2"])?;
        ctrd.check()?;
    }
    Ok(())
}

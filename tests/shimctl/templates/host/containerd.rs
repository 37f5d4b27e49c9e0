//! The binary, driven as each generation of containerd does it.

use std::time::Duration;

use shim_testing::{Dialect, FakeContainerd, Result};

const SHIM: &str = env!(concat!("CARGO_BIN_EXE_", env!("CARGO_PKG_NAME")));
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn every_containerd_can_run_a_container() -> Result<()> {
    for dialect in Dialect::ALL {
        let ctrd = FakeContainerd::new(dialect)?;
        let script = "echo hello; exit 3";
        let bundle = ctrd
            .bundle("c1")
            .args(["sh", "-c", script])
            .capture()
            .build()?;
        let mut shim = ctrd.start(SHIM, &bundle)?;
        let exit = shim.run()?;
        assert_eq!(exit.answer(LIMIT)?.exit_status, 3);
        shim.remove()?;
        assert_eq!(bundle.stdio().finish(LIMIT)?.stdout, b"hello\n");
        ctrd.assert_events(&["create c1", "start c1", "exit c1 3", "delete c1 3"])?;
        ctrd.check()?;
    }
    Ok(())
}

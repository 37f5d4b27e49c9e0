//! The binary, driven as each generation of containerd does it. Needs root, `runc` and a static busybox.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use std::{env, fs};

use shim_testing::{Dialect, FakeContainerd, Result};

const SHIM: &str = env!(concat!("CARGO_BIN_EXE_", env!("CARGO_PKG_NAME")));
const BUSYBOX: &str = "/bin/busybox";
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn every_containerd_can_run_a_container() -> Result<()> {
    if !can_run() {
        println!("left out: it needs root, `runc` and a static busybox");
        return Ok(());
    }
    for dialect in Dialect::ALL {
        let ctrd = FakeContainerd::new(dialect)?;
        let script = "echo hello; exit 3";
        let bundle = ctrd
            .bundle("c1")
            .full_spec()
            .busybox(BUSYBOX)
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

fn can_run() -> bool {
    let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    let path = env::var_os("PATH").unwrap_or_default();
    let has_runc = env::split_paths(&path).any(|dir| dir.join("runc").exists());
    is_root && has_runc && Path::new(BUSYBOX).exists()
}

//! Streams that cannot be had are refused by name, and nothing is left of them.

use shim_runtime::Code;
use shim_testing::{Dialect, FakeContainerd, Result};

use super::FIXTURE;

#[test]
fn what_is_not_understood_is_refused_by_name_and_leaves_nothing() -> Result<()> {
    for (uri, why) in [
        ("ttrpc+unix:///run/s.sock?streaming_id=c1-stdout", "does not stream"),
        ("http://localhost/log", "no scheme `http`"),
        ("file://relative", "no absolute path"),
        ("/no/such/fifo", "No such file"),
    ] {
        for terminal in [false, true] {
            let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
            let mut builder = ctrd.bundle("c1").log_uri(uri);
            if terminal {
                builder = builder.terminal();
            }
            let bundle = builder.build()?;
            let mut shim = ctrd.start(FIXTURE, &bundle)?;
            let refused = shim.task().create(&bundle).unwrap_err();
            // Never `Unimplemented`: containerd would change the version of its client.
            assert_ne!(refused.code(), Some(Code::Unimplemented));
            let text = refused.to_string();
            assert!(text.contains(&format!("cannot use `{uri}` for stdout")) && text.contains(why), "{text}");
            shim.end()?;
            ctrd.assert_events(&[])?;
            ctrd.check()?;
        }
    }
    Ok(())
}

//! `layers`: three ways to write one shim, which is the same each time.

use shim_testing::{Dialect, FakeContainerd, Result};

use crate::LIMIT;
use crate::shim;

#[test]
fn the_shim_is_the_same_on_every_layer() -> Result<()> {
    for layer in ["layers-by-hand", "layers-on-run", "layers"] {
        for dialect in [Dialect::LEGACY, Dialect::PARAMS] {
            let ctrd = FakeContainerd::new(dialect)?;
            let make = |id: &str| {
                ctrd.bundle(id).args(["sh", "-c", "echo hi; exit 3"]).group("pod").capture().build()
            };
            let (first, second) = (make("c1")?, make("c2")?);
            let mut one = ctrd.start(shim(layer), &first)?;
            let attaches = one.answer().version == 3;
            let mut two =
                if attaches { ctrd.attach(&one, &second)? } else { ctrd.start(shim(layer), &second)? };
            assert_eq!(one.socket(), two.socket(), "{layer}");
            for (shim, bundle) in [(&mut one, first), (&mut two, second)] {
                assert_eq!(shim.run()?.answer(LIMIT)?.exit_status, 3, "{layer}");
                shim.remove()?;
                assert_eq!(bundle.stdio().finish(LIMIT)?.stdout, b"hi\n", "{layer}");
            }
            ctrd.check()?;
        }
    }
    Ok(())
}

//! `-v`: for humans; nobody parses it.

use crate::entry::Config;

pub(super) fn text(config: &Config) -> String {
    format!(
        "{}:\n  Version:  {}\n  Runtime:  shim-runtime {}\n",
        config.runtime,
        config.version,
        env!("CARGO_PKG_VERSION")
    )
}

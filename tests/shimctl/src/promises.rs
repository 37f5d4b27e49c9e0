//! `shimctl promises`: the registry as a table.

use std::process::ExitCode;

use shim_testing::promise;

use crate::table;

/// Prints every promise that the stand-in watches.
pub(crate) fn print() -> ExitCode {
    let heading = ["NAME", "LEVEL", "CONTRACT", "PROMISE"].map(str::to_owned).to_vec();
    let row = |promise: &&promise::Promise| {
        [promise.name, &promise.level.to_string(), promise.section, promise.sentence]
            .map(str::to_owned)
            .to_vec()
    };
    let rows: Vec<_> = std::iter::once(heading).chain(promise::ALL.iter().map(row)).collect();
    table::print(&rows, &[0, 1, 2, 3]);
    ExitCode::SUCCESS
}

//! Every file in `fail` is one mistake and has what the compiler says to it beside it; every file in `pass` is a
//! use that must compile. After a change of words look at the difference that
//! `TRYBUILD=overwrite cargo test -p ui-tests` makes, and commit it if it is better than what was there.

use std::env;
use std::process::Command;

/// Set in the second life of the test, in which trybuild runs.
const INNER: &str = "UI_TESTS_INNER";

#[test]
fn every_mistake_is_explained_and_every_good_use_compiles() {
    if env::var_os(INNER).is_some() {
        // One run for both: it builds the runtime once.
        let cases = trybuild::TestCases::new();
        cases.compile_fail("tests/fail/*.rs");
        cases.pass("tests/pass/*.rs");
        return;
    }
    // trybuild also runs what passes, but a shim started by nobody rightly fails. So cargo is given a runner that
    // starts nothing, by an environment variable, which can safely be set for a new process only.
    let libc = if cfg!(target_env = "musl") { "MUSL" } else { "GNU" };
    let runner = format!("CARGO_TARGET_{}_UNKNOWN_LINUX_{libc}_RUNNER", env::consts::ARCH.to_uppercase());
    let status = env::current_exe().and_then(|this| {
        Command::new(this)
            .args(["--nocapture", "--test-threads=1"])
            .envs([(INNER, "1"), (&*runner, "true")])
            .status()
    });
    assert!(status.is_ok_and(|status| status.success()), "see the cases above");
}

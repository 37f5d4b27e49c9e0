use super::*;

#[test]
fn every_value_is_checked_even_after_a_wrong_one() {
    let mut errors = Errors::default();
    let source = r#"runtime = "", version = "", task = [2, 4, x, 2], group = ["", "a", "a"], crate = self::rt,
                    shutdown_on = [SIGKILL, TERM, sigtrem, SIGABRT, SIGUSR1]"#;
    let args = crate::args::parse(source.parse().unwrap_or_default(), &mut errors);
    check(args, &mut errors);
    let expected = [
        "a runtime name has at least two dotted parts, as in \"io.containerd.hello.v1\"",
        "a version cannot be empty; drop `version` to take the package's",
        "path must start with `::` or `crate::`; write `crate = ::rt`",
        "containerd has no task API v4; use 2, 3 or both",
        "expected a version, as in `task = [2, 3]`",
        "version 2 is listed twice",
        "a group label cannot be empty",
        "label `a` is listed twice",
        "`SIGKILL` cannot be caught; drop it from `shutdown_on`",
        "unknown signal `TERM`; did you mean `SIGTERM`?",
        "unknown signal `sigtrem`; did you mean `SIGTERM`?",
        "`SIGABRT` does not end a shim; drop it from `shutdown_on`",
        "`SIGUSR1` makes the runtime log what the shim holds; drop it from `shutdown_on`",
    ];
    assert_eq!(errors.messages(), expected);
}

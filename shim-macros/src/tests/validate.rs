use super::check;

#[test]
fn names_that_containerd_can_find_are_accepted_and_others_told_what_was_meant() {
    for (name, meant) in [
        ("io.containerd.host.v1", ""),
        ("io.containerd.runc.v2-rs", ""),
        ("my_vm-2.v10", ""),
        ("io.containerd.hello", "io.containerd.hello.v1"),
        ("io.containerd.hello.2", "io.containerd.hello.v2"),
        ("io.containerd.hello.V2", "io.containerd.hello.v2"),
        ("hello", "io.containerd.hello.v1"),
        ("/usr/bin/containerd-shim-my-vm-v2", "io.containerd.my-vm.v2"),
        ("containerd-shim-my-vm-v2", "io.containerd.my-vm.v2"),
        ("my-vm", "io.containerd.my-vm.v1"),
    ] {
        let error = check(&format!("runtime = \"{name}\"")).concat();
        assert!(error.is_empty() == meant.is_empty() && error.contains(meant), "{name}: {error}");
    }
}

#[test]
fn every_value_is_checked_even_after_a_wrong_one() {
    let options = r#"runtime = "", version = "", task = [2, 4, x, 2], group = ["", "a", "a"], crate = self::rt,
                     shutdown_on = [SIGKILL, TERM, sigtrem, SIGABRT, SIGUSR1]"#;
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
    assert_eq!(check(options), expected);
}

#[test]
fn what_the_high_level_needs_is_switched_off_at_the_low_level_only() {
    let judge = |options: &str| check(&format!(r#"runtime = "io.x.v1", {options}"#));
    for good in ["raw, reaper = false, subreaper = false, logger = false", "reaper = true, logger = true"] {
        assert!(judge(good).is_empty(), "{good}");
    }
    for (options, place) in [
        ("reaper = false", "drop `reaper = false`"),
        ("subreaper = false", "drop `subreaper = false`"),
        ("logger = false", "drop `logger = false`"),
        ("raw, subreaper = true, reaper = false", "a subreaper that never reaps leaves zombies"),
    ] {
        let errors = judge(options);
        assert!(errors.len() == 1 && errors[0].contains(place), "{options}: {errors:?}");
    }
}

use super::messages;
use crate::args::Args;

fn read(options: &str) -> (Args, Vec<String>) {
    let (args, errors) = super::read(options);
    (args, messages(errors))
}

#[test]
fn several_mistakes_are_reported_in_one_run_and_hide_none() {
    let (args, errors) = read(
        r#"runtme = "a"; task = 2, raw = true, group, version "1", no_main, , crate = "a" raw, main = 0"#,
    );
    let expected = [
        "unknown option `runtme`; did you mean `runtime`?",
        "expected `,` between options",
        "expected a list of versions, as in `task = [2, 3]`",
        "`raw` is a flag and takes no value; write `raw` alone, or leave it out",
        "`group` needs a value, as in `group = [\"com.example.group\"]`",
        "`version` needs a value, as in `version = \"1.2.3\"`",
        "write `main = false` in place of `no_main`",
        "expected an option, as in `runtime = \"io.containerd.hello.v1\"`",
        "expected a path without quotes, as in `crate = ::my_reexport::shim_runtime`",
        "expected `true` or `false`, as in `main = false`",
    ];
    assert_eq!(errors, expected);
    assert!(args.own_main);
}

#[test]
fn a_forgotten_comma_is_demanded_and_what_follows_is_read() {
    let (args, errors) = read(r#"raw = true runtime = "io.x.v1" main = false, task = [2,; 3]"#);
    let comma = "expected `,` between options";
    assert_eq!(
        errors,
        ["`raw` is a flag and takes no value; write `raw` alone, or leave it out", comma, comma]
    );
    assert!(args.runtime.is_some() && args.own_main);
    assert_eq!(args.task.map(|list| list.elements.len()), Some(3));
}

#[test]
fn a_name_of_elsewhere_is_translated_and_what_was_meant_is_not_missing_too() {
    let (_, errors) = read(r#"name = "io.x.v1", no_sub_reaper = true"#);
    let runtime = r#"write `runtime = "io.containerd.hello.v1"` in place of `name`"#;
    assert_eq!(errors, [runtime, "write `subreaper = false` in place of `no_sub_reaper`"]);
}

//! The console blocks of the examples' READMEs, executed. The convention is in CONTRIBUTING.md.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use integration::{built, workspace};

/// A command and the output that the reader is promised.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    command: String,
    output: String,
}

/// The steps of all console blocks. What stands before the first command of a block belongs to none.
fn steps(readme: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut in_console = false;
    for line in readme.lines() {
        match (in_console, line.strip_prefix("$ ")) {
            (_, _) if line.starts_with("```") => in_console = line == "```console",
            (false, _) => {}
            (true, Some(command)) => {
                steps.push(Step { command: command.to_owned(), output: String::new() });
            }
            (true, None) => {
                if let Some(step) = steps.last_mut() {
                    step.output += line;
                    step.output.push('\n');
                }
            }
        }
    }
    steps
}

/// Whether an output is as promised: `...` stands for any text in a line, such as a time or a process id.
fn is_as_promised(output: &str, promised: &str) -> bool {
    let (mut lines, mut expected) = (output.lines(), promised.lines());
    loop {
        match (lines.next(), expected.next()) {
            (None, None) => return true,
            (Some(line), Some(promise)) if line_is_as_promised(line, promise) => {}
            _ => return false,
        }
    }
}

fn line_is_as_promised(line: &str, promise: &str) -> bool {
    let Some((first, rest)) = promise.split_once("...") else { return line == promise };
    let Some(mut line) = line.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once("...").unwrap_or(("", rest));
    for part in middle.split("...").filter(|part| !part.is_empty()) {
        let Some((_, after)) = line.split_once(part) else { return false };
        line = after;
    }
    line.ends_with(last)
}

fn run(command: &str, root: &Path) -> String {
    let programs = [built::example("containerd-shim-host-v1"), built::shimctl()];
    let dirs = programs.map(|program| program.parent().expect("a program is in a folder"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = dirs.into_iter().map(PathBuf::from).chain(std::env::split_paths(&path));
    let output = Command::new("sh")
        // One stream, in the order in which it was written, as on a terminal.
        .args(["-c", &format!("exec 2>&1; {command}")])
        .current_dir(root)
        .env("PATH", std::env::join_paths(all).expect("no folder has a colon in its name"))
        .stdin(Stdio::null())
        .output()
        .expect("run sh");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_console_block_of_each_readme_is_what_happens() {
    let root = workspace::root();
    for example in built::EXAMPLES {
        let file = root.join("examples").join(example).join("README.md");
        let readme = std::fs::read_to_string(&file).expect("every example has a README.md");
        assert_eq!(readme.matches("```console").count(), 1, "{}", file.display());
        let steps = steps(&readme);
        assert!(!steps.is_empty(), "no command in {}", file.display());
        for step in steps {
            let output = run(&step.command, root);
            let Step { command, output: promised } = &step;
            assert!(
                is_as_promised(&output, promised),
                "{}: `{command}` gave\n{output}instead of\n{promised}",
                file.display()
            );
        }
    }
}

#[test]
fn a_block_is_commands_each_with_the_lines_below_it() {
    let readme = "text\n```console\n$ echo a\na\n$ true\n```\n$ not this\n```rust\n$ nor this\n```\n";
    let step = |command: &str, output: &str| Step { command: command.into(), output: output.into() };
    assert_eq!(steps(readme), [step("echo a", "a\n"), step("true", "")]);
}

#[test]
fn three_dots_stand_for_what_differs_from_run_to_run() {
    assert!(is_as_promised("pid 12 ended after 1.5 ms\nexit 3\n", "pid ... ended after ... ms\nexit 3\n"));
    assert!(!is_as_promised("pid 12 ended\n", "pid ... began\n"));
    assert!(!is_as_promised("one\ntwo\n", "...\n"));
    assert!(!is_as_promised("one\n", "on\n"));
}

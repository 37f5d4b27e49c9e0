//! What the plugin makes of a container's output: lines with a time, a stream and a tag.

use std::fs;

use k8s_cri::v1::ReopenContainerLogRequest;

use super::node::Node;
use crate::process::until;

/// The lines of a log without their times.
fn lines(log: &str) -> Vec<&str> {
    log.lines().map(|line| line.split_once(' ').map_or(line, |(_, rest)| rest)).collect()
}

pub(super) fn a_log_has_a_line_for_each_line_and_stream(node: &mut Node) {
    let pod = node.pod("p");
    // Beyond 16 KiB the plugin divides a line.
    let command = "echo one; echo two >&2; seq -s , 10000; echo -n end";
    let container = pod.run("c", &["sh", "-c", command]);
    assert_eq!(container.exited().exit_code, 0);
    let log = fs::read_to_string(&container.log).expect("read the log");
    let lines = lines(&log);
    let numbers: Vec<_> = (1..=10_000).map(|number| number.to_string()).collect();
    let divided: String = lines
        .iter()
        .filter(|line| line.contains(','))
        .filter_map(|line| line.get("stdout F ".len()..))
        .collect();
    assert_eq!(divided, numbers.join(","));
    assert!(lines.iter().any(|line| line.starts_with("stdout P 1,2,")), "{log}");
    assert_eq!(lines.iter().find(|line| line.starts_with("stderr")), Some(&"stderr F two"));
    let mut stdout = lines.iter().filter(|line| line.starts_with("stdout"));
    assert_eq!(stdout.next(), Some(&"stdout F one"));
    assert!(stdout.next_back().is_some_and(|line| line.ends_with(" end")), "{log}");
    pod.remove();
}

/// The plugin deletes a task as soon as it hears of the exit, and with it ends its copying.
pub(super) fn a_burst_at_the_end_is_logged_whole(node: &mut Node) {
    const BURST: &str = "i=0; while [ $i -lt 20 ]; do echo x; i=$((i+1)); done; \
                         dd if=/dev/zero bs=1000 count=2000 2>/dev/null | tr '\\0' y; echo";
    let pod = node.pod("p");
    for run in 0..20 {
        let container = pod.run(&format!("c{run}"), &["sh", "-c", BURST]);
        assert_eq!(container.exited().exit_code, 0);
        let log = fs::read_to_string(&container.log).expect("read the log");
        let count = |letter: char| -> usize {
            let output = lines(&log).into_iter().filter_map(|line| line.get("stdout F ".len()..));
            output.map(|line| line.matches(letter).count()).sum()
        };
        assert_eq!((count('x'), count('y')), (20, 2_000_000), "run {run}");
        container.remove();
    }
    pod.remove();
}

pub(super) fn a_log_goes_on_in_a_new_file(node: &mut Node) {
    let pod = node.pod("p");
    let command = "echo one; while [ ! -e /more ]; do sleep 0.1; done; echo two; exec sleep 1000";
    let container = pod.run("c", &["sh", "-c", command]);
    let whole = |line: &str| {
        until(line, || Some(fs::read_to_string(&container.log).ok()?).filter(|log| log.contains(line)))
    };
    whole("stdout F one\n");
    let rotated = container.log.with_extension("old");
    fs::rename(&container.log, &rotated).expect("rename the log");
    let request = ReopenContainerLogRequest { container_id: container.id.clone() };
    node.client.reopen_container_log(request).expect("open the log again");
    container.exec(&["touch", "/more"]);
    assert_eq!(lines(&whole("stdout F two\n")), ["stdout F two"]);
    assert_eq!(lines(&fs::read_to_string(rotated).expect("read the log")), ["stdout F one"]);
    pod.remove();
}

pub(super) fn a_terminal_has_its_output_logged(node: &mut Node) {
    let pod = node.pod("p");
    let command = "if [ -t 0 ] && [ -t 1 ] && [ -t 2 ]; then echo terminal; fi; echo oh >&2; exit 3";
    let container = pod.container_with("c", &["sh", "-c", command], |config| config.tty = true);
    container.start();
    assert_eq!(container.exited().exit_code, 3);
    let log = fs::read_to_string(&container.log).expect("read the log");
    let shown: Vec<_> = lines(&log).into_iter().map(str::trim_end).collect();
    assert_eq!(shown, ["stdout F terminal", "stdout F oh"]);
    pod.remove();
}

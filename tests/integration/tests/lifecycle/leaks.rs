//! What containers leave in a shim that outlives them (contract 12.2): no descriptor and no thread.

use shim_runtime::Signal;
use shim_testing::{Dialect, FakeContainerd, Mode, Result};

use super::{FIXTURE, LIMIT, bundle, until};

/// How many containers of each kind.
const ROUNDS: usize = 10;

/// What a container is, runs, and has done to it: its streams, whether it is started, whether it is killed.
struct Life {
    kind: &'static str,
    args: &'static [&'static str],
    terminal: bool,
    starts: bool,
    killed: bool,
}

const LIVES: [Life; 7] = [
    Life { kind: "", args: &["echo", "hi"], terminal: false, starts: true, killed: false },
    Life { kind: "", args: &["echo", "hi"], terminal: true, starts: true, killed: false },
    Life { kind: "", args: &["sleep", "1000"], terminal: true, starts: true, killed: true },
    Life { kind: "", args: &["true"], terminal: false, starts: false, killed: false },
    Life { kind: "thread", args: &["7"], terminal: false, starts: true, killed: false },
    Life { kind: "thread", args: &["waits"], terminal: false, starts: true, killed: true },
    Life { kind: "console", args: &["true"], terminal: true, starts: true, killed: false },
];

#[test]
fn of_many_containers_and_execs_a_shim_that_lives_on_keeps_no_descriptor_and_no_thread() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let first = bundle(&ctrd, "c1", "").build()?;
    let mut shim = ctrd.start(FIXTURE, &first)?;
    let before = shim.usage()?;
    for round in 0..ROUNDS {
        for (number, life) in LIVES.iter().enumerate() {
            let id = format!("c{round}-{number}");
            let builder = bundle(&ctrd, &id, life.kind).args(life.args.iter().copied());
            let bundle = if life.terminal { builder.terminal().build()? } else { builder.build()? };
            let task = shim.task().container(&id);
            task.create(&bundle)?;
            if life.starts {
                let waiting = task.wait();
                task.start()?;
                if life.killed && life.kind.is_empty() {
                    let exec = task.exec("e1");
                    let stdio = ctrd.stdio("e1", Mode::Capture, life.terminal)?;
                    exec.add(&bundle, &["echo", "hi"], &stdio)?;
                    exec.start()?;
                    exec.wait().answer(LIMIT)?;
                    let (refused, stdio) = (task.exec("e2"), ctrd.stdio("e2", Mode::Capture, false)?);
                    refused.add(&bundle, &["no-such-program"], &stdio)?;
                    assert!(refused.start().is_err());
                }
                if life.killed {
                    task.kill(Signal::KILL)?;
                }
                waiting.answer(LIMIT)?;
            }
            task.delete()?;
            bundle.remove()?;
        }
        let bundle = bundle(&ctrd, &format!("f{round}"), "fails-after-spawn").build()?;
        assert!(shim.task().container(bundle.id()).create(&bundle).is_err());
        bundle.remove()?;
    }
    shim.expect_descriptors(&before)?;
    shim.expect_threads(&before)?;
    shim.server()?.signal(Signal::USR1)?;
    until("the shim's own account", || first.log().contains("holds 0 tasks"));
    shim.end()?;
    ctrd.check()
}

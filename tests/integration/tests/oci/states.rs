//! Which call is answered how in which state (contract 6.3), as one table for the container and one for its execs.
//! The example `runc` is held to it in every cell; containerd's own shims are held to it where they can be brought
//! into the state without a race, so that each difference from them is one that is written down here.

use std::path::Path;
use std::thread;
use std::time::Duration;

use integration::workspace;
use serde_json::json;
use shim_runtime::{Code, Signal};
use shim_testing::{Bundle, Dialect, Failure, FakeContainerd, Mode, Result, Shim, Task};

use crate::recorder::{Recorder, with_options};
use crate::{LIMIT, shim};

/// How a container's calls are answered.
const CONTAINER: &str = "
    call        creating   created   starting   running   paused   stopped    deleted
    State       not-found  ok        ok         ok        ok       ok         not-found
    Start       waits      ok        waits      refused   refused  refused    not-found
    Delete      waits      ok        waits      refused   refused  ok         ok
    Exec        not-found  ok        ok         ok        refused  refused    not-found
    Kill        not-found  ok        ok         ok        ok       not-found  not-found
    Pause       waits      refused   waits      ok        refused  refused    not-found
    Resume      waits      refused   waits      refused   ok       refused    not-found
    Update      waits      ok        waits      ok        ok       refused    not-found
    Checkpoint  waits      refused   waits      ok        ok       refused    not-found
    Pids        not-found  ok        ok         ok        ok       ok         not-found
    Connect     ok         ok        ok         ok        ok       ok         ok
    ResizePty   not-found  ok        ok         ok        ok       ok         not-found
    CloseIO     not-found  ok        ok         ok        ok       ok         not-found
    Wait        not-found  waits     waits      waits     waits    ok         not-found
";

/// How an exec's calls are answered, by its own state and, after a dash, its container's where that does not run.
const EXEC: &str = "
    call       added    added-created  added-paused  added-stopped  running  running-created  running-paused  stopped    failed   deleted
    State      ok       ok             ok            ok             ok       ok               ok              ok         ok       not-found
    Start      ok       ok             refused       refused        refused  refused          refused         refused    refused  not-found
    Delete     ok       ok             ok            ok             refused  refused          refused         ok         ok       not-found
    Exec       exists   exists         exists        exists         exists   exists           exists          exists     exists   ok
    Kill       refused  refused        refused       refused        ok       ok               ok              not-found  refused  not-found
    ResizePty  ok       ok             ok            ok             ok       ok               ok              refused    ok       not-found
    CloseIO    ok       ok             ok            ok             ok       ok               ok              ok         ok       not-found
    Wait       waits    waits          waits         waits          waits    waits            waits           ok         ok       not-found
";

/// What containerd's own shims answer otherwise.
struct Difference {
    releases: &'static str,
    /// What is called, in which state, and what they answer.
    cell: (&'static str, &'static str, &'static str, &'static str),
    /// Why this shim does not do so.
    _reason: &'static str,
}

const GO_DIFFERS: [Difference; 4] = [
    Difference {
        releases: "1.6 1.7 2",
        cell: ("container", "Delete", "deleted", "not-found"),
        _reason: "a caller that has lost the first answer gets it again",
    },
    Difference {
        releases: "1.6 1.7 2",
        cell: ("exec", "Start", "added-paused", "ok"),
        _reason: "it is left to the engine, which refuses it",
    },
    Difference {
        releases: "1.6",
        cell: ("exec", "Start", "added-stopped", "ok"),
        _reason: "it is left to the engine, which refuses it",
    },
    Difference {
        releases: "1.6 1.7 2",
        cell: ("exec", "CloseIO", "deleted", "refused"),
        _reason: "it is an error without a code, and all other calls say that there is no such exec",
    },
];

/// States between two others, which last as long as an engine hangs.
const FLEETING: [&str; 2] = ["creating", "starting"];

/// How long a call is looked at that has to wait for another. One that has to answer has all the time it needs.
const WAITS: Duration = Duration::from_millis(300);

/// How long to wait for an answer that is to be as expected.
fn limit(expected: &str) -> Duration {
    if expected == "waits" { WAITS } else { LIMIT }
}

/// A table's cells: call, state, answer.
fn cells(table: &'static str) -> Vec<(&'static str, &'static str, &'static str)> {
    let mut lines = table.trim().lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let states = lines.next().unwrap_or_default();
    let row = |words: Vec<&'static str>| {
        assert_eq!(words.len(), states.len(), "{words:?}");
        let cells = states.iter().zip(&words).skip(1);
        cells.map(|(state, answer)| (words[0], *state, *answer)).collect::<Vec<_>>()
    };
    lines.flat_map(row).collect()
}

/// A shim with a container of its own for every cell.
struct Pod {
    ctrd: FakeContainerd,
    shim: Shim,
}

impl Pod {
    fn new(dialect: Dialect, binary: &Path) -> Result<Self> {
        let ctrd = FakeContainerd::new(dialect)?;
        let first = ctrd.bundle("first").group("pod").full_spec().build()?;
        Ok(Self { shim: ctrd.start(binary, &first)?, ctrd })
    }

    /// A container and its engine, to be brought into a state.
    fn container(&self, id: &str) -> Result<Subject> {
        let engine = Recorder::new()?;
        let bundle =
            with_options(self.ctrd.bundle(id).group("pod").full_spec(), &engine.options()).build()?;
        let shim = self.ctrd.attach(&self.shim, &bundle)?;
        Ok(Subject { ctrd: self.ctrd.clone(), task: shim.task(), _shim: shim, engine, bundle })
    }
}

/// What is called in a state.
struct Subject {
    ctrd: FakeContainerd,
    task: Task,
    _shim: Shim,
    engine: Recorder,
    bundle: Bundle,
}

impl Subject {
    fn bring_to(&self, state: &str) -> Result<()> {
        if state == "creating" {
            return Ok(());
        }
        self.task.create(&self.bundle)?;
        if matches!(state, "created" | "starting") {
            return Ok(());
        }
        self.task.start()?;
        match state {
            "running" => Ok(()),
            "paused" => self.task.pause(),
            _ => {
                self.stop()?;
                if state == "deleted" { self.task.delete().map(drop) } else { Ok(()) }
            }
        }
    }

    fn stop(&self) -> Result<()> {
        self.task.kill(Signal::KILL)?;
        self.task.wait().answer(LIMIT).map(drop)
    }

    /// Brings an exec into a state, and its container into the one after the dash.
    fn bring_exec_to(&self, state: &str) -> Result<Task> {
        let (own, container) = state.split_once('-').unwrap_or((state, "running"));
        self.bring_to(if container == "created" { "created" } else { "running" })?;
        let exec = self.task.exec("e1");
        self.add(&exec)?;
        match own {
            "added" => {}
            "failed" => {
                self.engine.fail("exec", "no exec today")?;
                assert!(exec.start().is_err());
                self.engine.mend("exec");
            }
            _ => drop(exec.start()?),
        }
        if matches!(own, "stopped" | "deleted") {
            exec.kill(Signal::KILL)?;
            exec.wait().answer(LIMIT)?;
        }
        if own == "deleted" {
            exec.delete()?;
        }
        match container {
            "paused" => self.task.pause()?,
            "stopped" => self.stop()?,
            _ => {}
        }
        Ok(exec)
    }

    fn add(&self, exec: &Task) -> Result<()> {
        exec.add(&self.bundle, &["true"], &self.ctrd.stdio("e1", Mode::Null, false)?)
    }

    /// Makes a call and tells its answer in the tables' words.
    fn answer(&self, task: &Task, call: &str, limit: Duration) -> &'static str {
        let quick = task.within(limit);
        let result = match call {
            "State" => task.state().map(drop),
            "Start" => quick.start().map(drop),
            "Delete" => quick.delete().map(drop),
            "Exec" => self.add(&task.exec("e1")),
            "Kill" => task.kill(Signal::KILL),
            "Pause" => quick.pause(),
            "Resume" => quick.resume(),
            "Update" => quick.update(&json!({})),
            "Checkpoint" => quick.checkpoint("/image"),
            "Pids" => match task.pids() {
                Ok(answer) if answer.processes.is_empty() => return "empty",
                answer => answer.map(drop),
            },
            "Connect" => task.connect().map(drop),
            "ResizePty" => task.resize_pty(80, 25),
            "CloseIO" => task.close_io(),
            _ => return wait(task, limit),
        };
        in_words(result)
    }
}

fn wait(task: &Task, limit: Duration) -> &'static str {
    match task.wait().answer(limit) {
        Err(failure) if failure.code().is_none() => "waits",
        result => in_words(result.map(drop)),
    }
}

fn in_words(result: Result<()>) -> &'static str {
    let Err(failure) = result else { return "ok" };
    match failure.code() {
        Some(Code::NotFound) => "not-found",
        Some(Code::AlreadyExists) => "exists",
        // Go's shim has no code for a call that the state does not allow.
        Some(Code::FailedPrecondition | Code::Unknown) => "refused",
        Some(Code::DeadlineExceeded) => "waits",
        _ => panic!("{failure:?}"),
    }
}

/// The cells of both tables that a shim answers otherwise than `expected` has it.
fn differences(
    pod: &Pod,
    is_tried: impl Fn(&str) -> bool,
    expected: impl Fn(&str, &str, &str, &'static str) -> &'static str,
) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut compare = |what: &str, call: &str, state: &str, expected: &str, seen: &str| {
        if seen != expected {
            wrong.push(format!("{call} of the {what} that is {state}: {seen}, not {expected}"));
        }
    };
    for (n, (call, state, answer)) in cells(CONTAINER).into_iter().enumerate() {
        if is_tried(state) {
            let subject = pod.container(&format!("c{n}"))?;
            let expected = expected("container", call, state, answer);
            let seen = of_container(&subject, call, state, limit(expected))?;
            compare("container", call, state, expected, seen);
        }
    }
    for (n, (call, state, answer)) in cells(EXEC).into_iter().enumerate() {
        if is_tried(state) {
            let subject = pod.container(&format!("e{n}"))?;
            let brought = subject.bring_exec_to(state);
            let expected = expected("exec", call, state, answer);
            let seen = brought.map_or("out of reach", |exec| subject.answer(&exec, call, limit(expected)));
            compare("exec", call, state, expected, seen);
        }
    }
    Ok(wrong)
}

fn of_container(subject: &Subject, call: &str, state: &str, limit: Duration) -> Result<&'static str> {
    subject.bring_to(state)?;
    if !FLEETING.contains(&state) {
        return Ok(subject.answer(&subject.task, call, limit));
    }
    subject.engine.hang(if state == "creating" { "create" } else { "start" })?;
    thread::scope(|scope| {
        let under_way = scope.spawn(|| {
            if state == "creating" {
                subject.task.create(&subject.bundle).map(drop)
            } else {
                subject.task.start().map(drop)
            }
        });
        subject.engine.until_it_hangs();
        let answer = subject.answer(&subject.task, call, limit);
        subject.engine.noted("hangs")?.signal(Signal::KILL)?;
        // It fails, for its engine was killed.
        let _ = under_way.join();
        Ok::<_, Failure>(answer)
    })
}

#[test]
fn every_call_is_answered_in_every_state_as_the_table_says() -> Result<()> {
    let pod = Pod::new(Dialect::PARAMS, shim())?;
    let wrong = differences(&pod, |_| true, |_, _, _, answer| answer)?;
    assert!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[test]
fn containerd_s_own_shims_answer_as_the_table_says_but_where_it_says_so() -> Result<()> {
    let shims = [("1.6", Dialect::V1_6), ("1.7", Dialect::V1_7), ("2", Dialect::V2_0)];
    let mut wrong = Vec::new();
    for (line, dialect) in shims {
        let binary = workspace::containerd(line, "containerd-shim-runc-v2");
        if !can_run(&binary) {
            return Ok(());
        }
        let pod = Pod::new(dialect, &binary)?;
        let differs = |what: &str, call: &str, state: &str, answer: &'static str| {
            let is_known = |known: &&Difference| {
                let (of, by, at, _) = known.cell;
                known.releases.split(' ').any(|release| release == line)
                    && (of, by, at) == (what, call, state)
            };
            GO_DIFFERS.iter().find(is_known).map_or(answer, |known| known.cell.3)
        };
        // A second Start of an exec that has failed brings those of some releases down.
        let is_tried = |state: &str| !FLEETING.contains(&state) && state != "failed";
        wrong.extend(differences(&pod, is_tried, differs)?.into_iter().map(|cell| format!("{line}: {cell}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// With `SHIM_TESTS=all` a shim that is missing is a failure.
fn can_run(binary: &Path) -> bool {
    let possible = binary.exists() && nix::unistd::geteuid().is_root();
    let needed = std::env::var_os("SHIM_TESTS").is_some_and(|tests| tests == "all");
    assert!(possible || !needed, "root and `{}` are needed; `tests/deps` brings it", binary.display());
    if !possible {
        println!("left out: the states of `{}`, which needs root and `tests/deps`", binary.display());
    }
    possible
}

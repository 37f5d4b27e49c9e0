//! Which process is a container's init: each way in which `create` can make one, with each in which `start` can return
//! one. Either it runs and its exit is told, or it is refused with a sentence, and no process is left.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use shim_runtime::prelude::*;
use shim_runtime::{Bundle, Code};
use shim_testing::Harness;

const LIMIT: Duration = Duration::from_secs(30);

/// What comes of each pair: `runs`, or the words of the refusal, which come at Create where that has no way on.
const TABLE: &str = "
    create \\ start  created  unopened  spawned  adopted  foreign  thread  external
    nothing         no-process  no-process  runs  unknown  unknown  runs  runs
    gated           runs     unopened  another  runs  unknown  another  another
    opened          runs     runs      another  runs  unknown  another  another
    forgotten       refused  refused   refused  refused  refused  refused  refused
    twice           second   second    second   second  second  second  second
    mismatched      wrong    wrong     wrong    wrong   wrong   wrong   wrong
    own             known    known     known    known   known   known   known
    stranger        foreign  foreign   foreign  foreign foreign foreign foreign
";

/// The words of each refusal.
fn words(outcome: &str) -> &'static str {
    match outcome {
        "no-process" => "but `create` made no process; return the one that `start` has started",
        "unopened" => "call `Gated::open` in `start`",
        "another" => "`start` returned another process than `create` made; return `Started::created()`",
        "unknown" | "foreign" => "is not a child of this shim",
        "second" => "has its init process already; start others by `Context::spawn_gated`",
        "wrong" => "tell that one, or none",
        "known" => "is known already",
        // Which words, depends on whether its end was noticed before.
        "refused" => "",
        other => panic!("no outcome `{other}`"),
    }
}

/// A container that is made and started as two annotations say.
#[containerd_shim(runtime = "io.containerd.inits.v1", main = false)]
struct Inits;

struct Init {
    context: Context,
    starts: String,
    gated: Option<Gated>,
    pid: Option<Pid>,
}

/// Every process that was started, so that none is left unnoticed.
static STARTED: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

fn note(pid: Pid) {
    STARTED.lock().unwrap_or_else(PoisonError::into_inner).push(pid);
}

fn sleeping() -> Command {
    let mut command = Command::new("sleep");
    command.arg("1000");
    command
}

fn annotation(bundle: &Bundle, name: &str) -> Result<String> {
    Ok(bundle.spec()?.annotations.remove(name).unwrap_or_default())
}

impl Shim for Inits {
    type Container = Init;

    fn new(_: &Context) -> Result<Self> {
        Ok(Self)
    }

    fn create(&self, req: &mut Create) -> Result<Init> {
        let (context, starts) = (req.context().clone(), annotation(req.bundle(), "starts")?);
        let makes = annotation(req.bundle(), "makes")?;
        let (mut gated, mut pid) = (None, None);
        match makes.as_str() {
            "nothing" => {}
            "own" => {
                let own = context.spawn_gated(sleeping())?;
                note(own.pid());
                pid = Some(own.pid());
                gated = Some(own);
            }
            "stranger" => pid = Pid::new(1),
            makes => {
                let made = req.spawn_gated(sleeping())?;
                note(made.pid());
                match makes {
                    "opened" => made.open()?,
                    "twice" => drop(req.spawn_gated(sleeping())?),
                    "mismatched" => pid = Pid::new(1),
                    _ => {}
                }
                gated = Some(made).filter(|_| makes != "forgotten");
            }
        }
        Ok(Init { context, starts, gated, pid })
    }
}

impl Container for Init {
    fn pid(&self) -> Option<Pid> {
        self.pid
    }

    fn start(&self, _: Stdio) -> Result<Started> {
        let opens = matches!(self.starts.as_str(), "created" | "adopted");
        if let Some(gated) = self.gated.as_ref().filter(|_| opens) {
            // It may have been opened before.
            let _ = gated.open();
        }
        match self.starts.as_str() {
            "created" | "unopened" => Ok(Started::created()),
            "spawned" => {
                let gated = self.context.spawn_gated(sleeping())?;
                note(gated.pid());
                drop(gated);
                Started::spawn(&self.context, sleeping())
            }
            "adopted" => Ok(Started::adopt(self.gated.as_ref().map_or_else(Pid::own, Gated::pid))),
            "foreign" => Ok(Started::adopt(Pid::own())),
            "thread" => {
                let (tell, told) = std::sync::mpsc::channel();
                let tell = Mutex::new(tell);
                let stop = move |_| drop(tell.lock().map(|tell| tell.send(())));
                Started::thread(stop, move || Ok(told.recv().map_or(255, |()| 137)))
            }
            _ => {
                let (tell, told) = std::sync::mpsc::channel();
                let tell = Mutex::new(tell);
                let (started, exit) = Started::external(move |_| drop(tell.lock().map(|tell| tell.send(()))));
                std::thread::spawn(move || exit.exit(told.recv().map_or(255, |()| 137)));
                Ok(started)
            }
        }
    }
}

fn is_gone(pid: Pid) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

fn live(makes: &str, starts: &str, outcome: &str) -> shim_testing::Result<()> {
    let harness = Harness::<Inits>::new()?;
    let bundle = harness.bundle("c1").annotation("makes", makes).annotation("starts", starts).build()?;
    let task = harness.task(&bundle)?;
    let refused = |failure: shim_testing::Failure| {
        let text = failure.to_string();
        assert!(text.contains(words(outcome)), "{makes} and {starts}: {text}");
        assert_ne!(failure.code(), Some(Code::Internal), "{makes} and {starts}: {text}");
    };
    match task.create(&bundle) {
        Err(failure) => refused(failure),
        Ok(created) => {
            let waiting = task.wait();
            match task.start() {
                Ok(started) => {
                    assert_eq!(outcome, "runs", "{makes} and {starts}");
                    assert_eq!(started.pid, created.pid.max(started.pid));
                    task.kill(Signal::KILL)?;
                    assert_eq!(waiting.answer(LIMIT)?.exit_status, 137, "{makes} and {starts}");
                }
                Err(failure) => refused(failure),
            }
            task.delete()?;
        }
    }
    let end = Instant::now() + LIMIT;
    for pid in std::mem::take(&mut *STARTED.lock().unwrap_or_else(PoisonError::into_inner)) {
        while !is_gone(pid) {
            assert!(Instant::now() < end, "{makes} and {starts}: process {pid} is left");
            std::thread::yield_now();
        }
    }
    if (makes, starts) == ("nothing", "spawned") {
        // Until it is started the task has the shim's pid, which the stand-in takes for a broken promise.
        return Ok(());
    }
    harness.check()
}

#[test]
fn whatever_create_makes_and_start_returns_is_followed_or_refused_with_a_sentence() -> shim_testing::Result<()>
{
    let mut lines = TABLE.trim().lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Its first three words name the rows and the columns.
    let starts = lines.next().unwrap_or_default().split_off(3);
    for row in lines {
        assert_eq!(row.len(), starts.len() + 1, "{row:?}");
        for (starts, outcome) in starts.iter().zip(&row[1..]) {
            live(row[0], starts, outcome)?;
        }
    }
    Ok(())
}

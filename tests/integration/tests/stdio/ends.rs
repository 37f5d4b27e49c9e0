//! A client like containerd's since 1.7, which closes its ends of the FIFOs as soon as it knows that a process has
//! stopped: an exit is told once what the process had written was read, within bounds (contract 5.3).

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode as Permissions;
use nix::unistd::mkfifo;
use shim_runtime::{Code, Signal};
use shim_testing::{Result, Stdio, Task};

use super::{Host, LIMIT, until, until_stuck, when};

/// How a client reads.
#[derive(Clone, Copy)]
struct Pace {
    piece: usize,
    pause: Duration,
}

/// A reader that needs much longer for what the pipes hold than a process for its exit, and never pauses for long.
const SLOW: Pace = Pace { piece: 2048, pause: Duration::from_millis(1) };
/// A reader that has its end open and takes nothing.
const STOPPED: Pace = Pace { piece: 0, pause: Duration::from_millis(1) };

/// A client of one output.
struct Client {
    path: PathBuf,
    leave: Arc<AtomicBool>,
    reader: JoinHandle<Vec<u8>>,
}

impl Client {
    /// Makes a FIFO and reads from it until it is told to leave.
    fn new(host: &Host, name: &str, pace: Pace) -> Self {
        let path = host.ctrd.root().join(name);
        let _ = fs::remove_file(&path);
        mkfifo(&path, Permissions::S_IRWXU).unwrap();
        let fifo = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path).unwrap();
        let leave = Arc::new(AtomicBool::new(false));
        let told = leave.clone();
        let reader = thread::spawn(move || read(fifo, pace, &told));
        Self { path, leave, reader }
    }

    fn stdio(&self, terminal: bool) -> Stdio {
        Stdio::log(&self.path.to_string_lossy(), terminal)
    }

    /// Closes its end at once, whatever is unread; returns what it has read.
    fn leave(self) -> Vec<u8> {
        self.leave.store(true, Ordering::Release);
        self.reader.join().unwrap()
    }
}

fn read(mut fifo: File, pace: Pace, leave: &AtomicBool) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; pace.piece]);
    while !leave.load(Ordering::Acquire) {
        if pace.piece > 0 {
            match fifo.read(&mut buffer) {
                Ok(count) => all.extend_from_slice(&buffer[..count]),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        thread::sleep(pace.pause);
    }
    all
}

/// Runs an exec whose client leaves as soon as the exit is told; returns what that has read.
fn run_and_leave(host: &Host, id: &str, script: &str, terminal: bool) -> Result<Vec<u8>> {
    let client = Client::new(host, id, SLOW);
    let exec = host.run(id, script, &client.stdio(terminal))?;
    let read = client.leave();
    exec.delete()?;
    Ok(read)
}

#[test]
fn a_slow_reader_has_everything_when_the_exit_is_told() -> Result<()> {
    let host = Host::new()?;
    // What the usual pipes hold, more than that, and so much that the stream is busy.
    for (n, bytes) in [1, 60_000, 120_000, 1_000_000].into_iter().enumerate() {
        let id = format!("e{n}");
        let read = run_and_leave(&host, &id, &format!("head -c {bytes} /dev/zero"), false)?;
        assert_eq!(read.len(), bytes);
    }
    host.end()
}

#[test]
fn a_slow_reader_has_everything_of_a_terminal_when_the_exit_is_told() -> Result<()> {
    let host = Host::new()?;
    for (n, bytes) in [1, 60_000, 200_000].into_iter().enumerate() {
        let id = format!("e{n}");
        let read = run_and_leave(&host, &id, &format!("head -c {bytes} /dev/zero"), true)?;
        assert_eq!(read.len(), bytes);
    }
    host.end()
}

#[test]
fn what_was_written_before_an_output_was_closed_is_waited_for_as_well() -> Result<()> {
    let host = Host::new()?;
    let script = "head -c 60000 /dev/zero; exec >&- 2>&-; exit 5";
    assert_eq!(run_and_leave(&host, "e1", script, false)?.len(), 60_000);
    host.end()
}

#[test]
fn both_outputs_are_waited_for() -> Result<()> {
    let host = Host::new()?;
    let (out, err) = (Client::new(&host, "out", SLOW), Client::new(&host, "err", SLOW));
    let exec = host.shim.task().exec("e1");
    let args = ["sh", "-c", "echo out; head -c 50000 /dev/zero >&2"];
    let stderr = err.path.to_string_lossy().into_owned();
    exec.add_with(&host.bundle, &args, &out.stdio(false), |request| request.stderr = stderr)?;
    exec.start()?;
    exec.wait().answer(LIMIT)?;
    assert_eq!((out.leave().as_slice(), err.leave().len()), (&b"out\n"[..], 50_000));
    exec.delete()?;
    host.end()
}

#[test]
fn the_exit_of_a_container_waits_like_that_of_an_exec() -> Result<()> {
    let host = Host::new()?;
    for (id, kind, args) in [
        ("process", "", ["sh", "-c", "head -c 60000 /dev/zero"].as_slice()),
        ("thread", "thread", &["prints 60000"]),
    ] {
        let client = Client::new(&host, id, SLOW);
        let bundle = host.ctrd.bundle(id).annotation("fixture/kind", kind).args(args.iter().copied());
        let bundle = bundle.log_uri(&client.path.to_string_lossy()).build()?;
        let mut shim = host.ctrd.start(super::FIXTURE, &bundle)?;
        shim.run()?.answer(LIMIT)?;
        assert_eq!(client.leave().len(), 60_000, "{id}");
        shim.remove()?;
    }
    host.end()
}

#[test]
fn until_its_exit_is_told_a_process_counts_as_running_and_can_be_neither_killed_nor_deleted() -> Result<()> {
    let host = Host::new()?;
    // The wait has a bound, so on a busy machine it may be over before it is looked at.
    let seen = (0..20).any(|n| {
        let id = format!("e{n}");
        let client = Client::new(&host, &id, Pace { piece: 512, pause: Duration::from_millis(5) });
        let exec = host.add(&id, "head -c 60000 /dev/zero", &client.stdio(false)).unwrap();
        exec.start().unwrap();
        let seen = is_held(&exec);
        if seen {
            exec.wait().answer(LIMIT).unwrap();
            exec.delete().unwrap();
        }
        client.leave();
        seen
    });
    assert!(seen, "no exit waited for its output");
    host.end()
}

/// Whether a process that is gone is still told to be running.
fn is_held(exec: &Task) -> bool {
    let pid = exec.state().unwrap().pid;
    until("the process to be reaped", || !Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(exec.kill(Signal::KILL).unwrap_err().code(), Some(Code::NotFound));
    let is_running = exec.state().unwrap().exited_at.is_none();
    let deleted = exec.delete().map(drop).map_err(|failure| failure.code());
    // It may be told between the two.
    assert!(deleted.is_ok() || deleted == Err(Some(Code::FailedPrecondition)), "{deleted:?}");
    is_running && deleted.is_err()
}

/// How long the quickest of some exits takes to be told; on a busy machine any one of them may be held up.
fn quickest_exit(mut exit: impl FnMut(&str) -> Result<Duration>) -> Result<Duration> {
    (0..5).try_fold(LIMIT, |quickest, n| Ok(quickest.min(exit(&format!("e{n}"))?)))
}

/// Kills an exec, and returns how long it took until its exit was told.
fn time_of_exit(exec: &Task) -> Result<Duration> {
    let start = Instant::now();
    let waiting = exec.wait();
    exec.kill(Signal::KILL)?;
    waiting.answer(LIMIT)?;
    Ok(start.elapsed())
}

#[test]
fn an_exit_waits_for_a_reader_that_has_stopped_only_as_long_as_it_may_be_held_up() -> Result<()> {
    let host = Host::new()?;
    for terminal in [false, true] {
        let quickest = quickest_exit(|id| {
            let client = Client::new(&host, id, STOPPED);
            let exec = host.add(id, "exec yes", &client.stdio(terminal))?;
            exec.start()?;
            until_stuck(&exec)?;
            let took = time_of_exit(&exec)?;
            exec.delete()?;
            client.leave();
            Ok(took)
        })?;
        assert!(quickest >= Duration::from_millis(100), "the reader was given {quickest:?}");
        assert!(quickest < Duration::from_millis(900), "the reader held up the exit for {quickest:?}");
    }
    host.end()
}

#[test]
fn an_exit_does_not_wait_for_a_reader_that_is_not_there() -> Result<()> {
    let host = Host::new()?;
    let quickest = quickest_exit(|id| {
        let client = Client::new(&host, id, STOPPED);
        let exec = host.add(id, "exec yes", &client.stdio(false))?;
        exec.start()?;
        until_stuck(&exec)?;
        client.leave();
        let took = time_of_exit(&exec)?;
        exec.delete()?;
        Ok(took)
    })?;
    assert!(quickest < Duration::from_millis(90), "{quickest:?}");
    host.end()
}

#[test]
fn a_reader_that_comes_after_the_exit_gets_everything() -> Result<()> {
    let host = Host::new()?;
    let client = Client::new(&host, "e1", STOPPED);
    let (path, stdio) = (client.path.clone(), client.stdio(false));
    client.leave();
    let exec = host.run("e1", "head -c 60000 /dev/zero", &stdio)?;
    let late = thread::spawn(move || fs::read(path).unwrap());
    assert_eq!(late.join().unwrap().len(), 60_000);
    exec.delete()?;
    host.end()
}

#[test]
fn what_a_process_leaves_behind_delays_no_exit_though_it_writes_on() -> Result<()> {
    let host = Host::new()?;
    let end = host.ctrd.root().join("end");
    for terminal in [false, true] {
        let quickest = quickest_exit(|id| {
            let client = Client::new(&host, id, Pace { piece: 4096, pause: Duration::from_millis(1) });
            let flood = format!("until [ -e {} ]; do echo $$; done", end.display());
            let ready = host.ctrd.root().join("ready");
            let _ = fs::remove_file(&ready);
            let left =
                format!("setsid sh -c 'trap : HUP PIPE; touch {}; {flood}' 2>/dev/null &", ready.display());
            let exec =
                host.add(id, &format!("{left} {}; exec sleep 1000", when(&ready)), &client.stdio(terminal))?;
            exec.start()?;
            until("the flood to begin", || ready.exists());
            let took = time_of_exit(&exec)?;
            exec.delete()?;
            client.leave();
            Ok(took)
        })?;
        assert!(quickest < Duration::from_millis(300), "{quickest:?}");
    }
    fs::write(&end, "").unwrap();
    host.end()
}

#[test]
fn what_goes_to_a_file_is_written_when_the_exit_is_told() -> Result<()> {
    const BYTES: usize = 200_000;
    let host = Host::new()?;
    for terminal in [false, true] {
        // A file that takes its time.
        let client = Client::new(&host, "e1", Pace { piece: 4096, pause: Duration::from_millis(1) });
        let uri = format!("file://{}", client.path.display());
        let exec = host.run("e1", &format!("head -c {BYTES} /dev/zero"), &Stdio::log(&uri, terminal))?;
        let read = client.leave();
        // The rest is in the FIFO that it is.
        assert!(read.len() >= BYTES - (64 << 10), "{} of {BYTES} bytes were written", read.len());
        exec.delete()?;
    }
    host.end()
}

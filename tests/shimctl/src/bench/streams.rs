//! What a container's output costs: how fast it flows and what the shim spends on it, how long a Delete takes
//! whose reader has left, and what many quiet containers cost whose streams are attached.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use shim_runtime::{Pid, Signal};
use shim_testing::{Dialect, Failure, Result, Stdio, Task};

use super::round::{END_LIMIT, Running, stand_in};
use super::{Bench, SETTLE, Sample};
use crate::cost::{Activity, Footprint};

/// Sizes of the blocks that are written, and the names of what is told of them.
const BLOCKS: [(u64, &str, &str); 2] = [
    (64 << 10, "stdout, 64 KiB blocks", "CPU of a GiB, 64 KiB blocks"),
    (4 << 10, "stdout, 4 KiB blocks", "CPU of a GiB, 4 KiB blocks"),
];
/// How long anything may take here: some shims hold up a Delete for ten seconds.
const LIMIT: Duration = Duration::from_mins(1);
/// How long attached containers are watched.
const QUIET: Duration = Duration::from_secs(10);

/// Lets execs write zeros, which a client reads as fast as it can.
pub(super) fn measure(running: &Running, bench: &Bench, sample: &mut Sample) -> Result<()> {
    for (block, speed, cpu) in BLOCKS {
        if bench.bytes >= block {
            let flow = flow(running, block, bench.bytes / block)?;
            sample.insert(speed, flow.bytes / f64::from(1 << 20) / flow.took.as_secs_f64());
            sample.insert(cpu, flow.spent.cpu * f64::from(1 << 30) / flow.bytes);
        }
    }
    Ok(())
}

/// What passed through a shim, from the first byte that arrived to the last one.
struct Flow {
    bytes: f64,
    took: Duration,
    spent: Activity,
}

fn flow(running: &Running, block: u64, count: u64) -> Result<Flow> {
    let (exec, path) = (running.shim.task().exec("flow"), fifo(running)?);
    let (bs, count_of) = (format!("bs={block}"), format!("count={count}"));
    add(running, &exec, &["dd", "if=/dev/zero", &bs, &count_of, "status=none"], &path)?;
    let server = running.shim.server()?.pid();
    let reader = thread::spawn(move || drink(&path, block * count, server));
    exec.start()?;
    exec.wait().answer(LIMIT)?;
    let flow = reader.join().unwrap_or_else(|_| Err(Failure::setup("the reader panicked")))?;
    exec.delete()?;
    Ok(flow)
}

/// A FIFO for an exec's output. It is opened by a reader that waits for the shim, as a client's is.
fn fifo(running: &Running) -> io::Result<PathBuf> {
    let path = running.ctrd.root().join("flow");
    let _ = fs::remove_file(&path);
    mkfifo(&path, Mode::S_IRWXU)?;
    Ok(path)
}

fn add(running: &Running, exec: &Task, args: &[&str], fifo: &Path) -> Result<()> {
    exec.add(running.shim.bundle(), args, &Stdio::log(&fifo.to_string_lossy(), false))
}

fn drink(path: &Path, bytes: u64, server: Pid) -> Result<Flow> {
    let (mut fifo, mut buffer) = (File::open(path)?, vec![0; 64 << 10]);
    let mut left = bytes - fifo.read(&mut buffer)? as u64;
    let (began, before, flowing) = (Instant::now(), Activity::of(server)?, left as f64);
    while left > 0 {
        match fifo.read(&mut buffer)? as u64 {
            0 => return Err(Failure::setup(format!("the output ended {left} bytes early"))),
            count => left = left.saturating_sub(count),
        }
    }
    let (took, spent) = (began.elapsed(), Activity::of(server)?.since(before));
    Ok(Flow { bytes: flowing, took, spent })
}

/// How long a Delete takes of an exec that has filled its FIFO and whose reader has left.
pub(super) fn abandoned(bench: &Bench, binary: &Path, dialect: Dialect) -> Result<Sample> {
    let running = Running::start(bench, binary, dialect)?;
    let took = delete_without_reader(&running);
    running.end()?;
    Ok(Sample::from([("Delete, reader gone", super::milliseconds(took?))]))
}

fn delete_without_reader(running: &Running) -> Result<Duration> {
    let (exec, path) = (running.shim.task().exec("flow"), fifo(running)?);
    add(running, &exec, &["cat", "/dev/zero"], &path)?;
    let reader = thread::spawn(move || File::open(path)?.read_exact(&mut [0; 1000]));
    // Not every shim tells the pid of an exec in its State.
    let pid = exec.start()?.pid;
    reader.join().unwrap_or_else(|_| Err(io::Error::other("the reader panicked")))?;
    until_stuck(pid)?;
    let ended = exec.wait();
    // It may be gone already.
    let _ = exec.kill(Signal::KILL);
    ended.answer(LIMIT)?;
    let began = Instant::now();
    exec.within(LIMIT).delete()?;
    Ok(began.elapsed())
}

/// Waits until a process writes no more. Where it has the client's FIFO itself, it ends when its reader leaves.
fn until_stuck(pid: u32) -> Result<()> {
    let end = Instant::now() + LIMIT;
    let written = || {
        let text = shim_testing::kernel_text(format!("/proc/{pid}/io")).unwrap_or_default();
        text.lines().find(|line| line.starts_with("wchar:")).map(str::to_owned)
    };
    let mut before = None;
    while Instant::now() < end {
        let now = written();
        if now.is_none() || now == before {
            return Ok(());
        }
        before = now;
        thread::sleep(Duration::from_millis(100));
    }
    Err(Failure::setup("an exec without a reader writes on and on"))
}

/// What one shim costs that holds many containers, which are attached and say nothing.
pub(super) fn attached(bench: &Bench, binary: &Path, dialect: Dialect) -> Result<Sample> {
    let ctrd = stand_in(bench, dialect)?;
    let bundle = |n: usize| {
        let bundle = bench.play.rooted(ctrd.bundle(&format!("c{n}"))).group("pod").capture();
        bundle.args(bench.args.split_whitespace()).build()
    };
    let mut shim = ctrd.start(binary, &bundle(0)?)?;
    shim.run()?;
    let others = (1..bench.attached).map(bundle).collect::<Result<Vec<_>>>()?;
    let task = |id: &str| shim.task().container(id);
    for bundle in &others {
        task(bundle.id()).create(bundle)?;
        task(bundle.id()).start()?;
    }
    let sample = watch(shim.server()?.pid())?;
    for task in others.iter().map(|bundle| task(bundle.id())).chain([shim.task()]) {
        let ended = task.wait();
        task.kill(Signal::KILL)?;
        ended.answer(END_LIMIT)?;
    }
    others.iter().try_for_each(|bundle| task(bundle.id()).delete().map(drop))?;
    shim.remove()?;
    Ok(sample)
}

fn watch(server: Pid) -> Result<Sample> {
    // The passing of time is what is measured here.
    thread::sleep(SETTLE);
    let before = Activity::of(server)?;
    thread::sleep(QUIET);
    let done = Activity::of(server)?.since(before);
    let footprint = Footprint::of(server)?;
    Ok(Sample::from([
        ("attached RSS", footprint.rss),
        ("attached private dirty", footprint.private_dirty),
        ("attached threads", footprint.threads),
        ("attached descriptors", footprint.descriptors),
        ("attached wake-ups", done.wakeups),
        ("attached CPU", done.cpu),
    ]))
}

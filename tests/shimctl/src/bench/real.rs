//! What users of a real daemon wait for: runs and execs by `ctr`, one by one and many at once, with each engine.

use std::env;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use nix::unistd::geteuid;
use shim_testing::{Failure, Result};

use super::daemon::Daemon;
use super::{Bench, Sample, median, milliseconds};

/// How many single runs and execs a round makes; their median is the round's.
const SINGLE: u32 = 5;

/// An engine, with the names of its cases.
struct Engine {
    name: &'static str,
    run: &'static str,
    exec: &'static str,
    at_once: [(usize, &'static str); 2],
}

const ENGINES: [Engine; 2] = [
    Engine {
        name: "runc",
        run: "ctr run --rm true, runc",
        exec: "ctr task exec true, runc",
        at_once: [(20, "20 runs at once, runc"), (50, "50 runs at once, runc")],
    },
    Engine {
        name: "crun",
        run: "ctr run --rm true, crun",
        exec: "ctr task exec true, crun",
        at_once: [(20, "20 runs at once, crun"), (50, "50 runs at once, crun")],
    },
];

/// Measures all shims in turn under the containerd of that folder; a shim that fails under it is told of, and has
/// [`f64::NAN`] for its figures.
pub(super) fn measure(bench: &Bench, programs: &Path) -> Result<Vec<Vec<Sample>>> {
    if !geteuid().is_root() {
        return Err(Failure::setup("only root can run a containerd; leave out `--containerd`"));
    }
    // containerd runs them in their bundles.
    let shims = bench.shims.iter().map(|shim| Ok(shim.canonicalize()?)).collect::<Result<Vec<_>>>()?;
    let programs = programs.canonicalize()?;
    let mut samples = vec![Vec::new(); shims.len()];
    for engine in &ENGINES {
        match find(engine.name) {
            Some(path) => {
                let daemon = Daemon::start(&programs, &path, &bench.play.busybox)?;
                with_engine(bench, &daemon, engine, &shims, &mut samples);
            }
            None => eprintln!("shimctl: there is no `{}`; its cases are left out", engine.name),
        }
    }
    Ok(samples)
}

fn with_engine(
    bench: &Bench,
    daemon: &Daemon,
    engine: &Engine,
    shims: &[PathBuf],
    samples: &mut [Vec<Sample>],
) {
    let progress = ProgressBar::new(u64::from(bench.rounds + 1) * shims.len() as u64);
    let mut works = vec![true; shims.len()];
    // The first round is not counted: it reads the files, and tells which shims work here.
    for round in 0..=bench.rounds {
        for (n, shim) in shims.iter().enumerate() {
            progress.inc(1);
            if !works[n] {
                continue;
            }
            let runs = Runs { daemon, shim: &shim.to_string_lossy(), name: format!("r{round}-s{n}") };
            match runs.measure(engine) {
                Ok(sample) if round > 0 => samples[n].push(sample),
                Ok(_) => {}
                Err(failure) => {
                    eprintln!("shimctl: `{}` fails here with {}: {failure}", shim.display(), engine.name);
                    samples[n].push(engine.failed());
                    works[n] = false;
                }
            }
        }
    }
    progress.finish_and_clear();
}

fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

impl Engine {
    fn failed(&self) -> Sample {
        let at_once = self.at_once.iter().map(|(_, case)| *case);
        [self.run, self.exec].into_iter().chain(at_once).map(|case| (case, f64::NAN)).collect()
    }
}

/// One round of one shim, whose containers bear a name of its own.
struct Runs<'a> {
    daemon: &'a Daemon,
    shim: &'a str,
    name: String,
}

impl Runs<'_> {
    fn measure(&self, engine: &Engine) -> Result<Sample> {
        let runs = (0..SINGLE).map(|n| self.timed_run(&n.to_string())).collect::<Result<Vec<_>>>()?;
        let execs = self.execs()?;
        let mut sample = Sample::from([(engine.run, median(&runs)), (engine.exec, median(&execs))]);
        for (count, case) in engine.at_once {
            sample.insert(case, milliseconds(self.at_once(count)?));
        }
        Ok(sample)
    }

    /// The command needs its folder: without an image there is no `PATH`.
    fn run(&self, flags: &[&str], id: &str, command: &[&str]) -> Result<Duration> {
        let (rootfs, fifos) = (self.daemon.rootfs(), self.daemon.fifos());
        let common = ["run", "--runtime", self.shim, "--fifo-dir", &fifos, "--rootfs"];
        let ran = self.daemon.ctr(&[&common, flags, &[&rootfs, id], command].concat());
        Ok(ran.inspect_err(|_| self.daemon.remove_socket(id))?.took)
    }

    fn timed_run(&self, part: &str) -> Result<f64> {
        self.run(&["--rm"], &format!("{}-{part}", self.name), &["/bin/true"]).map(milliseconds)
    }

    fn execs(&self) -> Result<Vec<f64>> {
        let id = format!("{}-execs", self.name);
        self.run(&["--detach", "--null-io"], &id, &["/bin/sleep", "1000"])?;
        let exec = |n: u32| {
            let (name, fifos) = (format!("e{n}"), self.daemon.fifos());
            let args = ["task", "exec", "--fifo-dir", &fifos, "--exec-id", &name, &id, "/bin/true"];
            self.daemon.ctr(&args).map(|output| milliseconds(output.took))
        };
        let execs = (0..SINGLE).map(exec).collect::<Result<Vec<_>>>();
        self.daemon.ctr(&["task", "rm", "--force", &id])?;
        self.daemon.ctr(&["container", "rm", &id])?;
        execs
    }

    /// From the first one's beginning to the last one's end.
    fn at_once(&self, count: usize) -> Result<Duration> {
        let began = Instant::now();
        let ran: Result<Vec<f64>> = thread::scope(|scope| {
            let run = |n: usize| scope.spawn(move || self.timed_run(&format!("{count}-{n}")));
            let threads: Vec<_> = (0..count).map(run).collect();
            let ended = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err(Failure::setup("the thread of a run has panicked")))
            });
            ended.collect()
        });
        ran.map(|_| began.elapsed())
    }
}

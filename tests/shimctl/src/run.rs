//! `shimctl run`: one container from `start` to the end of its bundle, as `ctr run` would do it.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;
use shim_runtime::Signal;
use shim_testing::{
    Builder, Bundle, BundleBuilder, Cause, Dialect, Failure, FakeContainerd, Result, Shim, Task,
};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::{Play, TaskVersion};

/// The status for a run that did not come to the container's own, or in which a promise was broken.
const BROKEN: u8 = 125;

/// How many signals are forwarded before the next one ends the run by force.
const PATIENCE: u32 = 3;

/// How long a forwarded signal may take.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// How long output may take to end after the container was deleted.
const OUTPUT_LIMIT: Duration = Duration::from_secs(10);

/// Run one container with a shim and exit with its status
///
/// Makes a bundle, plays containerd's part from `start` to `delete`, passes stdin, stdout and stderr through,
/// forwards SIGINT and SIGTERM to the container, and prints what happened on stderr. A fourth signal kills
/// the shim and the container by force.
///
/// The exit status is the container's; 125 when the shim broke a binding promise, left something behind, or
/// when the run failed.
#[derive(Args)]
pub(crate) struct Run {
    /// The shim's binary
    shim: PathBuf,
    /// Take config.json from this bundle, which stays as it is
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Add to the environment of the container
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Add to the environment of the shim
    #[arg(long = "shim-env", value_name = "NAME=VALUE", value_parser = variable)]
    shim_env: Vec<(String, String)>,
    /// The container's id
    #[arg(long, default_value = "c1")]
    id: String,
    /// Ask the shim for debug logs, and print its log
    #[arg(long)]
    debug: bool,
    /// Print no timeline unless something went wrong
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    play: Play,
    /// The command of the container
    #[arg(last = true, value_name = "ARGS", required_unless_present = "bundle")]
    args: Vec<String>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

/// Runs the command.
pub(crate) fn run(run: &Run) -> ExitCode {
    let ctrd = match stand_in(run) {
        Ok(ctrd) => ctrd,
        Err(failure) => return broken(&failure),
    };
    let mut log = None;
    let outcome = play(run, &ctrd, &mut log);
    // Leaks are looked for after a failure too: that is when shims have them.
    let verdict = ctrd.check_leaks();
    let failed = outcome.is_err() || verdict.is_err();
    if failed || !run.quiet {
        eprint!("\n{}", ctrd.timeline());
    }
    if let Some(log) = log.filter(|log| (failed || run.debug) && !log.is_empty()) {
        eprint!("\nlog of the shim:\n{log}");
    }
    for broken in ctrd.broken() {
        eprintln!("shimctl: broken promise {broken}");
    }
    ctrd.clean_up();
    match outcome {
        Ok(status) if !failed => ExitCode::from(status),
        Ok(_) => ExitCode::from(BROKEN),
        Err(failure) => broken(&failure),
    }
}

fn broken(failure: &Failure) -> ExitCode {
    // Broken promises are printed with all the others.
    if !matches!(failure.cause(), Cause::Broken(_)) {
        eprintln!("shimctl: {failure}");
    }
    ExitCode::from(BROKEN)
}

fn stand_in(run: &Run) -> Result<FakeContainerd> {
    let mut builder = run.play.stand_in(run.play.bootstrap);
    for (name, value) in &run.shim_env {
        builder = builder.env(name, value);
    }
    if run.debug {
        builder = builder.debug();
    }
    builder.build()
}

/// One container's life; its exit status.
fn play(run: &Run, ctrd: &FakeContainerd, log: &mut Option<String>) -> Result<u8> {
    let bundle = bundle(run, ctrd)?;
    let outcome = ctrd.start(&run.shim, &bundle).and_then(|mut shim| {
        let status = live(ctrd, &mut shim);
        if status.is_err() {
            shim.abandon();
        }
        status
    });
    *log = Some(bundle.log());
    outcome
}

fn live(ctrd: &FakeContainerd, shim: &mut Shim) -> Result<u8> {
    let task = shim.task();
    forward_signals(ctrd, &task)?;
    let waiting = shim.run()?;
    let at_end = task.clone();
    shim.bundle().stdio().feed(io::stdin(), move || drop(at_end.close_io()));
    let exit = waiting.answer_at_last()?;
    shim.remove()?;
    shim.bundle().stdio().finish(OUTPUT_LIMIT)?;
    Ok(u8::try_from(exit.exit_status).unwrap_or(u8::MAX))
}

fn bundle(run: &Run, ctrd: &FakeContainerd) -> Result<Bundle> {
    let mut builder = run.play.rooted(ctrd.bundle(&run.id)).args(run.args.clone()).inherit();
    for (name, value) in &run.env {
        builder = builder.env(name, value);
    }
    if let Some(dir) = &run.bundle {
        builder = builder.config_of(dir)?;
        if let Some(config) = builder.config_mut() {
            if !run.args.is_empty() {
                config["process"]["args"] = run.args.clone().into();
            }
            if let Some(env) = config["process"]["env"].as_array_mut() {
                env.extend(run.env.iter().map(|(name, value)| format!("{name}={value}").into()));
            }
        }
    }
    builder.build()
}

/// Passes SIGINT and SIGTERM on to the container, as long as this process lives. Who asks [`PATIENCE`] times
/// wants to be rid of it, whatever the shim says.
fn forward_signals(ctrd: &FakeContainerd, task: &Task) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let (ctrd, task) = (ctrd.clone(), task.within(KILL_LIMIT));
    thread::spawn(move || {
        for (count, number) in (1..).zip(&mut signals) {
            if count > PATIENCE {
                eprintln!("shimctl: killed by force");
                ctrd.clean_up();
                std::process::exit(i32::from(BROKEN));
            }
            let (task, signal) = (task.clone(), Signal::new(number.unsigned_abs()));
            // Beside this loop: a shim may hang. A container that has just ended is no reason to complain.
            thread::spawn(move || signal.is_ok_and(|signal| task.kill(signal).is_ok()));
        }
    });
    Ok(())
}

impl Play {
    /// The containerd of that dialect, which calls the task service that was asked for.
    pub(crate) fn stand_in(&self, dialect: Dialect) -> Builder {
        let builder = FakeContainerd::builder(dialect);
        match self.task {
            Some(TaskVersion::V2) => builder.task_version(2),
            Some(TaskVersion::V3) => builder.task_version(3),
            None => builder,
        }
    }

    /// Gives a bundle its kind of spec and its root file system.
    pub(crate) fn rooted(&self, mut builder: BundleBuilder) -> BundleBuilder {
        if self.runc_spec {
            builder = builder.full_spec();
        }
        match &self.rootfs {
            Some(rootfs) => builder.rootfs(rootfs.canonicalize().unwrap_or_else(|_| rootfs.clone())),
            None if self.runc_spec => builder.busybox(&self.busybox),
            None => builder,
        }
    }
}

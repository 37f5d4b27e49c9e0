//! `shimctl soak`: very many containers and execs, most of them in one long-lived shim, and a look at what is there
//! each time when all of them have gone.

mod findings;
mod lives;
mod rest;

use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use shim_runtime::Signal;
use shim_testing::{FakeContainerd, Result, Shim};

use self::findings::Findings;
use self::rest::{Moment, Rest};
use crate::cost::{self, Footprint};
use crate::{Play, table};

/// Run many containers and execs with a shim, and see that nothing hangs, fails, leaks or grows
///
/// One container runs from the beginning to the end. Four of five others join its shim, the fifth has one of its
/// own; then come execs of the first one. Some exit at once, some are killed, some never started; what each writes
/// and how it ends is compared. After a tenth, a half and all of them everything has to be gone, and the
/// long-lived shim is measured: its memory must not have grown since the first tenth.
///
/// The exit status is 1, with a sentence for each thing found, when anything hung, failed, was left behind or grew.
/// A first SIGINT or a SIGTERM ends it in order, with what was found by then; a second SIGINT at once.
#[derive(Args)]
pub(crate) struct Soak {
    /// The shim's binary
    shim: PathBuf,
    /// How many containers are run
    #[arg(long, default_value_t = 300)]
    containers: u64,
    /// How many of them at a time
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    at_a_time: u16,
    /// How many execs are run
    #[arg(long, default_value_t = 300)]
    execs: u64,
    /// How many of them at a time
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    execs_at_a_time: u16,
    #[command(flatten)]
    play: Play,
}

/// The group of the long-lived shim.
const GROUP: &str = "soak";
/// How long anything may take that is not told by an answer; calls have the daemon's own deadlines.
const LIMIT: Duration = Duration::from_mins(1);
/// After how many of a hundred parts everything comes to rest.
const STOPS: [u64; 3] = [10, 50, 100];

/// Runs the command.
pub(crate) fn soak(soak: &Soak) -> ExitCode {
    let findings = Findings::default();
    let ran = findings.heed_signals().and_then(|()| {
        cost::sync(&soak.shim)?;
        let ctrd = soak.play.stand_in(soak.play.bootstrap).build()?;
        let ran = run(soak, &ctrd, &findings);
        // Leaks are looked for after a failure too: that is when shims have them.
        let _ = ctrd.check();
        findings.add_broken(&ctrd.broken());
        ran
    });
    if let Err(failure) = ran {
        findings.add(failure.to_string());
    }
    findings.report()
}

/// From the first container's beginning to its end.
fn run(soak: &Soak, ctrd: &FakeContainerd, findings: &Findings) -> Result<()> {
    let bundle = soak.play.rooted(ctrd.bundle("anchor")).group(GROUP).args(["sleep", "100000000"]).build()?;
    let mut anchor = ctrd.start(&soak.shim, &bundle)?;
    let ran = anchor.run().and_then(|waiting| {
        let long = Long { soak, ctrd, anchor: &anchor, findings, progress: progress(soak) };
        let moments = long.run();
        long.progress.finish_and_clear();
        print(&moments?);
        anchor.task().kill(Signal::KILL)?;
        waiting.answer(LIMIT)
    });
    if ran.is_err() {
        anchor.abandon();
        return ran.map(drop);
    }
    anchor.remove().map(drop)
}

/// A soak under way.
struct Long<'a> {
    soak: &'a Soak,
    ctrd: &'a FakeContainerd,
    anchor: &'a Shim,
    findings: &'a Findings,
    progress: ProgressBar,
}

impl Long<'_> {
    fn run(&self) -> Result<Vec<Moment>> {
        let soak = self.soak;
        let rest = Rest::new(self.ctrd, self.anchor)?;
        let mut moments = vec![rest.moment("at first", 0, Duration::ZERO)?];
        self.phase("containers", soak.containers, soak.at_a_time, &rest, &mut moments, |n| {
            lives::container(soak, self.ctrd, n)
        })?;
        self.phase("execs", soak.execs, soak.execs_at_a_time, &rest, &mut moments, |n| {
            lives::exec(self.ctrd, self.anchor, n)
        })?;
        Ok(moments)
    }

    /// Many of one kind, with a rest at each of the [`STOPS`].
    fn phase(
        &self,
        what: &'static str,
        count: u64,
        at_a_time: u16,
        rest: &Rest,
        moments: &mut Vec<Moment>,
        live: impl Fn(u64) -> Result<()> + Sync,
    ) -> Result<()> {
        let (mut done, mut took, mut first) = (0, Duration::ZERO, None);
        for percent in STOPS {
            let until = (count * percent).div_ceil(100);
            if until == done || self.findings.are_enough() {
                continue;
            }
            self.progress.set_message(what);
            let began = Instant::now();
            self.stretch(what, done..until, at_a_time, &live);
            took += began.elapsed();
            done = until;
            self.progress.set_message(format!("{what}, at rest"));
            self.findings.add_all(rest.look()?);
            let now = rest.moment(what, done, took)?;
            self.findings.add_all(first.as_ref().and_then(|first| now.growth_since(first)));
            first.get_or_insert_with(|| now.clone());
            moments.push(now);
        }
        Ok(())
    }

    /// Those of that range, each by the next thread that is free.
    fn stretch(
        &self,
        what: &str,
        range: Range<u64>,
        at_a_time: u16,
        live: &(impl Fn(u64) -> Result<()> + Sync),
    ) {
        let next = AtomicU64::new(range.start);
        let work = || loop {
            let n = next.fetch_add(1, Relaxed);
            if n >= range.end || self.findings.are_enough() {
                return;
            }
            if let Err(failure) = live(n) {
                self.findings.add(format!("number {n} of the {what}: {failure}"));
            }
            self.progress.inc(1);
            if n.is_multiple_of(100) {
                self.progress.set_message(self.now(what));
            }
        };
        thread::scope(|scope| (0..at_a_time).for_each(|_| drop(scope.spawn(work))));
    }

    /// What a person who looks on wants to know.
    fn now(&self, what: &str) -> String {
        let footprint = self.anchor.server().and_then(|server| Footprint::of(server.pid()));
        let told = footprint.map(|now| {
            let Footprint { private_dirty, descriptors, threads, .. } = now;
            format!("{private_dirty} KiB private dirty, {descriptors} descriptors, {threads} threads")
        });
        format!("{what}: {}", told.unwrap_or_else(|failure| failure.to_string()))
    }
}

fn progress(soak: &Soak) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}");
    ProgressBar::new(soak.containers + soak.execs)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn print(moments: &[Moment]) {
    let heading = ["", "done", "seconds", "RSS, KiB", "private dirty, KiB", "descriptors", "threads"]
        .map(str::to_owned);
    let rows: Vec<_> = std::iter::once(heading.to_vec()).chain(moments.iter().map(Moment::row)).collect();
    table::print(&rows, &[0]);
}

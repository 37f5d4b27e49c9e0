//! `shimctl bench`: what a shim costs, measured round by round on several binaries in turn, so that a change of
//! the machine's mood meets all of them.

#![expect(
    clippy::cast_precision_loss,
    reason = "counts are far below the precision of a figure that is printed"
)]

mod caller;
mod daemon;
mod floor;
mod hung;
mod real;
mod round;
mod streams;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use shim_testing::{Dialect, Process, Result};

use self::round::Running;
use crate::cost::{self, Activity, Footprint};
use crate::{Play, table};

/// Measure shims: start, calls, streams, memory, threads, idleness
///
/// Each round starts every binary once, in the order given, with one running container. Printed are the median
/// over the rounds, the least and the greatest value, and the ratio of the median to the first binary's; first
/// come the floors, a bare echo between two threads and an empty program.
#[derive(Args)]
pub(crate) struct Bench {
    /// The shims' binaries; the first is what the others are compared with
    #[arg(required = true)]
    shims: Vec<PathBuf>,
    /// How many times each is started
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How many State calls a round makes one by one; other cases make their share of it
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    calls: u32,
    /// How many seconds the shims are left alone, to see what they do then; 0 for not at all
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// How many shims of each binary run at once, to see what each adds; 0 for none
    #[arg(long, default_value_t = 50)]
    many: usize,
    /// How many bytes of output a container writes, for each size of block; 0 for none
    #[arg(long, default_value_t = 256 << 20)]
    bytes: u64,
    /// How many quiet containers with attached streams one shim of each binary holds; 0 for none
    #[arg(long, default_value_t = 100)]
    attached: usize,
    /// An annotation, `KEY=VALUE`, that makes a container's Start hang: calls beside 64 of these are measured
    #[arg(long, value_name = "KEY=VALUE")]
    hang: Option<String>,
    /// A folder with `containerd` and `ctr`: measures runs and execs under that daemon too, with runc and crun;
    /// needs root
    #[arg(long, value_name = "DIR")]
    containerd: Option<PathBuf>,
    /// The command of the container, in one word with blanks
    #[arg(long, default_value = "sleep 1000")]
    args: String,
    #[command(flatten)]
    play: Play,
}

/// What is measured, in the order of printing: name and unit.
const CASES: [(&str, &str); 41] = [
    ("start returned", "ms"),
    ("first call answered", "ms"),
    ("State p50", "us"),
    ("State p99", "us"),
    ("Connect p50", "us"),
    ("dial and State p50", "us"),
    ("State on 8 connections", "calls/s"),
    ("State, 64 in flight", "calls/s"),
    ("CPU of a call", "us"),
    ("State p99, 64 hung Starts", "us"),
    ("Kill p99, 64 hung Starts", "us"),
    ("Stats p50", "us"),
    ("Pids p50", "us"),
    ("stdout, 64 KiB blocks", "MiB/s"),
    ("CPU of a GiB, 64 KiB blocks", "ms"),
    ("stdout, 4 KiB blocks", "MiB/s"),
    ("CPU of a GiB, 4 KiB blocks", "ms"),
    ("Delete, reader gone", "ms"),
    ("RSS", "KiB"),
    ("PSS", "KiB"),
    ("private dirty", "KiB"),
    ("descriptors", ""),
    ("memory of 1000 Waits", "KiB"),
    ("threads of 1000 Waits", ""),
    ("idle threads", ""),
    ("idle wake-ups", ""),
    ("idle CPU", "ms"),
    ("attached RSS", "KiB"),
    ("attached private dirty", "KiB"),
    ("attached threads", ""),
    ("attached descriptors", ""),
    ("attached wake-ups", ""),
    ("attached CPU", "ms"),
    ("ctr run --rm true, runc", "ms"),
    ("ctr task exec true, runc", "ms"),
    ("20 runs at once, runc", "ms"),
    ("50 runs at once, runc", "ms"),
    ("ctr run --rm true, crun", "ms"),
    ("ctr task exec true, crun", "ms"),
    ("20 runs at once, crun", "ms"),
    ("50 runs at once, crun", "ms"),
];

/// Long enough for what a shim has begun to be finished, and for threads to end that are not needed.
const SETTLE: Duration = Duration::from_secs(5);

/// The case of many shims at once, whose name holds their number.
const MANY: &str = "PSS each of many";

/// Values by the name of their case; one that could not be measured is missing.
type Sample = HashMap<&'static str, f64>;

/// Runs the command.
pub(crate) fn bench(bench: &Bench) -> ExitCode {
    let measured = print_floors(bench).and_then(|()| measure(bench));
    match measured {
        Ok(samples) => {
            print(bench, &samples);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("shimctl: {failure:?}");
            ExitCode::FAILURE
        }
    }
}

fn print_floors(bench: &Bench) -> Result<()> {
    let echo = median(&floor::echo(bench.calls)?);
    let empty = floor::empty_program()?;
    println!(
        "floors: echo p50 {echo:.1} us; empty program RSS {:.0} KiB, private dirty {:.0} KiB\n",
        empty.rss, empty.private_dirty
    );
    Ok(())
}

/// The samples of each binary.
fn measure(bench: &Bench) -> Result<Vec<Vec<Sample>>> {
    bench.shims.iter().try_for_each(|shim| cost::sync(shim))?;
    // The first round of each is not counted: it reads the files, and finds the dialect.
    let dialects = bench.shims.iter().map(|shim| dialect(bench, shim)).collect::<Result<Vec<_>>>()?;
    let binaries: Vec<_> = bench.shims.iter().map(PathBuf::as_path).zip(dialects).collect();
    let mut samples = vec![Vec::new(); binaries.len()];
    let progress = ProgressBar::new(u64::from(bench.rounds) * binaries.len() as u64);
    for _ in 0..bench.rounds {
        for ((shim, dialect), samples) in binaries.iter().zip(&mut samples) {
            let running = Running::start(bench, shim, *dialect)?;
            let sample = running.measure(bench);
            running.end()?;
            samples.push(sample?);
            progress.inc(1);
        }
    }
    if let Some(annotation) = &bench.hang {
        for ((shim, dialect), samples) in binaries.iter().zip(&mut samples) {
            samples.push(hung::measure(bench, shim, *dialect, annotation)?);
        }
    }
    for ((shim, dialect), samples) in binaries.iter().zip(&mut samples) {
        if bench.bytes > 0 {
            samples.push(streams::abandoned(bench, shim, *dialect)?);
        }
        if bench.attached > 0 {
            samples.push(streams::attached(bench, shim, *dialect)?);
        }
    }
    if bench.idle > 0 {
        progress.set_message("idle");
        let idle = idle(bench, &binaries)?;
        samples.iter_mut().zip(idle).for_each(|(samples, sample)| samples.push(sample));
    }
    if bench.many > 0 {
        for ((shim, dialect), samples) in binaries.iter().zip(&mut samples) {
            samples.push(many(bench, shim, *dialect)?);
        }
    }
    progress.finish_and_clear();
    if let Some(programs) = &bench.containerd {
        let real = real::measure(bench, programs)?;
        samples.iter_mut().zip(real).for_each(|(samples, real)| samples.extend(real));
    }
    Ok(samples)
}

/// The dialect that was asked for, or the legacy one for a shim that does not understand that.
fn dialect(bench: &Bench, shim: &Path) -> Result<Dialect> {
    let asked = bench.play.bootstrap;
    let try_with = |dialect| Running::start(bench, shim, dialect).and_then(Running::end);
    let Err(failure) = try_with(asked) else { return Ok(asked) };
    if asked != Dialect::LEGACY && try_with(Dialect::LEGACY).is_ok() {
        eprintln!("shimctl: `{}` is started as by containerd {}", shim.display(), Dialect::LEGACY);
        return Ok(Dialect::LEGACY);
    }
    Err(failure)
}

/// What each shim does while nobody asks anything of it, all at the same time.
fn idle(bench: &Bench, binaries: &[(&Path, Dialect)]) -> Result<Vec<Sample>> {
    let start = |(shim, dialect): &(&Path, Dialect)| Running::start(bench, shim, *dialect);
    let shims = binaries.iter().map(start).collect::<Result<Vec<_>>>()?;
    let pid = |running: &Running| running.shim.server().map(Process::pid);
    // The passing of time is what is measured here.
    thread::sleep(SETTLE);
    let before = shims.iter().map(|shim| Activity::of(pid(shim)?)).collect::<Result<Vec<_>>>()?;
    let end = Instant::now() + Duration::from_secs(bench.idle);
    thread::sleep(end.saturating_duration_since(Instant::now()));
    let mut samples = Vec::new();
    for (shim, before) in shims.iter().zip(before) {
        let done = Activity::of(pid(shim)?)?.since(before);
        let threads = Footprint::of(pid(shim)?)?.threads;
        samples.push(Sample::from([
            ("idle wake-ups", done.wakeups),
            ("idle CPU", done.cpu),
            ("idle threads", threads),
        ]));
    }
    shims.into_iter().try_for_each(Running::end)?;
    Ok(samples)
}

/// What each of many shims of one binary takes of the memory that they share.
fn many(bench: &Bench, shim: &Path, dialect: Dialect) -> Result<Sample> {
    let shims = (0..bench.many).map(|_| Running::start(bench, shim, dialect)).collect::<Result<Vec<_>>>()?;
    let mut total = 0.0;
    for shim in &shims {
        total += Footprint::of(shim.shim.server()?.pid())?.pss;
    }
    let each = total / shims.len() as f64;
    shims.into_iter().try_for_each(Running::end)?;
    Ok(Sample::from([(MANY, each)]))
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile(&sorted, 0.5)
}

/// The value below which that part of the sorted values lies, in between where it falls between two.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = part * last as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (place - place.floor())
}

/// The shims' file names, or their paths where two have the same name.
fn labels(shims: &[PathBuf]) -> Vec<String> {
    let name = |shim: &PathBuf| shim.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names: Vec<_> = shims.iter().map(name).collect();
    let unique = names.iter().collect::<HashSet<_>>().len() == names.len();
    if unique { names } else { shims.iter().map(|shim| shim.display().to_string()).collect() }
}

fn print(bench: &Bench, samples: &[Vec<Sample>]) {
    let labels = labels(&bench.shims);
    let heading = ["", "", "median", "min", "max", "ratio"].map(str::to_owned).to_vec();
    let mut rows = vec![heading];
    for (name, unit) in CASES.into_iter().chain([(MANY, "KiB")]) {
        let mut first = None;
        let title = if unit.is_empty() { name.to_owned() } else { format!("{name}, {unit}") };
        for (label, samples) in labels.iter().zip(samples) {
            let mut values: Vec<_> = samples.iter().filter_map(|sample| sample.get(name).copied()).collect();
            values.sort_by(f64::total_cmp);
            let (Some(least), Some(greatest)) = (values.first(), values.last()) else { continue };
            // The greatest of all in this order is what a shim has for cases in which it fails.
            if greatest.is_nan() {
                rows.push(vec![title.clone(), label.clone(), "fails here".to_owned()]);
                continue;
            }
            let middle = quantile(&values, 0.5);
            let ratio = middle / *first.get_or_insert(middle);
            let figure = |value: f64| match unit {
                "ms" | "us" => format!("{value:.1}"),
                _ => format!("{value:.0}"),
            };
            let ratio = if ratio.is_finite() { format!("{ratio:.2}") } else { "-".to_owned() };
            let [middle, least, greatest] = [middle, *least, *greatest].map(figure);
            rows.push(vec![title.clone(), label.clone(), middle, least, greatest, ratio]);
        }
    }
    table::print(&rows, &[0, 1]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shims_of_the_same_name_go_by_their_paths() {
        assert_eq!(labels(&["/a/x".into(), "/b/y".into()]), ["x", "y"]);
        assert_eq!(labels(&["/a/x".into(), "/b/x".into()]), ["/a/x", "/b/x"]);
    }

    #[test]
    fn the_median_is_the_middle_one_or_between_the_two() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
    }
}

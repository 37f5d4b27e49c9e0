//! `shimctl bench`: what a shim costs, measured round by round on several binaries in turn, so that a change of
//! the machine's mood meets all of them.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use shim_runtime::testing::Dialect;
use shim_runtime::testing::api::{ConnectRequest, ConnectResponse, StateRequest, StateResponse};
use shim_runtime::testing::bootstrap::Answer;
use shim_runtime::testing::{Failure, FakeContainerd, RawConnection, Result, Shim};
use shim_runtime::{Pid, Signal};

use crate::{Play, TaskVersion, table};

/// How long a killed container may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Measure shims: start, first call, State, memory, threads
///
/// Each round starts every binary once, in the order given, with one running container. Printed are the median
/// over the rounds, the least and the greatest value, and the ratio of the median to the first binary's.
#[derive(Args)]
pub(crate) struct Bench {
    /// The shims' binaries; the first is what the others are compared with
    #[arg(required = true)]
    shims: Vec<PathBuf>,
    /// How many times each is started
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How many State calls a round makes
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    calls: u32,
    /// The command of the container, in one word with blanks
    #[arg(long, default_value = "sleep 1000")]
    args: String,
    #[command(flatten)]
    play: Play,
}

/// What is measured: name and unit.
const CASES: [(&str, &str); 5] = [
    ("start returned", "ms"),
    ("first call answered", "ms"),
    ("State p50", "us"),
    ("RSS", "KiB"),
    ("threads", ""),
];

/// One value for each case.
type Sample = [f64; CASES.len()];

/// Runs the command.
pub(crate) fn bench(bench: &Bench) -> ExitCode {
    match measure(bench) {
        Ok(samples) => {
            print(&bench.shims, &samples);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("shimctl: {failure:?}");
            ExitCode::FAILURE
        }
    }
}

/// The samples of each binary.
fn measure(bench: &Bench) -> Result<Vec<Vec<Sample>>> {
    for shim in &bench.shims {
        // Pages of a file that was just built are private and dirty until they are on disk.
        File::open(shim)
            .and_then(|file| file.sync_all())
            .map_err(|error| Failure::setup(format!("cannot open `{}`: {error}", shim.display())))?;
    }
    // The first round of each is not counted: it reads the files, and finds the dialect.
    let dialects = bench.shims.iter().map(|shim| dialect(bench, shim)).collect::<Result<Vec<_>>>()?;
    let mut samples = vec![Vec::new(); bench.shims.len()];
    let progress = ProgressBar::new(u64::from(bench.rounds) * bench.shims.len() as u64);
    for _ in 0..bench.rounds {
        for ((shim, dialect), samples) in bench.shims.iter().zip(&dialects).zip(&mut samples) {
            samples.push(round(bench, shim, *dialect)?);
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    Ok(samples)
}

/// The dialect that was asked for, or the legacy one for a shim that does not understand that.
fn dialect(bench: &Bench, shim: &Path) -> Result<Dialect> {
    let asked = bench.play.bootstrap;
    let Err(failure) = round(bench, shim, asked) else { return Ok(asked) };
    if asked != Dialect::LEGACY && round(bench, shim, Dialect::LEGACY).is_ok() {
        eprintln!("shimctl: `{}` is started as by containerd {}", shim.display(), Dialect::LEGACY);
        return Ok(Dialect::LEGACY);
    }
    Err(failure)
}

/// One start of one binary, with one container.
fn round(bench: &Bench, binary: &Path, dialect: Dialect) -> Result<Sample> {
    let mut builder = FakeContainerd::builder(dialect);
    match bench.play.task {
        Some(TaskVersion::V2) => builder = builder.task_version(2),
        Some(TaskVersion::V3) => builder = builder.task_version(3),
        None => {}
    }
    let ctrd = builder.build()?;
    let bundle = bench.play.rooted(ctrd.bundle("c1")).args(bench.args.split_whitespace()).build()?;
    let began = Instant::now();
    let output = ctrd.launch(binary, &bundle, "start").run()?;
    let answered = first_call(&ctrd, &output.stdout, bench.play.task).map(|()| began.elapsed());
    let mut shim = ctrd.take_start(binary, &bundle, &output)?;
    let answered = answered.map_err(Failure::setup)?;
    let service = shim.task().service();
    let mut connection = shim.raw()?;
    let result = loaded(bench, &shim, &mut connection, &service);
    drop(connection);
    let outcome = result.and_then(|(state, rss, threads)| {
        let ended = shim.task().wait();
        shim.task().kill(Signal::KILL)?;
        ended.answer(END_LIMIT)?;
        shim.remove()?;
        Ok([milliseconds(shim.start_took()), milliseconds(answered), state, rss, threads])
    });
    if outcome.is_err() {
        shim.abandon();
    }
    outcome
}

/// Nothing but a connection and a call between the end of `start` and the answer.
fn first_call(ctrd: &FakeContainerd, answer: &[u8], task: Option<TaskVersion>) -> Result<(), String> {
    let answer = Answer::parse(ctrd.dialect(), answer)?;
    let mut connection = RawConnection::connect(answer.path()?).map_err(|error| error.to_string())?;
    let version = match task {
        Some(TaskVersion::V2) => 2,
        Some(TaskVersion::V3) => 3,
        None => answer.version,
    };
    let request = ConnectRequest { id: "c1".into(), ..Default::default() };
    let service = format!("containerd.task.v{version}.Task");
    connection
        .ask::<_, ConnectResponse>(&service, "Connect", &request)
        .map(drop)
        .map_err(|failure| failure.to_string())
}

/// State, memory and threads with one running container.
fn loaded(
    bench: &Bench,
    shim: &Shim,
    connection: &mut RawConnection,
    service: &str,
) -> Result<(f64, f64, f64)> {
    let _waiting = shim.run()?;
    let request = StateRequest { id: "c1".into(), ..Default::default() };
    let mut times = Vec::with_capacity(bench.calls as usize);
    for _ in 0..bench.calls {
        let began = Instant::now();
        connection.ask::<_, StateResponse>(service, "State", &request)?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    let server = shim.server()?.pid();
    let rss = value(server, "smaps_rollup", "Rss:")?;
    let threads = value(server, "status", "Threads:")?;
    Ok((median(&times), rss, threads))
}

/// A figure from a file below `/proc/PID`.
fn value(pid: Pid, file: &str, name: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok());
    number.ok_or_else(|| Failure::setup(format!("no `{name}` in `{path}`")))
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

/// The shims' file names, or their paths where two have the same name.
fn labels(shims: &[PathBuf]) -> Vec<String> {
    let name = |shim: &PathBuf| shim.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names: Vec<_> = shims.iter().map(name).collect();
    let unique = names.iter().collect::<HashSet<_>>().len() == names.len();
    if unique { names } else { shims.iter().map(|shim| shim.display().to_string()).collect() }
}

fn print(shims: &[PathBuf], samples: &[Vec<Sample>]) {
    let labels = labels(shims);
    let heading = ["", "", "median", "min", "max", "ratio"].map(str::to_owned).to_vec();
    let mut rows = vec![heading];
    for (case, (name, unit)) in CASES.iter().enumerate() {
        let mut first = None;
        for (label, samples) in labels.iter().zip(samples) {
            let values: Vec<_> = samples.iter().map(|sample| sample[case]).collect();
            let middle = median(&values);
            let ratio = middle / *first.get_or_insert(middle);
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let title = if unit.is_empty() { (*name).to_owned() } else { format!("{name}, {unit}") };
            let figure = |value: f64| {
                if *unit == "ms" || *unit == "us" { format!("{value:.1}") } else { format!("{value:.0}") }
            };
            let [middle, least, greatest] = [middle, least, greatest].map(figure);
            rows.push(vec![title, label.clone(), middle, least, greatest, format!("{ratio:.2}")]);
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

//! One round of one binary: a shim is started, given a container, measured and ended.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use protobuf::Message;
use shim_runtime::Signal;
use shim_testing::api::{ConnectRequest, PidsRequest, StateRequest, StatsRequest, WaitRequest};
use shim_testing::bootstrap::Answer;
use shim_testing::{Dialect, Failure, FakeContainerd, RawConnection, Result, Shim};

use super::caller::Caller;
use super::{Bench, Sample, milliseconds, streams};
use crate::TaskVersion;
use crate::cost::{Activity, Footprint};

/// How long a killed container may take to end.
pub(super) const END_LIMIT: Duration = Duration::from_secs(10);
/// Connections of the case with several.
const CONNECTIONS: usize = 8;
/// Calls on their way in the case with many.
const WINDOW: usize = 64;
/// Waits that are left pending.
const WAITS: u32 = 1000;

/// A shim with one running container.
pub(super) struct Running {
    pub(super) shim: Shim,
    pub(super) ctrd: FakeContainerd,
    start: Duration,
    first_call: Duration,
}

impl Running {
    /// Starts the binary and a container.
    pub(super) fn start(bench: &Bench, binary: &Path, dialect: Dialect) -> Result<Self> {
        let ctrd = stand_in(bench, dialect)?;
        let bundle = bench.play.rooted(ctrd.bundle("c1")).args(bench.args.split_whitespace()).build()?;
        let began = Instant::now();
        let output = ctrd.launch(binary, &bundle, "start").run()?;
        let answered = first_call(&ctrd, &output.stdout, bench.play.task).map(|()| began.elapsed());
        let shim = ctrd.take_start(binary, &bundle, &output)?;
        let first_call = answered.map_err(Failure::setup)?;
        shim.run()?;
        Ok(Self { start: shim.start_took(), shim, ctrd, first_call })
    }

    /// Kills the container and ends the shim.
    pub(super) fn end(mut self) -> Result<()> {
        let ended = self.shim.task().wait();
        self.shim.task().kill(Signal::KILL)?;
        ended.answer(END_LIMIT)?;
        self.shim.remove()?;
        drop(self.ctrd);
        Ok(())
    }

    /// All that one shim can tell; the cases of [`super::CASES`] that are not told here stay unknown.
    pub(super) fn measure(&self, bench: &Bench) -> Result<Sample> {
        let mut sample = Sample::new();
        sample.insert("start returned", milliseconds(self.start));
        sample.insert("first call answered", milliseconds(self.first_call));
        let server = self.shim.server()?.pid();
        let footprint = Footprint::of(server)?;
        sample.insert("RSS", footprint.rss);
        sample.insert("PSS", footprint.pss);
        sample.insert("private dirty", footprint.private_dirty);
        sample.insert("descriptors", footprint.descriptors);
        self.measure_calls(bench, &mut sample)?;
        self.measure_waits(&mut sample)?;
        streams::measure(self, bench, &mut sample)?;
        Ok(sample)
    }

    fn measure_calls(&self, bench: &Bench, sample: &mut Sample) -> Result<()> {
        let state = StateRequest { id: "c1".into(), ..Default::default() };
        let connect = ConnectRequest { id: "c1".into(), ..Default::default() };
        let mut times = self.caller("State", &state)?.one_by_one(bench.calls)?;
        times.sort_by(f64::total_cmp);
        sample.insert("State p50", super::quantile(&times, 0.5));
        sample.insert("State p99", super::quantile(&times, 0.99));
        let times = self.caller("Connect", &connect)?.one_by_one(bench.calls)?;
        sample.insert("Connect p50", super::median(&times));
        let usage = StatsRequest { id: "c1".into(), ..Default::default() };
        // An error, for a container without a cgroup of its own, is quickly made and no figure.
        if self.shim.task().stats().is_ok() {
            let mut caller = self.caller("Stats", &usage)?;
            sample.insert("Stats p50", super::median(&caller.one_by_one(bench.calls.div_ceil(20))?));
        }
        let mut caller = self.caller("Pids", &PidsRequest { id: "c1".into(), ..Default::default() })?;
        sample.insert("Pids p50", super::median(&caller.one_by_one(bench.calls.div_ceil(20))?));
        sample.insert("dial and State p50", self.dialled(bench, &state)?);
        sample.insert("State on 8 connections", self.connections(bench, &state)?);
        let before = Activity::of(self.shim.server()?.pid())?;
        let calls = bench.calls as usize * 10;
        sample.insert("State, 64 in flight", self.caller("State", &state)?.in_flight(calls, WINDOW)?);
        let spent = Activity::of(self.shim.server()?.pid())?.since(before);
        sample.insert("CPU of a call", spent.cpu * 1e3 / calls as f64);
        Ok(())
    }

    fn caller(&self, method: &str, request: &impl Message) -> Result<Caller> {
        Ok(Caller::connect(&self.shim.socket(), &self.shim.task().service(), method, request)?)
    }

    /// A connection for every call.
    fn dialled(&self, bench: &Bench, state: &StateRequest) -> Result<f64> {
        let mut times = Vec::new();
        for _ in 0..bench.calls.div_ceil(10) {
            let began = Instant::now();
            self.caller("State", state)?.one_by_one(1)?;
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
        Ok(super::median(&times))
    }

    /// Calls a second on several connections at once.
    fn connections(&self, bench: &Bench, state: &StateRequest) -> Result<f64> {
        let callers = (0..CONNECTIONS).map(|_| self.caller("State", state)).collect::<Result<Vec<_>>>()?;
        let began = Instant::now();
        let finished = thread::scope(|scope| {
            let threads: Vec<_> = callers
                .into_iter()
                .map(|mut caller| scope.spawn(move || caller.one_by_one(bench.calls).map(|_| ())))
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
        });
        finished?;
        Ok(f64::from(bench.calls) * CONNECTIONS as f64 / began.elapsed().as_secs_f64())
    }

    /// What many calls cost that wait for an answer.
    fn measure_waits(&self, sample: &mut Sample) -> Result<()> {
        let server = self.shim.server()?.pid();
        let before = Footprint::of(server)?;
        let request = WaitRequest { id: "c1".into(), ..Default::default() };
        let mut waits = self.caller("Wait", &request)?;
        for _ in 0..WAITS {
            waits.send()?;
        }
        // On the same connection a later call is taken after them, whatever its answer is.
        let state = StateRequest { id: "c1".into(), ..Default::default() };
        self.caller("State", &state)?.one_by_one(100)?;
        let after = Footprint::of(server)?;
        sample.insert("memory of 1000 Waits", after.private_dirty - before.private_dirty);
        sample.insert("threads of 1000 Waits", after.threads - before.threads);
        Ok(())
    }
}

/// The containerd of that dialect, which calls the task service that was asked for.
pub(super) fn stand_in(bench: &Bench, dialect: Dialect) -> Result<FakeContainerd> {
    bench.play.stand_in(dialect).build()
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
    let payload = request.write_to_bytes().map_err(|error| error.to_string())?;
    let service = format!("containerd.task.v{version}.Task");
    // Some shims answer that there is no container yet, which is an answer.
    connection.call(&service, "Connect", payload).map(drop).map_err(|error| error.to_string())
}

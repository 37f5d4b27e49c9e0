//! What is left for others while author code hangs: as many lifecycle calls as may block at once, and more that
//! wait behind them.

use std::path::Path;

use protobuf::Message;
use shim_runtime::Signal;
use shim_testing::api::{KillRequest, StartRequest, StateRequest};
use shim_testing::{Dialect, Failure, FakeContainerd, Result};

use super::caller::Caller;
use super::{Bench, Sample, quantile};

/// How many Starts hang, and how many more are called.
const HUNG: usize = 64 + 200;

/// Starts a group whose containers' Starts never return, because of the annotation, beside one that runs.
pub(super) fn measure(bench: &Bench, binary: &Path, dialect: Dialect, annotation: &str) -> Result<Sample> {
    let malformed = || Failure::setup(format!("`{annotation}` is no annotation; write `KEY=VALUE`"));
    let (key, value) = annotation.split_once('=').ok_or_else(malformed)?;
    let ctrd = FakeContainerd::new(dialect)?;
    let group =
        |id: &str| bench.play.rooted(ctrd.bundle(id)).group("pod").args(bench.args.split_whitespace());
    let mut shim = ctrd.start(binary, &group("c1").build()?)?;
    shim.run()?;
    let service = shim.task().service();
    let mut hanging = shim.raw()?;
    for n in 0..HUNG {
        let id = format!("hung{n}");
        let bundle = group(&id).annotation(key, value).build()?;
        shim.task().container(&id).create(&bundle)?;
    }
    // Only now: behind 64 that hang, a Create would wait as well.
    for n in 0..HUNG {
        let id = format!("hung{n}");
        let start = StartRequest { id, ..Default::default() }.write_to_bytes();
        hanging.begin(&service, "Start", start.map_err(|error| Failure::setup(error.to_string()))?)?;
    }
    let state = StateRequest { id: "c1".into(), ..Default::default() };
    // The signal 0 only asks whether the process is there.
    let kill = KillRequest { id: "c1".into(), ..Default::default() };
    let socket = shim.socket();
    let mut states = Caller::connect(&socket, &service, "State", &state)?.one_by_one(bench.calls)?;
    let mut kills =
        Caller::connect(&socket, &service, "Kill", &kill)?.one_by_one(bench.calls.div_ceil(10))?;
    states.sort_by(f64::total_cmp);
    kills.sort_by(f64::total_cmp);
    // Nothing ends a call that hangs, but the end of its shim.
    shim.server()?.signal(Signal::KILL)?;
    shim.abandon();
    ctrd.clean_up();
    Ok(Sample::from([
        ("State p99, 64 hung Starts", quantile(&states, 0.99)),
        ("Kill p99, 64 hung Starts", quantile(&kills, 0.99)),
    ]))
}

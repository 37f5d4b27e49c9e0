//! Broken input in bulk, against a living server and against the binary: never a panic, never a hang. The
//! parsers alone are fed much more of it by the unit tests beside them.

use std::io::{Read, Write};

use protobuf::Message;
use shim_runtime::Signal;
use shim_testing::bootstrap::Answer;
use shim_testing::{
    Bundle, Dialect, FakeContainerd, Frame, Launch, Mutations, Output, Process, RawConnection, Result, api,
    listeners, rounds,
};

use super::{FIXTURE, LIMIT, MIB, TASK, answers, bundle, idle, memory, raw, request, state_request};

/// Sound frames of most kinds, all about a container that is not there.
fn sound_frames() -> Result<Vec<Vec<u8>>> {
    let id = || "nobody".to_owned();
    let requests = [
        state_request("nobody"),
        request("Connect", &api::ConnectRequest { id: id(), ..Default::default() }),
        request("Wait", &api::WaitRequest { id: id(), exec_id: "e".into(), ..Default::default() }),
        request("Kill", &api::KillRequest { id: id(), signal: 9, all: true, ..Default::default() }),
        request("Pids", &api::PidsRequest { id: id(), ..Default::default() }),
        request("Exec", &api::ExecProcessRequest { id: id(), exec_id: "e".into(), ..Default::default() }),
        request("Delete", &api::DeleteRequest { id: id(), ..Default::default() }),
    ];
    let encode = |request: &ttrpc::Request| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for stream in [1, 3] {
            Frame::request(stream, &ttrpc::Request { timeout_nano: 1 << 40, ..request.clone() })?
                .write_to(&mut bytes)?;
        }
        Ok(bytes)
    };
    requests.iter().map(encode).collect()
}

#[test]
fn broken_frames_harm_no_living_server() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let mut shim = idle(&ctrd)?;
    answers(&shim)?;
    let server = shim.server()?.pid();
    let before = memory(server);
    let sound = sound_frames()?;
    let mut mutations = Mutations::seeded(5);
    for round in 0..rounds(2000) {
        let mut connection = raw(&shim)?;
        let bytes = mutations.change(&sound[round % sound.len()]);
        // It may have hung up already.
        let _ = connection.stream().write_all(&bytes);
        let _ = connection.stream().shutdown(std::net::Shutdown::Write);
        let mut answered = Vec::new();
        connection.stream().take(MIB as u64).read_to_end(&mut answered).ok();
        let mut rest = &answered[..];
        while let Ok(Some(frame)) = Frame::read_from(&mut rest) {
            assert_eq!(frame.kind, 2, "{bytes:?}");
            let answer = ttrpc::Response::parse_from_bytes(&frame.body).unwrap();
            assert!(!answer.status.message.contains("panicked"), "{bytes:?}: {answer:?}");
        }
    }
    answers(&shim)?;
    let grown = memory(server).saturating_sub(before);
    assert!(grown < MIB, "{grown} bytes more");
    assert!(!shim.bundle().log().contains("panic"), "{}", shim.bundle().log());
    shim.end()?;
    ctrd.check()
}

/// Runs something that may fail, but in order; ends the server if there is one.
fn run(launch: &Launch) -> Result<Output> {
    let output = launch.run()?;
    let text = output.text();
    assert!(matches!(output.code(), Some(0..=2)), "{launch:?}: {output}");
    assert!(!text.contains("panicked") && !output.kept_open, "{launch:?}: {output}");
    if !output.success() {
        assert_eq!(text.trim_end().lines().count(), 1, "{launch:?}: one sentence: {text}");
    }
    Ok(output)
}

/// Ends the server that a `start` has answered for.
fn end_server(output: &Output) -> Result<()> {
    if !output.success() {
        return Ok(());
    }
    let answer = [Dialect::PARAMS, Dialect::LEGACY].map(|dialect| Answer::parse(dialect, &output.stdout));
    let socket = answer.into_iter().find_map(|answer| answer.ok()?.path().ok()).expect("an answer");
    for server in listeners(&socket) {
        let server = Process::open(server)?;
        let mut connection = RawConnection::connect(&socket)?;
        connection.set_timeout(Some(LIMIT))?;
        let create = state_request("nobody");
        connection.call(TASK, "State", create.payload)?;
        server.signal(Signal::TERM)?;
        assert!(server.ended_within(LIMIT));
    }
    Ok(())
}

fn start_and_end(ctrd: &FakeContainerd, bundle: &Bundle, change: impl FnOnce(&mut Launch)) -> Result<()> {
    let mut launch = ctrd.launch(FIXTURE, bundle, "start");
    change(&mut launch);
    end_server(&run(&launch)?)
}

#[test]
fn broken_flags_fail_with_one_sentence() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = bundle(&ctrd, "c1", "").build()?;
    let mut mutations = Mutations::seeded(6);
    for _ in 0..rounds(100) {
        // Not `start`, which would make a server wherever a changed path leads.
        let mut launch = ctrd.launch(FIXTURE, &bundle, "delete");
        let at = mutations.below(launch.args.len());
        let mut changed = mutations.change(launch.args[at].as_encoded_bytes());
        changed.retain(|byte| *byte != 0);
        launch.args[at] = std::os::unix::ffi::OsStringExt::from_vec(changed);
        run(&launch)?;
    }
    bundle.remove()?;
    ctrd.check()
}

#[test]
fn broken_bootstrap_input_and_config_fail_with_one_sentence_or_serve() -> Result<()> {
    for dialect in [Dialect::LEGACY, Dialect::PARAMS] {
        let ctrd = FakeContainerd::new(dialect)?;
        let bundle = bundle(&ctrd, "c1", "").group("pod").build()?;
        let config = bundle.path().join("config.json");
        let sound = std::fs::read(&config)?;
        let mut mutations = Mutations::seeded(7);
        for _ in 0..rounds(40) {
            std::fs::write(&config, mutations.change(&sound))?;
            start_and_end(&ctrd, &bundle, |_| ())?;
        }
        std::fs::write(&config, &sound)?;
        for _ in 0..rounds(40) {
            start_and_end(&ctrd, &bundle, |launch| {
                // What comes behind the address and the folder for sockets, which would lead elsewhere.
                let tail = launch.stdin.split_off(launch.stdin.len().min(20));
                launch.stdin = mutations.change(&launch.stdin);
                launch.stdin.extend(tail);
            })?;
        }
        bundle.remove()?;
        ctrd.check_leaks()?;
    }
    Ok(())
}

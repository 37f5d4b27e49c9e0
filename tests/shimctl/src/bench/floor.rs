//! The two floors under every figure: an empty static program, and a bare echo between two threads. Machines
//! differ, so they are measured in the same run.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use shim_runtime::Pid;
use shim_testing::{Failure, Result};

use crate::cost::Footprint;

/// About as long as a State call and its answer.
const MESSAGE: usize = 100;

/// Times of a message there and back over a Unix socket, between two threads that do nothing else, in
/// microseconds.
pub(super) fn echo(count: u32) -> io::Result<Vec<f64>> {
    let (mut near, mut far) = UnixStream::pair()?;
    let echo = thread::spawn(move || -> io::Result<()> {
        let mut message = [0; MESSAGE];
        while far.read_exact(&mut message).is_ok() {
            far.write_all(&message)?;
        }
        Ok(())
    });
    let mut times = Vec::with_capacity(count as usize);
    let mut message = [0; MESSAGE];
    for _ in 0..count {
        let began = Instant::now();
        near.write_all(&message)?;
        near.read_exact(&mut message)?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    drop(near);
    echo.join().unwrap_or(Ok(())).map(|()| times)
}

/// What the program `empty` costs, which is built like a shim and waits for the end of its input.
pub(super) fn empty_program() -> Result<Footprint> {
    let program = std::env::current_exe()?.with_file_name("empty");
    let missing = |error| {
        Failure::setup(format!("cannot run `{}`, which is built beside this: {error}", program.display()))
    };
    let mut child =
        Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(missing)?;
    // A byte tells that it runs.
    let mut byte = [0];
    let ran = child.stdout.as_mut().map_or(Ok(()), |stdout| stdout.read_exact(&mut byte));
    let footprint = Pid::new(child.id()).map(Footprint::of);
    drop(child.stdin.take());
    child.wait()?;
    ran?;
    footprint.unwrap_or_else(|| Err(Failure::setup("a child without a pid")))
}

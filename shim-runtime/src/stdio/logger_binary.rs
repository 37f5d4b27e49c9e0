//! Logging programs (contract 5.2, 11.5): started for a process whose output they take, told by descriptors 3
//! to 5, and ended after it. They read the container's pipes themselves, so nothing is copied.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::Owner;
use super::copier::Control;
use super::fifo::{self, End};
use super::output::{self, Sink};
use super::uri::Program;
use crate::error::{Error, Result, WithContext};
use crate::lifetime::{Hold, Lifetime};
use crate::reaper::Group;
use crate::spawn::{Child, Command, Supervisor};
use crate::sync::lock;
use crate::sys;
use crate::types::Signal;
use crate::wait::ready_within;

/// How long a program may take to get ready.
const READY: Duration = Duration::from_secs(30);
/// How long it may take nothing, once its process has ended, before it is told to end.
const STALL: Duration = Duration::from_secs(1);
/// How often it is looked at meanwhile; the kernel does not tell when a pipe was emptied.
const GLANCE: Duration = Duration::from_millis(10);
/// How long it then has, before it is killed.
const GRACE: Duration = Duration::from_secs(12);

/// A logging program that runs.
pub(super) struct Logger {
    child: Child,
    supervisor: Supervisor,
    /// What it has not read yet can be seen here; `None` once it has ended.
    pipes: Unread,
    /// Ends the discarding that follows the program's end.
    pub(super) discards: [Arc<Control>; 2],
}

/// What a logging program has not read yet.
#[derive(Clone)]
pub(super) struct Unread(Arc<Mutex<Option<[OwnedFd; 2]>>>);

impl Unread {
    /// How many bytes that is; none once the program has ended.
    pub(super) fn count(&self) -> usize {
        lock(&self.0).iter().flatten().map(sys::unread).sum()
    }
}

/// The ends that a process's output is written to.
pub(super) struct Ends {
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

impl Logger {
    /// Starts a program and waits until it is ready. The shim lives as long as the program does.
    pub(super) fn start(
        program: Program,
        of: Owner<'_>,
        supervisor: &Supervisor,
        ours: End,
        lifetime: &Lifetime,
    ) -> Result<(Self, Ends)> {
        let (out_read, stdout) = fifo::pipe(ours)?;
        let (err_read, stderr) = fifo::pipe(End::Neither)?;
        let (ready, tell) = fifo::pipe(End::Neither)?;
        let copy = |pipe: &OwnedFd| pipe.try_clone().with_context(|| "cannot duplicate a pipe");
        let pipes = Unread(Arc::new(Mutex::new(Some([copy(&out_read)?, copy(&err_read)?]))));
        let name = program.path.display().to_string();
        let mut command = Command::new(&program.path);
        command.args(program.args).env_clear();
        command.env("CONTAINER_ID", of.id).env("CONTAINER_NAMESPACE", of.namespace);
        command.descriptor(3, out_read).descriptor(4, err_read).descriptor(5, tell);
        let child = supervisor.spawn(&mut command, Group::Keep)?;
        let id = Arc::from(of.id);
        let discards = [Control::new(supervisor.main(), &id), Control::new(supervisor.main(), &id)];
        let logger = Self { child, supervisor: supervisor.clone(), pipes, discards };
        logger.discard_after_its_end(id, lifetime.hold());
        logger
            .wait_until_ready(ready, program.says_when_ready)
            .with_context(|| format!("the logging program `{name}` is of no use"))?;
        Ok((logger, Ends { stdout, stderr }))
    }

    fn wait_until_ready(&self, ready: OwnedFd, must_say_so: bool) -> Result<()> {
        if !ready_within(&ready, PollFlags::POLLIN, READY).with_context(|| "cannot wait for it")? {
            return Err(Error::deadline_exceeded(format!("it was not ready after {READY:?}")));
        }
        // Ready for reading: it has closed the pipe, or there is a byte. `read_exact` resumes an interrupted read.
        let said_so = File::from(ready).read_exact(&mut [0]).is_ok();
        if said_so || !must_say_so {
            return Ok(());
        }
        Err(Error::other(match self.child.exit.wait_for(STALL) {
            Some(exit) => format!("it ended with status {} before it was ready", exit.status),
            None => "it closed descriptor 5 without a byte, which says that it failed".to_owned(),
        }))
    }

    /// A process outlives its logging program: from then on its output is thrown away, unless the program has
    /// left it to another one.
    fn discard_after_its_end(&self, id: Arc<str>, hold: Hold) {
        let (pipes, discards) = (self.pipes.clone(), self.discards.clone());
        self.child.exit.on_exit(move |exit| {
            drop(hold);
            let mut is_said = false;
            for (pipe, control) in lock(&pipes.0).take().into_iter().flatten().zip(&discards) {
                if let Ok(Some(pipe)) = fifo::only_reader(pipe) {
                    if !fifo::has_ended(&pipe) && !std::mem::replace(&mut is_said, true) {
                        let status = exit.status;
                        log::warn!(
                            "the logging program of `{id}` has ended with status {status}; output is dropped"
                        );
                    }
                    output::start(control, Arc::new(pipe), Sink::Nowhere, None);
                }
            }
        });
    }

    /// The process has ended: gives the program the time to take what is left, then tells it to end. Does not
    /// wait longer than it takes something.
    pub(super) fn finish(&self) {
        let (mut left, mut since) = (self.unread().count(), Instant::now());
        while self.child.exit.wait_for(GLANCE).is_none() && since.elapsed() < STALL {
            let now = self.unread().count();
            if now < left {
                since = Instant::now();
            }
            left = now;
            // At the end of both pipes it ends by itself. Whoever else holds one keeps it from seeing that.
            if left == 0 && !self.sees_the_end() {
                break;
            }
        }
        self.terminate();
        self.child.exit.wait_for(STALL);
    }

    /// What it has not read yet.
    pub(super) fn unread(&self) -> &Unread {
        &self.pipes
    }

    fn sees_the_end(&self) -> bool {
        lock(&self.pipes.0).iter().flatten().all(fifo::has_ended)
    }

    /// Tells it to end, and kills it later if need be.
    fn terminate(&self) {
        if self.child.exit.get().is_some() {
            return;
        }
        let (child, reaper) = (self.child.clone(), self.supervisor.reaper.clone());
        let _ = reaper.signal(child.pid, Signal::TERM, false);
        self.supervisor.main().post(move |events| {
            events.after(GRACE, move |_| {
                if child.exit.get().is_none() {
                    let _ = reaper.signal(child.pid, Signal::KILL, false);
                }
            });
        });
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        self.terminate();
    }
}

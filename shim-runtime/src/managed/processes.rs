//! The processes of one container, and the order of their exits (contract 5.3, 6.4, 6.5): an exit is held until
//! its start was published and its output was read, and the init's until those of all execs were.

use std::collections::HashMap;
use std::sync::Arc;

use super::events::Events;
use super::state::{Move, Phase};
use crate::api::{Any, CreateTaskRequest, ExecProcessRequest, Running, StateResponse, Target, WaitResponse};
use crate::bundle::ConsoleSize;
use crate::error::{Error, Result};
use crate::peer::Waiters;
use crate::stdio::{Stdio, StdioNames, Streams};
use crate::types::{Exit, Pid, Signal};

/// One process: the init, or an exec.
pub(super) struct Process {
    /// What messages call it.
    what: String,
    pub(super) phase: Phase,
    pub(super) running: Option<Arc<Running>>,
    /// As it is reported; 0 before there is one.
    pub(super) pid: u32,
    pub(super) names: StdioNames,
    pub(super) streams: Option<Arc<Streams>>,
    /// The container's ends that author code has not taken.
    pub(super) stdio: Option<Stdio>,
    /// Of an exec.
    pub(super) spec: Option<Any>,
    /// `CloseIO` came before there was a stream to close.
    input_closed: bool,
    /// The size of its terminal, columns first, if it was told before there is one.
    size: Option<(u16, u16)>,
    /// It has ended, which nobody was told yet.
    ended: Option<Exit>,
    /// It has ended, and what it had written was not read yet.
    undelivered: bool,
    /// It has ended, which was published.
    pub(super) exit: Option<Exit>,
    /// Signals that came while it was started, and whether they were for all processes.
    pub(super) early_signals: Vec<(Signal, bool)>,
    pub(super) waiters: Arc<Waiters<WaitResponse>>,
}

/// What to tell whom once the lock is given up.
pub(super) type Told = Vec<(Arc<Waiters<WaitResponse>>, WaitResponse)>;

impl Process {
    fn new(what: String, phase: Phase, names: StdioNames) -> Self {
        Self {
            what,
            phase,
            running: None,
            pid: 0,
            names,
            streams: None,
            stdio: None,
            spec: None,
            input_closed: false,
            size: None,
            ended: None,
            undelivered: false,
            exit: None,
            early_signals: Vec::new(),
            waiters: Arc::default(),
        }
    }

    pub(super) fn check(&self, wanted: Move) -> Result<()> {
        // Between its end and the telling of it there is nothing left to be moved, and nothing to delete yet.
        let over = self.ended.is_some() && wanted != Move::Delete;
        if over { Phase::Stopped } else { self.phase }.check(wanted, &self.what)
    }

    /// Refuses the move, or goes on to `next`.
    pub(super) fn advance(&mut self, wanted: Move, next: Phase) -> Result<()> {
        self.check(wanted)?;
        self.phase = next;
        Ok(())
    }

    /// Its streams are open. `size` is the terminal's, unless the client has told another one.
    pub(super) fn connect(&mut self, streams: Streams, size: Option<ConsoleSize>) {
        if self.input_closed {
            streams.close_input();
        }
        if self.names.terminal
            && self.size.is_none()
            && let Some(ConsoleSize { width, height }) = size
        {
            self.size = Some((in_cells(width), in_cells(height)));
        }
        if let Some((columns, rows)) = self.size
            && let Err(error) = streams.resize(columns, rows)
        {
            log::warn!("{error}");
        }
        self.streams = Some(Arc::new(streams));
    }

    /// Sets the size of its terminal, which is remembered until there is one. Without a terminal that is no
    /// error, after its end it is (contract 5.3).
    pub(super) fn resize(&mut self, width: u32, height: u32) -> Result<()> {
        self.check(Move::Resize)?;
        let (columns, rows) = (in_cells(width), in_cells(height));
        self.size = Some((columns, rows));
        self.streams.as_ref().map_or(Ok(()), |streams| streams.resize(columns, rows))
    }

    /// Remembered if it comes before the stream is there (contract 5.3).
    pub(super) fn close_input(&mut self) {
        self.input_closed = true;
        if let Some(streams) = &self.streams {
            streams.close_input();
        }
    }

    /// Keeps a signal for what is being started, once.
    pub(super) fn signal_early(&mut self, signal: Signal, all: bool) {
        if !self.early_signals.contains(&(signal, all)) {
            self.early_signals.push((signal, all));
        }
    }

    /// Whether it has ended, published or not.
    pub(super) fn is_over(&self) -> bool {
        self.exit.is_some() || self.ended.is_some()
    }

    /// Its streams have nobody any more at their other side.
    fn hang_up(&self) {
        if let Some(streams) = &self.streams {
            streams.process_ended();
        }
    }

    /// Its end is published now; who waits for it is told by the caller.
    fn publish_exit(&mut self, exit: Exit) -> (Arc<Waiters<WaitResponse>>, WaitResponse) {
        self.exit = Some(exit);
        // One that is being deleted before it was started stays so.
        if self.phase != Phase::Deleting {
            self.phase = Phase::Stopped;
        }
        (self.waiters.clone(), wait_response(exit))
    }

    /// As State reports it.
    pub(super) fn report(&self, id: &str, bundle: &str) -> StateResponse {
        StateResponse {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            pid: self.pid,
            status: self.phase.status().into(),
            stdin: self.names.stdin.clone(),
            stdout: self.names.stdout.clone(),
            stderr: self.names.stderr.clone(),
            terminal: self.names.terminal,
            exit_status: self.exit.map_or(0, |exit| exit.status),
            exited_at: self.exit.map(Exit::timestamp).into(),
            ..StateResponse::default()
        }
    }
}

/// A length of a terminal as the kernel takes it.
fn in_cells(length: u32) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

pub(super) fn wait_response(exit: Exit) -> WaitResponse {
    WaitResponse {
        exit_status: exit.status,
        exited_at: Some(exit.timestamp()).into(),
        ..WaitResponse::default()
    }
}

/// All processes of a container.
pub(super) struct Processes {
    id: String,
    pub(super) init: Process,
    pub(super) execs: HashMap<String, Process>,
    /// What it runs is not ended by the kernel with its init.
    pub(super) shares_pids: bool,
    /// Something of the user's has run: the init, or an exec before it.
    ran: bool,
    /// Its daemon has given it up: it is deleted once it has ended, though nobody asks for that.
    pub(super) abandoned: bool,
    aftermath: Aftermath,
}

/// How far what an ended init has left is taken care of, for which its exit is held.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aftermath {
    /// The init lives, or was not looked after yet.
    ToCome,
    /// Author code ends the rest.
    Running,
    Done,
}

/// What an ended init has left for author code to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Rest {
    /// Nothing that is frozen can die.
    pub(super) frozen: bool,
    /// Other processes may be left.
    pub(super) alive: bool,
}

impl Processes {
    pub(super) fn new(id: &str, request: &CreateTaskRequest) -> Self {
        let init = Process::new(format!("container `{id}`"), Phase::Creating, request.into());
        Self {
            id: id.to_owned(),
            init,
            execs: HashMap::new(),
            shares_pids: true,
            ran: false,
            abandoned: false,
            aftermath: Aftermath::ToCome,
        }
    }

    /// The process of that exec id, or the init for an empty one.
    pub(super) fn get(&mut self, exec: &str) -> Result<&mut Process> {
        if exec.is_empty() {
            return Ok(&mut self.init);
        }
        let id = &self.id;
        self.execs
            .get_mut(exec)
            .ok_or_else(|| Error::not_found(format!("no exec `{exec}` in container `{id}`")))
    }

    /// Adds an exec, to be started later.
    pub(super) fn add_exec(&mut self, request: ExecProcessRequest) -> Result<()> {
        let names = StdioNames::from(&request);
        let exec = request.exec_id;
        if self.execs.contains_key(&exec) {
            return Err(Error::already_exists(format!("exec `{exec}` exists in container `{}`", self.id)));
        }
        self.init.check(Move::Exec)?;
        if self.init.pid == 0 {
            let message = format!("cannot execute a process in {}: it is not restored yet", self.init.what);
            return Err(Error::failed_precondition(message));
        }
        let what = format!("exec `{exec}` of container `{}`", self.id);
        let mut process = Process::new(what, Phase::Created, names);
        process.spec = Some(request.spec.into_option().unwrap_or_default());
        self.execs.insert(exec, process);
        Ok(())
    }

    /// Begins to start an exec, which needs a container that lives.
    pub(super) fn begin_exec(&mut self, exec: &str) -> Result<&mut Process> {
        self.init.check(Move::Exec)?;
        let process = self.get(exec)?;
        process.advance(Move::Start, Phase::Starting)?;
        Ok(process)
    }

    /// A process has ended, once. Returns the streams whose output is to be [`delivered`](Self::delivered) before
    /// that is told; a process that was never started has written nothing.
    pub(super) fn ended(&mut self, exec: Option<&str>, exit: Exit) -> Option<Arc<Streams>> {
        let process = self.get(exec.unwrap_or_default()).ok().filter(|process| !process.is_over())?;
        process.ended = Some(exit);
        process.hang_up();
        let ran = !matches!(process.phase, Phase::Created | Phase::Deleting);
        let streams = process.streams.clone().filter(|_| ran);
        process.undelivered = streams.is_some();
        streams
    }

    /// What a process had written when it ended was read, or need not be waited for any more.
    pub(super) fn delivered(&mut self, exec: Option<&str>) {
        if let Ok(process) = self.get(exec.unwrap_or_default()) {
            process.undelivered = false;
        }
    }

    /// Publishes the exits that nothing holds back any more, in their order. Returns as well what author code
    /// has to do before the init's can be, once.
    pub(super) fn settle(&mut self, events: &Events) -> (Told, Option<Rest>) {
        let mut told = Told::new();
        for (exec, process) in &mut self.execs {
            let held = process.undelivered || process.phase == Phase::Starting;
            if let Some(exit) = process.ended.filter(|_| !held) {
                process.ended = None;
                events.exited(&self.id, Some(exec), process.pid, exit);
                told.push(process.publish_exit(exit));
            }
        }
        let begun = !matches!(self.init.phase, Phase::Creating | Phase::Starting);
        let Some(exit) = self.init.ended.filter(|_| begun) else { return (told, None) };
        if self.aftermath == Aftermath::ToCome {
            let rest = self.rest();
            if rest.frozen || rest.alive {
                self.aftermath = Aftermath::Running;
                return (told, Some(rest));
            }
            self.aftermath = Aftermath::Done;
        }
        let held = self.init.undelivered
            || self.aftermath == Aftermath::Running
            || self.execs.values().any(|exec| exec.phase.is_live());
        if !held {
            self.init.ended = None;
            events.exited(&self.id, None, self.init.pid, exit);
            told.push(self.init.publish_exit(exit));
        }
        (told, None)
    }

    /// A process runs now; returns the signals that came while it was started.
    pub(super) fn started(&mut self, exec: &str, running: &Arc<Running>, pid: u32) -> Vec<(Signal, bool)> {
        self.ran = true;
        let Ok(process) = self.get(exec) else { return Vec::new() };
        process.running = Some(running.clone());
        process.pid = pid;
        process.phase = Phase::Running;
        std::mem::take(&mut process.early_signals)
    }

    /// What an init leaves that ends now.
    fn rest(&self) -> Rest {
        let frozen = matches!(self.init.phase, Phase::Pausing | Phase::Paused);
        Rest { frozen, alive: self.has_live_execs() || self.may_leave_more() }
    }

    /// Whether execs run, or are about to.
    pub(super) fn has_live_execs(&self) -> bool {
        self.execs.values().any(|exec| exec.phase.is_live() && !exec.is_over())
    }

    /// Whether nothing runs, and every exit that has to be told was told.
    pub(super) fn are_at_rest(&self) -> bool {
        let init_is_over = self.init.running.is_none() || self.init.exit.is_some();
        init_is_over && !self.execs.values().any(|exec| exec.phase.is_live())
    }

    /// Whether processes may be left that nobody has told the shim of. What never ran has started none.
    pub(super) fn may_leave_more(&self) -> bool {
        self.ran && self.shares_pids
    }

    /// Author code has done what there was to do after the init's end.
    pub(super) fn rest_ended(&mut self) {
        self.aftermath = Aftermath::Done;
    }

    /// An exec could not be started: who waits for it is told, but it never ran, so there is no event.
    pub(super) fn exec_failed(&mut self, exec: &str) -> Told {
        let Ok(process) = self.get(exec) else { return Told::new() };
        let mut told = Told::new();
        let exit = Exit::now(255);
        process.hang_up();
        told.push(process.publish_exit(exit));
        process.ended = None;
        process.early_signals.clear();
        process.phase = Phase::Failed;
        told
    }

    /// What those are told who still wait when the container is deleted: for processes that were never started.
    pub(super) fn never_started(&self, exit: Exit) -> Told {
        let processes = self.execs.values().chain([&self.init]);
        processes.map(|process| (process.waiters.clone(), wait_response(exit))).collect()
    }

    /// The process of that exec id, and with it all others that run, for author code.
    pub(super) fn target<'a>(&mut self, exec: &'a str) -> Result<Target<'a>> {
        let running = self.get(exec)?.running.clone();
        let others = if exec.is_empty() {
            let live = self.execs.values().filter(|exec| exec.phase.is_live());
            live.filter_map(|exec| exec.running.clone()).collect()
        } else {
            Vec::new()
        };
        Ok(Target::new(Some(exec).filter(|exec| !exec.is_empty()), running, others))
    }

    /// Which exec a process id belongs to.
    pub(super) fn exec_of(&self, pid: Pid) -> Option<&str> {
        let found =
            self.execs.iter().find(|(_, process)| process.phase.is_live() && process.pid == pid.get());
        found.map(|(exec, _)| exec.as_str())
    }
}

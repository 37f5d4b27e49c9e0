//! A process's stdio (contract 5): what a client named on one side, pipes or a terminal to the process on the
//! other, and between them copiers on the main loop. Pipes stay pipes, so a container outlives whoever reads it.

mod copier;
mod delivery;
mod fifo;
mod file;
mod gauge;
mod input;
mod logger_binary;
mod output;
mod pace;
mod terminal;
mod trouble;
mod uri;
mod withheld;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim_protos::api::{CreateTaskRequest, ExecProcessRequest};
use nix::unistd::{Gid, Uid, fchown};

use self::copier::{Control, Drain};
use self::delivery::Delivery;
use self::fifo::{End, Opened};
use self::input::InputCopier;
use self::logger_binary::Logger;
use self::output::Sink;
use self::terminal::{Claim, Terminal};
use self::uri::{Place, Program};
pub use self::withheld::Withheld;
use crate::error::{Error, Result, WithContext};
use crate::event_loop::Handle;
use crate::lifetime::Lifetime;
use crate::spawn::{Command, Supervisor};

/// The container's ends of its stdio. A stream that containerd does not connect is `None`. Dropping an end is
/// the end of that stream to the client.
///
/// With a terminal all three are the same one. An OCI runtime makes its own; give it the path that
/// [`console_socket`](Self::console_socket) returns.
#[derive(Default)]
pub struct Stdio {
    /// To read input from.
    pub stdin: Option<OwnedFd>,
    /// To write output to.
    pub stdout: Option<OwnedFd>,
    /// To write errors to.
    pub stderr: Option<OwnedFd>,
    terminal: Option<Claim>,
    outputs: Vec<withheld::Output>,
}

impl Stdio {
    /// Whether it is a terminal.
    pub fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// The path of a socket to which an OCI runtime sends the terminal that it makes (`--console-socket`). The
    /// streams are then `None`, for the runtime needs none of them. It is a matter of the author whether the runtime
    /// is called by `create` or by `start`; once `start` has returned it is too late to call this.
    ///
    /// # Errors
    /// `FailedPrecondition` when it is no terminal, or when this was called before.
    pub fn console_socket(&mut self) -> Result<PathBuf> {
        let none = || Error::failed_precondition("there is no terminal to send to a console socket");
        let path = self.terminal.as_ref().ok_or_else(none)?.console_socket()?;
        (self.stdin, self.stdout, self.stderr) = (None, None, None);
        Ok(path)
    }

    /// Makes the pipes, or the terminal, a user's, so that a process of that user can open `/dev/stdout`. An id
    /// that is `None` stays. Of a terminal, whose group has a meaning, the user alone is changed.
    ///
    /// # Errors
    /// When the owner cannot be changed.
    pub fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let gid = gid.filter(|_| !self.is_terminal());
        if uid.is_none() && gid.is_none() {
            return Ok(());
        }
        for fd in [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten() {
            fchown(fd.as_fd(), uid.map(Uid::from_raw), gid.map(Gid::from_raw))
                .with_context(|| "cannot hand a stream to the container's user")?;
        }
        Ok(())
    }

    /// Keeps from the client what is written to the outputs from now on, until it is known whose words they are: to be
    /// called for a runtime command that passes its own streams on to the container, and complains on them when it
    /// fails. Output is withheld where the shim copies it, which is from pipes; a logging program reads for itself.
    pub fn withhold(&mut self) -> Withheld {
        Withheld::new(std::mem::take(&mut self.outputs))
    }

    /// Gives the streams to a command; those that are not connected become `/dev/null`. If the command runs
    /// under another user, the streams become that user's. A terminal becomes the command's controlling one.
    ///
    /// # Errors
    /// When the owner cannot be changed.
    pub fn apply(self, command: &mut Command) -> Result<()> {
        let (uid, gid) = command.ids();
        self.set_owner(uid, gid)?;
        if self.is_terminal() && self.stdin.is_some() {
            command.controlling_terminal(0);
        }
        for (number, fd) in [(0, self.stdin), (1, self.stdout), (2, self.stderr)] {
            if let Some(fd) = fd {
                command.descriptor(number, fd);
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Stdio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { stdin, stdout, stderr, terminal: _, outputs: _ } = self;
        f.debug_struct("Stdio")
            .field("stdin", stdin)
            .field("stdout", stdout)
            .field("stderr", stderr)
            .field("terminal", &self.is_terminal())
            .finish()
    }
}

/// What a client calls the streams of a process; an empty name is a stream that is not connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StdioNames {
    /// Where input comes from.
    pub stdin: String,
    /// Where output goes.
    pub stdout: String,
    /// Where errors go.
    pub stderr: String,
    /// Whether the three are one terminal.
    pub terminal: bool,
}

macro_rules! names_in {
    ($($request:ty),+) => {$(
        impl From<&$request> for StdioNames {
            fn from(request: &$request) -> Self {
                Self {
                    stdin: request.stdin.clone(),
                    stdout: request.stdout.clone(),
                    stderr: request.stderr.clone(),
                    terminal: request.terminal,
                }
            }
        }
    )+};
}

names_in!(CreateTaskRequest, ExecProcessRequest);

/// Whose streams they are, as a logging program is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    /// The container's id, or the exec's.
    pub(crate) id: &'a str,
    pub(crate) namespace: &'a str,
}

/// The runtime's half of a process's stdio, which copies until it is dropped.
pub struct Streams {
    input: Option<Arc<Control>>,
    outputs: Vec<Arc<Control>>,
    drain: Arc<Drain>,
    terminal: Option<Arc<Terminal>>,
    logger: Option<Logger>,
    main: Handle,
}

impl Streams {
    /// Opens what the names name, without waiting for any client, and starts to copy; a terminal only once it is
    /// clear whose it is (see [`begin`](Self::begin)). The shim lives while a logging program does.
    pub(crate) fn open(
        names: &StdioNames,
        of: Owner<'_>,
        supervisor: &Supervisor,
        lifetime: &Lifetime,
    ) -> Result<(Self, Stdio)> {
        let mut streams = Self {
            input: None,
            outputs: Vec::new(),
            drain: Arc::default(),
            terminal: None,
            logger: None,
            main: supervisor.main().clone(),
        };
        let id = Arc::from(of.id);
        let opening = Opening { streams: &mut streams, names, of, id, supervisor, lifetime };
        let stdio = if names.terminal { opening.terminal()? } else { opening.pipes()? };
        Ok((streams, stdio))
    }

    /// Begins to copy to and from a terminal, unless a runtime is still to send it. That happens by itself when the
    /// [`Stdio`] is dropped or applied to a command; for one that is kept, call this once the process runs.
    pub fn begin(&self) {
        if let Some(terminal) = &self.terminal {
            terminal.begin();
        }
    }

    /// The client sends no more input: what it has sent still arrives, then the end.
    pub fn close_input(&self) {
        if let Some(input) = &self.input {
            input.finish();
        }
    }

    /// Sets the size of the terminal, if there is one.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        self.terminal.as_ref().map_or(Ok(()), |terminal| terminal.resize(columns, rows))
    }

    /// The process has ended: nobody takes input any more, and a terminal ends once nobody else has it open.
    pub(crate) fn process_ended(&self) {
        if let Some(input) = &self.input {
            input.abort();
        }
        // Before the terminal is let go, so that its end is known to be one.
        self.outputs.iter().for_each(Control::process_ended);
        if let Some(terminal) = &self.terminal {
            terminal.process_ended();
        }
    }

    /// The process has ended: what is left of its output is still delivered, then the copying ends.
    pub(crate) fn finish(&self) {
        self.process_ended();
        self.outputs.iter().for_each(Control::finish);
    }

    /// The process has ended: nobody takes input any more, and a terminal ends once nobody else has it open. Calls
    /// `told` once what the process has written so far was read. Tell the end in there: containerd's clients close
    /// their ends as soon as they know of it, whatever they have not read yet.
    ///
    /// `told` is called at once if nothing is unread. Else it is called on the main thread, at the latest after a
    /// second, and earlier when nobody reads or when the reader takes nothing for 100 ms. What other processes, left
    /// behind with the streams, write meanwhile is not waited for.
    pub fn on_delivered(&self, told: impl FnOnce() + Send + 'static) {
        self.process_ended();
        let outputs = self.outputs.clone();
        let logger = self.logger.as_ref().map(Logger::unread).filter(|unread| unread.count() > 0).cloned();
        let is_delivered = logger.is_none() && outputs.iter().all(|output| output.gauge.is_empty());
        let tell = move || {
            for output in outputs {
                output.gauge.release();
            }
            told();
        };
        if is_delivered {
            return tell();
        }
        let delivery = Delivery::new(&self.outputs, logger, tell);
        self.main.post(move |events| delivery.look(events));
    }

    /// Waits until all output of an ended process that can still be delivered is, and ends the copying.
    pub fn drain(&self) {
        self.finish();
        self.drain.wait();
        self.end();
        if let Some(logger) = &self.logger {
            logger.finish();
        }
    }

    fn end(&self) {
        self.outputs.iter().for_each(Control::abort);
        if let Some(terminal) = &self.terminal {
            terminal.close();
        }
    }
}

impl Drop for Streams {
    /// Nothing is copied for a process that nobody knows any more.
    fn drop(&mut self) {
        self.process_ended();
        self.end();
        self.logger.iter().flat_map(|logger| &logger.discards).for_each(Control::abort);
    }
}

/// The streams of one process while they are opened.
struct Opening<'a> {
    streams: &'a mut Streams,
    names: &'a StdioNames,
    of: Owner<'a>,
    id: Arc<str>,
    supervisor: &'a Supervisor,
    lifetime: &'a Lifetime,
}

impl Opening<'_> {
    fn pipes(mut self) -> Result<Stdio> {
        let stdin = self.input_pipe()?;
        let place = uri::parse("stdout", &self.names.stdout)?;
        // What the client says of stdout decides for both where it is no path (contract 5.2).
        let is_shared = matches!(place, Place::File(_)) || self.names.stdout == self.names.stderr;
        if let Place::Program(program) = place {
            let ends = self.logger(program, End::Neither)?;
            let (stdout, stderr) = (Some(ends.stdout), Some(ends.stderr));
            return Ok(Stdio { stdin, stdout, stderr, ..Stdio::default() });
        }
        let mut outputs = Vec::new();
        let stdout = self.output_pipe("stdout", &self.names.stdout, place, &mut outputs)?;
        let stderr = if is_shared {
            // One pipe, so that lines stay in their order; it ends when both ends are closed.
            stdout.as_ref().map(OwnedFd::try_clone).transpose()?
        } else {
            let place = uri::parse("stderr", &self.names.stderr)?;
            self.output_pipe("stderr", &self.names.stderr, place, &mut outputs)?
        };
        Ok(Stdio { stdin, stdout, stderr, terminal: None, outputs })
    }

    fn input_pipe(&mut self) -> Result<Option<OwnedFd>> {
        match self.input()? {
            Some(Opened::Fifo(fifo)) => {
                let (read, write) = fifo::pipe(End::Write)?;
                let control = self.control();
                InputCopier::start(&control, fifo, Arc::new(write), false);
                self.streams.input = Some(control);
                Ok(Some(read))
            }
            // It has an end of its own, and nobody to wait for.
            Some(Opened::Other(file)) => Ok(Some(file.into())),
            None => Ok(None),
        }
    }

    fn output_pipe(
        &mut self,
        stream: &str,
        name: &str,
        place: Place,
        outputs: &mut Vec<withheld::Output>,
    ) -> Result<Option<OwnedFd>> {
        let to = match sink(place).with_context(|| format!("cannot use `{name}` for {stream}"))? {
            Sink::Nowhere => return Ok(None),
            to => to,
        };
        let (read, write) = fifo::pipe(End::Read)?;
        let (control, read) = (self.output_control(), Arc::new(read));
        outputs.push(withheld::Output::new(&control, &read));
        output::start(&control, read, to, Some(self.streams.drain.share()));
        Ok(Some(write))
    }

    /// A terminal has one output, and input from a FIFO.
    fn terminal(mut self) -> Result<Stdio> {
        let input = match self.input()? {
            Some(Opened::Fifo(fifo)) => Some((self.control(), fifo)),
            Some(Opened::Other(_)) => {
                let message = format!("cannot use `{}` for stdin: a terminal needs a FIFO", self.names.stdin);
                return Err(Error::invalid_argument(message));
            }
            None => None,
        };
        let to = match uri::parse("stdout", &self.names.stdout)? {
            Place::Program(program) => {
                let ends = self.logger(program, End::Write)?;
                Sink::Pipe(ends.stdout, Some(ends.stderr))
            }
            place => sink(place).with_context(|| format!("cannot use `{}` for stdout", self.names.stdout))?,
        };
        self.streams.input = input.as_ref().map(|(control, _)| control.clone());
        let output = (self.output_control(), to, self.streams.drain.share());
        let ends = terminal::Ends { input, output };
        let (terminal, slave) = Terminal::open(ends, self.control())?;
        self.streams.terminal = Some(terminal.clone());
        let (stdin, stdout) = (Some(slave.try_clone()?), Some(slave.try_clone()?));
        let (stderr, terminal) = (Some(slave), Some(Claim::new(&terminal)));
        Ok(Stdio { stdin, stdout, stderr, terminal, ..Stdio::default() })
    }

    fn input(&self) -> Result<Option<Opened>> {
        let name = &self.names.stdin;
        let cannot = || format!("cannot use `{name}` for stdin");
        match uri::parse("stdin", name)? {
            Place::Nowhere => Ok(None),
            Place::Path(path) | Place::File(path) => fifo::open(&path, true).with_context(cannot).map(Some),
            Place::Program(_) => {
                Err(Error::invalid_argument("a logging program gives no input")).with_context(cannot)
            }
        }
    }

    fn control(&self) -> Arc<Control> {
        Control::new(self.supervisor.main(), &self.id)
    }

    fn output_control(&mut self) -> Arc<Control> {
        let control = self.control();
        self.streams.outputs.push(control.clone());
        control
    }

    fn logger(&mut self, program: Program, ours: End) -> Result<logger_binary::Ends> {
        let (logger, ends) = Logger::start(program, self.of, self.supervisor, ours, self.lifetime)?;
        self.streams.logger = Some(logger);
        Ok(ends)
    }
}

/// Opens where output goes.
fn sink(place: Place) -> Result<Sink> {
    let cannot = |path: &Path| format!("cannot open `{}`", path.display());
    match place {
        Place::Nowhere => Ok(Sink::Nowhere),
        Place::Path(path) => Ok(match fifo::open(&path, false).with_context(|| cannot(&path))? {
            Opened::Fifo(fifo) => Sink::Fifo(fifo),
            Opened::Other(file) => Sink::File(file),
        }),
        Place::File(path) => file::open(&path).with_context(|| cannot(&path)).map(Sink::File),
        Place::Program(_) => {
            Err(Error::invalid_argument("a logging program is named for stdout, and takes both streams"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::mpsc::{self, TryRecvError};

    use nix::unistd::{getegid, geteuid, write};

    use super::*;
    use crate::event_loop::EventLoop;

    fn owner(fd: &OwnedFd) -> (u32, u32) {
        let metadata = std::fs::File::from(fd.try_clone().unwrap()).metadata().unwrap();
        (metadata.uid(), metadata.gid())
    }

    #[test]
    fn where_nothing_is_unread_that_is_told_at_once_without_a_timer() {
        let events = EventLoop::new().unwrap();
        let control = Control::new(&events.handle(), &"c1".into());
        let (read, process) = fifo::pipe(End::Read).unwrap();
        let read = Arc::new(read);
        control.gauge.comes_from(&read);
        let streams = Streams {
            input: None,
            outputs: vec![control],
            drain: Arc::default(),
            terminal: None,
            logger: None,
            main: events.handle(),
        };
        let (tell, told) = mpsc::channel();
        // The loop does not run here.
        let again = tell.clone();
        streams.on_delivered(move || again.send(()).unwrap());
        assert_eq!(told.try_recv(), Ok(()));
        write(&process, b"unread").unwrap();
        streams.on_delivered(move || tell.send(()).unwrap());
        assert_eq!(told.try_recv(), Err(TryRecvError::Empty));
    }

    #[test]
    fn streams_are_handed_to_a_user_as_far_as_it_is_named() {
        let (user, group) = (geteuid().as_raw(), getegid().as_raw());
        // Anybody may keep what is theirs; only root can give it away.
        let (uid, gid) = if geteuid().is_root() { (1234, 5678) } else { (user, group) };
        let (read, write) = fifo::pipe(End::Neither).unwrap();
        let stdio = Stdio { stdin: Some(read), stdout: Some(write), ..Stdio::default() };
        stdio.set_owner(None, None).unwrap();
        assert_eq!(owner(stdio.stdin.as_ref().unwrap()), (user, group));
        stdio.set_owner(Some(uid), None).unwrap();
        assert_eq!(owner(stdio.stdout.as_ref().unwrap()), (uid, group));
        stdio.set_owner(None, Some(gid)).unwrap();
        assert_eq!(owner(stdio.stdout.as_ref().unwrap()), (uid, gid));
    }
}

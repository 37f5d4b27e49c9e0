//! Terminals: one of our own for a container that lives on the host or in the shim, or one that an OCI runtime
//! makes and sends over a console socket (contract 5.3).
//!
//! A terminal ends with its process, and not because nobody has it open: a service manager closes its console and
//! opens it again at every boot. The kernel makes no such difference. While no process has the slave open, reads and
//! writes of the master fail with EIO, which it also reports as a hang-up for as long as that lasts, and it tells
//! nobody when the slave is opened again: input that comes meanwhile could only be tried again and again. So the
//! shim holds the slave open itself until the process has ended. A terminal that nobody else has open is then one
//! that is quiet: it costs a descriptor and no wake-up, keeps what is typed, and shows it to the next who reads.
//! Once the process has ended the slave is closed, and EIO does mean the end. Hanging up works as ever: a session
//! that loses its leader is told by the kernel, and so are all processes when the master is closed.
//!
//! Where the slave cannot be held (kernels before 4.13, or no descriptor is left) EIO is taken for a pause, and the
//! copiers try again from time to time.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};

use nix::fcntl::{OFlag, open};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::unistd::{isatty, mkdtemp};

use super::copier::{Control, Share, Watch, passes};
use super::fifo;
use super::input::InputCopier;
use super::output::{self, Sink};
use crate::error::{Error, Result, WithContext};
use crate::event_loop::{EventLoop, Next, Ready, Source, Token};
use crate::sync::lock;
use crate::sys;

/// What is copied to a terminal, and from it.
pub(super) struct Ends {
    pub(super) input: Option<(Arc<Control>, OwnedFd)>,
    pub(super) output: (Arc<Control>, Sink, Share),
}

/// The terminal of one process, from before it exists.
pub(super) struct Terminal {
    /// Awaits the terminal of a runtime.
    console: Arc<Control>,
    state: Mutex<State>,
}

struct State {
    /// Our side of the terminal; none while a runtime is to send it.
    master: Option<Master>,
    /// A runtime was asked to send it.
    asked: bool,
    process_ended: bool,
    /// `None` once copying has begun.
    ends: Option<Ends>,
    /// Columns and rows, as far as they were told.
    size: Option<(u16, u16)>,
}

/// Our side of a terminal, once for each direction: an epoll set takes a descriptor only once.
struct Master {
    output: Arc<OwnedFd>,
    input: Arc<OwnedFd>,
    /// The process's side, held open until the process has ended.
    slave: Option<OwnedFd>,
}

impl Master {
    fn new(master: OwnedFd, slave: Option<OwnedFd>) -> io::Result<Self> {
        let input = Arc::new(master.try_clone()?);
        Ok(Self { output: Arc::new(master), input, slave })
    }

    /// One that a runtime has sent.
    fn sent(master: OwnedFd) -> io::Result<Self> {
        if !isatty(&master)? {
            return Err(io::Error::other("what was sent to the console socket is none"));
        }
        fifo::never_block(&master)?;
        let slave = match sys::open_slave(&master) {
            Ok(slave) => Some(slave),
            Err(error) if passes(&error) => return Err(error),
            Err(error) => {
                log::info!("a container's terminal cannot be held open: {error}");
                None
            }
        };
        Self::new(master, slave)
    }
}

/// Somebody's right to have a runtime send the terminal. Copying begins when it is given up.
pub(super) struct Claim(Arc<Terminal>);

impl Claim {
    pub(super) fn new(terminal: &Arc<Terminal>) -> Self {
        Self(terminal.clone())
    }

    /// See [`Terminal::console_socket`].
    pub(super) fn console_socket(&self) -> Result<PathBuf> {
        self.0.console_socket()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.begin();
    }
}

impl Terminal {
    /// A new terminal, and the process's side of it; `console` is for one that a runtime may send.
    pub(super) fn open(ends: Ends, console: Arc<Control>) -> Result<(Arc<Self>, OwnedFd)> {
        let (master, slave) = open_pair().with_context(|| "cannot open a terminal")?;
        let master = Master::new(master, Some(slave.try_clone()?))?;
        let (asked, process_ended) = (false, false);
        let state = State { master: Some(master), asked, process_ended, ends: Some(ends), size: None };
        Ok((Arc::new(Self { console, state: Mutex::new(state) }), slave))
    }

    /// Begins to copy, unless a runtime is still to send the terminal. Once is enough.
    pub(super) fn begin(&self) {
        let (output, input, ends) = {
            let mut state = lock(&self.state);
            let Some(master) = &state.master else { return };
            let (output, input) = (master.output.clone(), master.input.clone());
            let Some(ends) = state.ends.take() else { return };
            (output, input, ends)
        };
        let (control, to, share) = ends.output;
        output::start(&control, output, to, Some(share));
        if let Some((control, from)) = ends.input {
            InputCopier::start(&control, from, input, true);
        }
    }

    /// The process has ended: what others print is no reason to hold the terminal open for them.
    pub(super) fn process_ended(&self) {
        self.begin();
        let mut state = lock(&self.state);
        state.process_ended = true;
        if let Some(master) = &mut state.master {
            master.slave = None;
        }
    }

    /// Gives up the own terminal for one that will be sent to the returned socket.
    fn console_socket(self: &Arc<Self>) -> Result<PathBuf> {
        let mut state = lock(&self.state);
        let Some(ends) = state.ends.as_ref().filter(|_| !state.asked) else {
            return Err(Error::failed_precondition("the terminal is in use already"));
        };
        ends.output.0.gauge.await_terminal();
        let (console, path) = Console::open(self)?;
        state.asked = true;
        state.master = None;
        self.console.begin(console);
        // Begun and watched in the order of posting; whoever connects earlier waits in the socket's queue.
        Ok(path)
    }

    /// A runtime has sent the terminal.
    fn receive(&self, mut master: Master) -> Result<()> {
        let size = {
            let mut state = lock(&self.state);
            if state.process_ended {
                master.slave = None;
            }
            if state.ends.is_some() {
                state.master = Some(master);
            }
            state.size
        };
        if let Some((columns, rows)) = size {
            self.resize(columns, rows)?;
        }
        self.begin();
        Ok(())
    }

    /// No terminal will come: the client is told by the end of its streams.
    fn give_up(&self) {
        let ends = lock(&self.state).ends.take();
        if let Some(ends) = ends {
            ends.output.0.gauge.has_ended();
        }
    }

    /// Sets the size, at once or when there is a terminal.
    pub(super) fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let master = {
            let mut state = lock(&self.state);
            state.size = Some((columns, rows));
            state.master.as_ref().map(|master| master.output.clone())
        };
        let set = master.map_or(Ok(()), |master| sys::set_window_size(&master, columns, rows));
        set.with_context(|| "cannot resize a terminal")
    }

    /// Nobody needs it any more: processes that still have it are hung up on.
    pub(super) fn close(&self) {
        let (_master, _ends) = {
            let mut state = lock(&self.state);
            (state.master.take(), state.ends.take())
        };
        self.console.abort();
    }
}

/// Both sides of a new terminal. The first never blocks.
fn open_pair() -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags | OFlag::O_NONBLOCK)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = open(ptsname_r(&master)?.as_str(), flags, Mode::empty())?;
    Ok((master.into(), slave))
}

/// The folder of a console socket, which goes when this is dropped.
struct Folder(PathBuf);

impl Folder {
    /// In the user's own run-time folder, where there is one, it has the modes that keep it from being tidied away.
    fn make() -> Result<Self> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        let above = runtime.as_ref().map_or_else(std::env::temp_dir, PathBuf::from);
        let cannot = || format!("cannot make a folder for a console socket in `{}`", above.display());
        let folder = Self(mkdtemp(&above.join("pty-XXXXXX")).with_context(cannot)?);
        if runtime.is_some() {
            fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o1755)).with_context(cannot)?;
        }
        Ok(folder)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("console.sock")
    }
}

impl Drop for Folder {
    /// Without a descriptor, for there may be none left.
    fn drop(&mut self) {
        let _ = fs::remove_file(self.socket());
        if let Err(error) = fs::remove_dir(&self.0) {
            log::warn!("cannot remove `{}`: {error}", self.0.display());
        }
    }
}

/// The console socket on the loop: takes one connection, and from it one descriptor. Its folder goes with it, however
/// it ends.
struct Console {
    _folder: Folder,
    listener: Arc<UnixListener>,
    /// Who has connected.
    stream: Option<Arc<UnixStream>>,
    terminal: Weak<Terminal>,
    watch: Watch,
}

impl Console {
    /// Opens it; returns its path as well.
    fn open(terminal: &Arc<Terminal>) -> Result<(Self, PathBuf)> {
        let folder = Folder::make()?;
        let path = folder.socket();
        let cannot = || format!("cannot listen at `{}`", path.display());
        let listener = UnixListener::bind(&path).with_context(cannot)?;
        listener.set_nonblocking(true).with_context(cannot)?;
        let (listener, terminal) = (Arc::new(listener), Arc::downgrade(terminal));
        Ok((Self { _folder: folder, listener, stream: None, terminal, watch: Watch::default() }, path))
    }

    fn turn(&mut self, token: Token, events: &mut EventLoop) -> Result<Next> {
        let Some(terminal) = self.terminal.upgrade().filter(|terminal| !terminal.console.is_aborted()) else {
            return Ok(Next::Close);
        };
        match self.receive() {
            Ok(master) => {
                terminal.receive(master)?;
                Ok(Next::Close)
            }
            // What was sent waits in the socket.
            Err(error) if passes(&error) => {
                self.watch.retry(token, events);
                Ok(Next::Keep)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                match &self.stream {
                    Some(stream) => self.watch.start(stream, Ready::EPOLLIN, token, events)?,
                    None => self.watch.start(&self.listener, Ready::EPOLLIN, token, events)?,
                }
                Ok(Next::Keep)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What was sent, once somebody has connected and sent something.
    fn receive(&mut self) -> io::Result<Master> {
        if self.stream.is_none() {
            let (stream, _) = self.listener.accept()?;
            stream.set_nonblocking(true)?;
            self.stream = Some(Arc::new(stream));
        }
        let sent = self.stream.as_ref().map(|stream| sys::receive_descriptor(stream)).transpose()?.flatten();
        sent.ok_or_else(|| io::Error::other("none was sent to the console socket")).and_then(Master::sent)
    }
}

impl Source for Console {
    fn ready(&mut self, token: Token, _: Ready, events: &mut EventLoop) -> Next {
        self.turn(token, events).unwrap_or_else(|error| {
            log::error!("cannot receive a container's terminal: {error}");
            if let Some(terminal) = self.terminal.upgrade() {
                terminal.give_up();
            }
            Next::Close
        })
    }

    fn close(&mut self, events: &mut EventLoop) {
        self.watch.stop(events);
    }
}

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
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use nix::fcntl::{OFlag, open};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::unistd::{isatty, mkdtemp};

use super::copier::{Control, Share};
use super::fifo;
use super::input::InputCopier;
use super::output::{self, Sink};
use crate::error::{Error, Result, WithContext};
use crate::event_loop::{EventLoop, Handle, Next, Ready, Source, Token};
use crate::reaper::lock;
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
    /// The process's side, held open until the process has ended.
    slave: Option<OwnedFd>,
    process_ended: bool,
    /// `None` once copying has begun.
    ends: Option<Ends>,
    /// Columns and rows, as far as they were told.
    size: Option<(u16, u16)>,
    /// The folder of the console socket.
    folder: Option<PathBuf>,
}

/// Our side of a terminal, once for each direction: an epoll set takes a descriptor only once.
#[derive(Clone)]
struct Master {
    output: Arc<OwnedFd>,
    input: Arc<OwnedFd>,
}

impl Master {
    fn new(master: OwnedFd) -> Result<Self> {
        let input = Arc::new(master.try_clone()?);
        Ok(Self { output: Arc::new(master), input })
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
    /// A new terminal, and the process's side of it.
    pub(super) fn open(ends: Ends, main: &Handle) -> Result<(Arc<Self>, OwnedFd)> {
        let (master, slave) = open_pair().context(|| "cannot open a terminal")?;
        let state = State {
            master: Some(Master::new(master)?),
            slave: Some(slave.try_clone()?),
            process_ended: false,
            ends: Some(ends),
            size: None,
            folder: None,
        };
        Ok((Arc::new(Self { console: Control::new(main), state: Mutex::new(state) }), slave))
    }

    /// Begins to copy, unless a runtime is still to send the terminal. Once is enough.
    pub(super) fn begin(&self) {
        let (master, ends) = {
            let mut state = lock(&self.state);
            let Some(master) = state.master.clone() else { return };
            let Some(ends) = state.ends.take() else { return };
            (master, ends)
        };
        let (control, to, share) = ends.output;
        output::start(&control, master.output, to, Some(share));
        if let Some((control, from)) = ends.input {
            InputCopier::start(&control, from, master.input, true);
        }
    }

    /// The process has ended: what others print is no reason to hold the terminal open for them.
    pub(super) fn process_ended(&self) {
        self.begin();
        let mut state = lock(&self.state);
        state.process_ended = true;
        state.slave = None;
    }

    /// Gives up the own terminal for one that will be sent to the returned socket.
    fn console_socket(self: &Arc<Self>) -> Result<PathBuf> {
        let mut state = lock(&self.state);
        let Some(ends) = state.ends.as_ref().filter(|_| state.folder.is_none()) else {
            return Err(Error::failed_precondition("the terminal is in use already"));
        };
        ends.output.0.gauge.await_terminal();
        let folder = make_folder().context(|| "cannot make a folder for the console socket")?;
        let path = folder.join("console.sock");
        state.folder = Some(folder);
        let listener = UnixListener::bind(&path).context(|| format!("cannot bind `{}`", path.display()))?;
        listener.set_nonblocking(true)?;
        (state.master, state.slave) = (None, None);
        self.console.begin(Console { listener, stream: None, terminal: Arc::downgrade(self) });
        // Begun and watched in the order of posting; whoever connects earlier waits in the socket's queue.
        Ok(path)
    }

    /// A runtime has sent the terminal.
    fn receive(&self, master: OwnedFd) -> Result<()> {
        if !isatty(&master)? {
            return Err(Error::invalid_argument("what was sent to the console socket is no terminal"));
        }
        fifo::never_block(&master)?;
        let slave = sys::open_slave(&master)
            .inspect_err(|error| log::info!("a terminal cannot be held open: {error}"));
        let master = Master::new(master)?;
        let (size, folder) = {
            let mut state = lock(&self.state);
            if state.ends.is_some() {
                state.master = Some(master);
                state.slave = slave.ok().filter(|_| !state.process_ended);
            }
            (state.size, state.folder.take())
        };
        folder.as_deref().map(remove_folder);
        if let Some((columns, rows)) = size {
            self.resize(columns, rows)?;
        }
        self.begin();
        Ok(())
    }

    /// Sets the size, at once or when there is a terminal.
    pub(super) fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let master = {
            let mut state = lock(&self.state);
            state.size = Some((columns, rows));
            state.master.clone()
        };
        let set = master.map_or(Ok(()), |master| sys::set_window_size(&master.output, columns, rows));
        set.context(|| "cannot resize a terminal")
    }

    /// Nobody needs it any more: processes that still have it are hung up on.
    pub(super) fn close(&self) {
        let (_master, _slave, _ends, folder) = {
            let mut state = lock(&self.state);
            (state.master.take(), state.slave.take(), state.ends.take(), state.folder.take())
        };
        folder.as_deref().map(remove_folder);
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

/// In the user's own run-time folder, where there is one, it has the modes that keep it from being tidied away.
fn make_folder() -> Result<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    let above = runtime.as_ref().map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = mkdtemp(&above.join("pty-XXXXXX"))?;
    if runtime.is_some() {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o1755))?;
    }
    Ok(folder)
}

fn remove_folder(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder) {
        log::warn!("cannot remove `{}`: {error}", folder.display());
    }
}

/// The console socket on the loop: takes one connection, and from it one descriptor.
struct Console {
    listener: UnixListener,
    stream: Option<UnixStream>,
    terminal: Weak<Terminal>,
}

impl Console {
    fn turn(&mut self, token: Token, events: &mut EventLoop) -> Result<Next> {
        let Some(terminal) = self.terminal.upgrade().filter(|terminal| !terminal.console.is_aborted()) else {
            return Ok(Next::Close);
        };
        if self.stream.is_none() {
            let Some((stream, _)) = if_ready(self.listener.accept())? else { return Ok(Next::Keep) };
            stream.set_nonblocking(true)?;
            events.unwatch(&self.listener);
            events.watch(&stream, token, Ready::EPOLLIN)?;
            self.stream = Some(stream);
        }
        if let Some(stream) = &self.stream
            && let Some(received) = if_ready(sys::receive_descriptor(stream))?
        {
            let nothing = || Error::invalid_argument("no terminal was sent to the console socket");
            terminal.receive(received.ok_or_else(nothing)?)?;
            return Ok(Next::Close);
        }
        Ok(Next::Keep)
    }
}

/// What there is, if there is something.
fn if_ready<T>(result: std::io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Source for Console {
    fn ready(&mut self, token: Token, ready: Ready, events: &mut EventLoop) -> Next {
        // The first turn, or the one that says that nobody waits any more.
        if ready.is_empty() && self.stream.is_none() {
            let _ = events.watch(&self.listener, token, Ready::EPOLLIN);
        }
        self.turn(token, events).unwrap_or_else(|error| {
            log::error!("cannot receive a container's terminal: {error}");
            Next::Close
        })
    }

    fn close(&mut self, events: &mut EventLoop) {
        match &self.stream {
            Some(stream) => events.unwatch(stream),
            None => events.unwatch(&self.listener),
        }
    }
}

//! The system calls that no safe interface offers: fork and exec, raw wait statuses, signals by number.
//! With what lies below it this is the only module with unsafe code; what it takes was prepared and checked by its callers.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::ptr;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::types::Pid;

mod older;
mod signal;

#[cfg(test)]
pub(crate) use older::LACKED;
#[cfg(feature = "testing")]
pub use older::VARIABLE as KERNEL_LACKS;
pub(crate) use older::close_all_on_exec;
pub(crate) use signal::*;
use signal::{block_signals, reset_signals, restore_signals};

/// A step of the child between fork and exec; the number travels over the status pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Descriptors = 1,
    Session,
    Terminal,
    Root,
    Groups,
    Gid,
    Uid,
    Cwd,
    Privileges,
    DeathSignal,
    Namespaces,
    OomScore,
    Limits,
    AppArmor,
    Selinux,
    Capabilities,
    /// No candidate for the program can be executed.
    Program,
    Exec,
    /// Not a failure: the child waits at its gate.
    Ready,
}

impl Step {
    const ALL: [Self; 19] = [
        Self::Descriptors,
        Self::Session,
        Self::Terminal,
        Self::Root,
        Self::Groups,
        Self::Gid,
        Self::Uid,
        Self::Cwd,
        Self::Privileges,
        Self::DeathSignal,
        Self::Namespaces,
        Self::OomScore,
        Self::Limits,
        Self::AppArmor,
        Self::Selinux,
        Self::Capabilities,
        Self::Program,
        Self::Exec,
        Self::Ready,
    ];

    /// Reads a record of the status pipe: a step and its errno.
    pub(crate) fn parse(record: [u8; RECORD]) -> Option<(Self, i32)> {
        let [step, errno @ ..] = record;
        let step = Self::ALL.into_iter().find(|known| *known as u8 == step)?;
        Some((step, i32::from_ne_bytes(errno)))
    }
}

/// The length of a record on the status pipe: one byte for the step, four for the errno.
pub(crate) const RECORD: usize = 5;

/// All that a child needs, allocated before the fork, for nothing may be allocated after it.
pub(crate) struct Image {
    /// Where the program may be, tried in order.
    pub(crate) candidates: Vec<CString>,
    pub(crate) args: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) root: Option<CString>,
    pub(crate) cwd: Option<CString>,
    pub(crate) groups: Option<Vec<libc::gid_t>>,
    pub(crate) gid: Option<libc::gid_t>,
    pub(crate) uid: Option<libc::uid_t>,
    pub(crate) umask: Option<libc::mode_t>,
    pub(crate) new_session: bool,
    /// `CLONE_NEW...`
    pub(crate) new_namespaces: libc::c_int,
    /// The number, in the child, of the terminal that is to control the new session.
    pub(crate) terminal: Option<RawFd>,
    pub(crate) no_new_privileges: bool,
    pub(crate) confinement: Confinement,
    /// Whether it dies with its parent.
    pub(crate) tie: Option<Tie>,
    /// Descriptors for the child with their numbers there, ascending. Each source lies above [`Image::floor`].
    pub(crate) descriptors: Vec<(OwnedFd, RawFd)>,
    /// Write end: failures and `Ready` are reported here; exec closes it.
    pub(crate) status: OwnedFd,
    /// Read end: the child waits here for one byte before it executes the program.
    pub(crate) gate: Option<OwnedFd>,
}

/// How a child is tied to its parent's life.
pub(crate) struct Tie {
    /// A test has it stop just before it is.
    pub(crate) stops_first: bool,
}

/// What a child may do and use, in the forms that the kernel takes. What is not set stays as its parent has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Confinement {
    /// What is written to `oom_score_adj`.
    pub(crate) oom_score: Option<CString>,
    /// Resources by their numbers, each with its soft and its hard limit.
    pub(crate) limits: Vec<(u32, [u64; 2])>,
    /// What `AppArmor` is told of the next exec.
    pub(crate) apparmor: Option<CString>,
    /// What `SELinux` is told of the next exec.
    pub(crate) selinux: Option<CString>,
    pub(crate) capabilities: Option<Capabilities>,
}

/// The sets of a process's capabilities, a bit for each one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capabilities {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
    /// The highest one that the kernel knows.
    pub(crate) last: u32,
}

impl Image {
    /// Descriptors of the parent must lie at or above this number, so that placing one in the child never
    /// overwrites another that is still to be placed.
    pub(crate) fn floor(numbers: impl Iterator<Item = RawFd>) -> RawFd {
        // Two more for the status pipe and the gate, which stand right behind the child's own.
        numbers.max().unwrap_or(2).max(2) + 3
    }
}

/// Forks a child that becomes the image's program, and returns its pid at once, without waiting for exec.
/// Every signal is at its default in the child, whatever this process does with it.
pub(crate) fn fork_exec(image: &Image) -> io::Result<Pid> {
    let args = pointers(&image.args);
    let env = pointers(&image.env);
    let parent = Pid::own().raw();
    let blocked = block_signals();
    // SAFETY: the child calls only functions that are safe after a fork of a process with threads, and
    // allocates nothing; `fork` itself has no precondition.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        become_program(image, &args, &env, parent);
    }
    let result = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) };
    restore_signals(&blocked);
    result.map(own_pid)
}

fn own_pid(raw: libc::pid_t) -> Pid {
    // A child's pid is positive; 1 stands in for a kernel that broke this promise.
    u32::try_from(raw).ok().and_then(Pid::new).unwrap_or_else(Pid::own)
}

/// The null-terminated array of pointers that `execve` wants.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// The child's life from fork to exec. MUST NOT allocate, lock or panic: other threads of the parent may
/// have held any lock at the moment of the fork.
fn become_program(
    image: &Image,
    args: &[*const libc::c_char],
    env: &[*const libc::c_char],
    parent: libc::pid_t,
) -> ! {
    reset_signals();
    let mut status = image.status.as_raw_fd();
    let failed = match place_descriptors(image, &mut status).and_then(|gate| {
        change_identity(image)?;
        if let Some(tie) = &image.tie {
            die_with(parent, tie)?;
        }
        match gate {
            Some(gate) => wait_at_gate(image, status, gate),
            None => Ok(()),
        }
    }) {
        Ok(()) => (Step::Exec, execute(image, args, env)),
        Err(failed) => failed,
    };
    report(status, failed.0, failed.1);
    exit_now()
}

type Failed = (Step, i32);

fn exit_now() -> ! {
    // SAFETY: ends this process without running anything of the parent's.
    unsafe { libc::_exit(127) }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn check(result: libc::c_long, step: Step) -> Result<(), Failed> {
    if result < 0 { Err((step, errno())) } else { Ok(()) }
}

/// Puts the descriptors at their numbers and closes every other one: a child may wait at its gate for long,
/// and what it held open meanwhile would keep other containers' pipes from ending.
fn place_descriptors(image: &Image, status: &mut RawFd) -> Result<Option<RawFd>, Failed> {
    let last = image.descriptors.last().map_or(2, |(_, number)| (*number).max(2));
    let mut next = 0;
    for (source, number) in &image.descriptors {
        close_between(next, number - 1);
        // SAFETY: both are plain numbers; the source is open and lies above every target.
        check(libc::c_long::from(unsafe { libc::dup2(source.as_raw_fd(), *number) }), Step::Descriptors)?;
        next = number + 1;
    }
    close_between(next, last);
    *status = place_private(*status, last + 1)?;
    let gate = match &image.gate {
        Some(gate) => Some(place_private(gate.as_raw_fd(), last + 2)?),
        None => None,
    };
    close_between(last + 2 + i32::from(gate.is_some()), i32::MAX);
    Ok(gate)
}

/// Moves a descriptor of ours to `number`, closed on exec.
fn place_private(source: RawFd, number: RawFd) -> Result<RawFd, Failed> {
    // SAFETY: both are plain numbers; the source lies above the target, so they differ.
    check(libc::c_long::from(unsafe { libc::dup3(source, number, libc::O_CLOEXEC) }), Step::Descriptors)?;
    Ok(number)
}

fn close_between(first: RawFd, last: RawFd) {
    if first > last {
        return;
    }
    // SAFETY: closing numbers of this fresh process; nothing in it uses them any more.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if closed < 0 {
        // Kernels before 5.9. The usual limit is 1024; what lies above is at least closed on exec.
        for fd in first..=last.min(1024) {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
    }
}

fn change_identity(image: &Image) -> Result<(), Failed> {
    if image.new_namespaces != 0 {
        // SAFETY: no pointers are passed; the child has one thread, as the kernel wants it.
        check(libc::c_long::from(unsafe { libc::unshare(image.new_namespaces) }), Step::Namespaces)?;
    }
    if image.new_session {
        // SAFETY: no precondition.
        check(libc::c_long::from(unsafe { libc::setsid() }), Step::Session)?;
    }
    if let Some(number) = image.terminal {
        // SAFETY: the last argument is a number here; it says not to steal the terminal of another session.
        let done = unsafe { libc::ioctl(number, libc::TIOCSCTTY, 0) };
        check(libc::c_long::from(done), Step::Terminal)?;
    }
    confine(&image.confinement)?;
    if let Some(root) = &image.root {
        // SAFETY: a valid C string.
        check(libc::c_long::from(unsafe { libc::chroot(root.as_ptr()) }), Step::Root)?;
        // SAFETY: a valid C string. Without this the old root could still be reached through the cwd.
        check(libc::c_long::from(unsafe { libc::chdir(c"/".as_ptr()) }), Step::Root)?;
    }
    let capabilities = image.confinement.capabilities.as_ref();
    // What is given up for good is given up first: it takes a capability to do so.
    capabilities.map_or(Ok(()), bound_capabilities)?;
    change_ids(image)?;
    capabilities.map_or(Ok(()), set_capabilities)?;
    if let Some(cwd) = &image.cwd {
        // SAFETY: a valid C string.
        check(libc::c_long::from(unsafe { libc::chdir(cwd.as_ptr()) }), Step::Cwd)?;
    }
    if let Some(umask) = image.umask {
        // SAFETY: no precondition.
        unsafe { libc::umask(umask) };
    }
    if image.no_new_privileges {
        // SAFETY: no pointers are passed.
        let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        check(libc::c_long::from(done), Step::Privileges)?;
    }
    Ok(())
}

/// Ties this process to its parent's life. To be done last, for a change of ids unties it. The signal comes when the
/// forking thread ends, which is the main thread.
fn die_with(parent: libc::pid_t, tie: &Tie) -> Result<(), Failed> {
    if tie.stops_first {
        // SAFETY: no precondition; the process goes on once it is told to.
        unsafe { libc::raise(libc::SIGSTOP) };
    }
    // SAFETY: no pointers are passed.
    let done = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
    check(libc::c_long::from(done), Step::DeathSignal)?;
    // No signal comes of a parent that has died before.
    // SAFETY: no precondition.
    if unsafe { libc::getppid() } == parent { Ok(()) } else { exit_now() }
}

/// Applies what needs the host's `/proc` and the shim's rights, which are gone in a new root and under other ids.
fn confine(confinement: &Confinement) -> Result<(), Failed> {
    if let Some(score) = &confinement.oom_score {
        write_file(c"/proc/self/oom_score_adj", score).map_err(|errno| (Step::OomScore, errno))?;
    }
    if let Some(profile) = &confinement.apparmor {
        // Its own file, since kernel 5.8; where it is the only module of its kind, also the common one.
        let told = match write_file(c"/proc/self/attr/apparmor/exec", profile) {
            Err(libc::ENOENT) => write_file(c"/proc/self/attr/exec", profile),
            told => told,
        };
        told.map_err(|errno| (Step::AppArmor, errno))?;
    }
    if let Some(label) = &confinement.selinux {
        write_file(c"/proc/self/attr/exec", label).map_err(|errno| (Step::Selinux, errno))?;
    }
    for (resource, limit) in &confinement.limits {
        let nothing: *mut u64 = ptr::null_mut();
        // SAFETY: the pointer is to the two numbers of a limit, which are only read; the old one is not asked for.
        let done = unsafe { libc::syscall(libc::SYS_prlimit64, 0, *resource, limit.as_ptr(), nothing) };
        check(done, Step::Limits)?;
    }
    Ok(())
}

/// Writes a text to a file of the kernel's, in one piece.
fn write_file(path: &CStr, text: &CStr) -> Result<(), i32> {
    // SAFETY: a valid C string.
    let file = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if file < 0 {
        return Err(errno());
    }
    // SAFETY: the pointer and the length are of one text.
    let written = unsafe { libc::write(file, text.as_ptr().cast(), text.count_bytes()) };
    let result = if written < 0 { Err(errno()) } else { Ok(()) };
    // SAFETY: it was opened here, and nothing else has it.
    unsafe { libc::close(file) };
    result
}

/// Gives up for good the capabilities that no program may ever have again, and keeps the others through a change of
/// ids.
fn bound_capabilities(wanted: &Capabilities) -> Result<(), Failed> {
    for number in (0..=wanted.last).filter(|number| wanted.bounding & (1 << number) == 0) {
        if control(libc::PR_CAPBSET_READ, [number, 0]) == 1 {
            check(control(libc::PR_CAPBSET_DROP, [number, 0]), Step::Capabilities)?;
        }
    }
    // An exec takes this back.
    check(control(libc::PR_SET_KEEPCAPS, [1, 0]), Step::Capabilities)
}

/// A `prctl` whose arguments are numbers. The kernel reads all five of them, as words of its own size.
fn control(what: libc::c_int, arguments: [u32; 2]) -> libc::c_long {
    let [first, second] = arguments.map(libc::c_ulong::from);
    let none: libc::c_ulong = 0;
    // SAFETY: no pointers are passed.
    libc::c_long::from(unsafe { libc::prctl(what, first, second, none, none) })
}

fn set_capabilities(wanted: &Capabilities) -> Result<(), Failed> {
    // What the kernel's `capget.h` calls version 3: 64 capabilities, of which it takes the lower half first.
    const VERSION: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION, 0];
    let half = |shift: u32| {
        [wanted.effective, wanted.permitted, wanted.inheritable].map(|set| (set >> shift) as u32)
    };
    let data = [half(0), half(32)];
    // SAFETY: the pointers are to a header, and to the two sets of three words that its version has.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    check(done, Step::Capabilities)?;
    let [clear, raise] = [libc::PR_CAP_AMBIENT_CLEAR_ALL, libc::PR_CAP_AMBIENT_RAISE].map(|what| what as u32);
    check(control(libc::PR_CAP_AMBIENT, [clear, 0]), Step::Capabilities)?;
    for number in (0..=wanted.last).filter(|number| wanted.ambient & (1 << number) != 0) {
        check(control(libc::PR_CAP_AMBIENT, [raise, number]), Step::Capabilities)?;
    }
    Ok(())
}

/// Raw system calls, for libc's wrappers want to tell other threads, of which a forked child has none.
fn change_ids(image: &Image) -> Result<(), Failed> {
    if let Some(groups) = &image.groups {
        // SAFETY: the pointer and length are of one vector.
        let done = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
        check(done, Step::Groups)?;
    }
    if let Some(gid) = image.gid {
        // SAFETY: no pointers are passed.
        check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }, Step::Gid)?;
    }
    if let Some(uid) = image.uid {
        // SAFETY: no pointers are passed.
        check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }, Step::Uid)?;
    }
    Ok(())
}

/// Says that all is ready, as far as can be seen before exec, and waits for the byte that opens the gate.
fn wait_at_gate(image: &Image, status: RawFd, gate: RawFd) -> Result<(), Failed> {
    find_program(&image.candidates)?;
    report(status, Step::Ready, 0);
    let mut byte = 0_u8;
    loop {
        // SAFETY: the buffer is one byte long and lives on this stack.
        match unsafe { libc::read(gate, (&raw mut byte).cast(), 1) } {
            1 => return Ok(()),
            // The parent is gone or gave up: nobody will ever start this container.
            0 => exit_now(),
            _ if errno() == libc::EINTR => {}
            _ => exit_now(),
        }
    }
}

fn find_program(candidates: &[CString]) -> Result<(), Failed> {
    let mut worst = libc::ENOENT;
    for candidate in candidates {
        match can_execute(candidate) {
            Ok(()) => return Ok(()),
            Err(libc::ENOENT | libc::ENOTDIR) => {}
            Err(error) => worst = error,
        }
    }
    Err((Step::Program, worst))
}

fn can_execute(path: &CStr) -> Result<(), i32> {
    // SAFETY: an all-zero stat is a valid value to be overwritten.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: a valid C string and a valid buffer.
    if unsafe { libc::stat(path.as_ptr(), &raw mut stat) } < 0 {
        return Err(errno());
    }
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(libc::EACCES);
    }
    // The ids were all set before, so real and effective ones agree and plain `access` asks the right question.
    // SAFETY: a valid C string.
    if unsafe { libc::access(path.as_ptr(), libc::X_OK) } < 0 { Err(errno()) } else { Ok(()) }
}

/// Tries the candidates in order, as `execvp` does; returns the errno that says most.
fn execute(image: &Image, args: &[*const libc::c_char], env: &[*const libc::c_char]) -> i32 {
    let mut worst = libc::ENOENT;
    for candidate in &image.candidates {
        // SAFETY: valid C strings and null-terminated arrays, all owned by `image` or the caller.
        unsafe { libc::execve(candidate.as_ptr(), args.as_ptr(), env.as_ptr()) };
        match errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            error => worst = error,
        }
    }
    worst
}

fn report(status: RawFd, step: Step, errno: i32) {
    let [a, b, c, d] = errno.to_ne_bytes();
    let record = [step as u8, a, b, c, d];
    // SAFETY: the buffer lives on this stack; a record is shorter than PIPE_BUF, so it arrives whole.
    unsafe { libc::write(status, record.as_ptr().cast(), record.len()) };
}

/// An ended child of the calling thread, still a zombie, with its raw wait status.
pub(crate) struct Ended {
    /// Whose pid stays taken until [`reap`] is called.
    pub(crate) pid: Pid,
    status: i32,
}

impl Ended {
    /// The raw wait status, as `wait` would give it.
    pub(crate) fn raw_status(&self) -> i32 {
        self.status
    }
}

/// The next ended child of the calling thread, which stays a zombie; `None` if there is none. Children
/// forked by other threads (`std::process` among them) are theirs and are not seen; orphans that the
/// kernel hands to this process belong to the main thread.
pub(crate) fn next_ended() -> Option<Ended> {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WNOTHREAD;
    let info = wait(libc::P_ALL, 0, options).ok()?;
    // SAFETY: `waitid` filled in the fields of a child's end.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let value = unsafe { info.si_status() };
    // Nothing has ended: the field stays as it was zeroed.
    let pid = u32::try_from(pid).ok().and_then(Pid::new)?;
    let status = match info.si_code {
        libc::CLD_EXITED => (value & 0xff) << 8,
        libc::CLD_DUMPED => value | 0x80,
        _ => value,
    };
    Some(Ended { pid, status })
}

/// Takes the zombie away; from here on its pid may be used again.
pub(crate) fn reap(ended: &Ended) {
    let _ = wait(libc::P_PID, ended.pid.get(), libc::WEXITED | libc::WNOHANG);
}

/// Whether `pid` is a child of this process that was not yet reaped.
pub(crate) fn is_child(pid: Pid) -> bool {
    wait(libc::P_PID, pid.get(), libc::WEXITED | libc::WNOHANG | libc::WNOWAIT).is_ok()
}

/// Whether the calling thread has children, running or ended. When such a thread ended, the kernel would
/// hand them to the main thread, whose reaper would take exits that somebody else waits for.
pub(crate) fn thread_has_children() -> bool {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WNOTHREAD;
    wait(libc::P_ALL, 0, options).is_ok()
}

fn wait(kind: libc::idtype_t, id: u32, options: i32) -> io::Result<libc::siginfo_t> {
    // SAFETY: an all-zero siginfo is a valid value to be overwritten.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a valid buffer.
    if unsafe { libc::waitid(kind, id, &raw mut info, options) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(info)
}

/// Takes ownership of a descriptor that this process inherited under a known number, or was just sent, and marks
/// it close-on-exec. To be called once for a number, before anything else could have opened it.
pub(crate) fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a plain number; fails when it is not open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and, by the caller's promise, has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes over an inherited descriptor as [`take_inherited`] does, if it is open and what it should be. One that is
/// not stays as it is.
pub(crate) fn take_inherited_if(
    number: RawFd,
    is_right: impl FnOnce(BorrowedFd<'_>) -> bool,
) -> Option<OwnedFd> {
    // SAFETY: a plain number; fails when it is not open.
    if number < 0 || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: it is open, and stays so while this early in its life the process has one thread.
    is_right(unsafe { BorrowedFd::borrow_raw(number) }).then(|| take_inherited(number).ok()).flatten()
}

/// A copy of a descriptor with a number of `floor` or above, closed on exec.
pub(crate) fn duplicate(fd: &OwnedFd, floor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, floor) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// The one descriptor that was sent over a socket with the next message, which stays in the socket; `None` at its end,
/// or if none was sent. Several are refused, and all of them closed.
///
/// # Errors
/// `WouldBlock` while there is no message. `EMFILE` when the message brings descriptors that there is no number for:
/// call again once there may be one.
pub(crate) fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    /// `SCM_MAX_FD`: what the kernel lets one message carry.
    const MOST: usize = 253;
    let mut text = [0; 512];
    let mut buffers = [io::IoSliceMut::new(&mut text)];
    let mut space = nix::cmsg_space!([RawFd; MOST]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_PEEK;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags)?;
    let mut sent = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            for number in numbers {
                // Owned before anything can fail, so that none is left open.
                sent.push(take_inherited(number)?);
            }
        }
    }
    // The buffer has room for all, so it is for want of numbers that the kernel has left some out.
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    if sent.len() > 1 {
        let message = format!("{} descriptors were sent instead of one", sent.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(sent.pop())
}

/// Opens the process's side of a terminal, of which `master` is the other, in whatever mount namespace it has a
/// name. It becomes nobody's controlling terminal.
pub(crate) fn open_slave(master: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: this request takes a plain number.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if slave < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(slave) })
}

/// Sets the size of a terminal, in characters.
pub(crate) fn set_window_size(terminal: &OwnedFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointer is to a `winsize`, as this request wants.
    if unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// How many bytes a pipe holds.
pub(crate) fn unread(pipe: &OwnedFd) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: the pointer is to an `int`, as this request wants.
    let done = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if done < 0 { 0 } else { usize::try_from(count).unwrap_or(0) }
}

/// Has all threads allocate from one arena: a shim allocates little, and an arena a thread costs memory.
pub(crate) fn use_one_arena() {
    // SAFETY: no pointers are passed.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Has the allocator give each large block back to the system when it is freed. By itself it does so from 128 KiB on
/// only until the first is freed: from then on it keeps blocks of that size, and several of them where one is in use.
pub(crate) fn give_back_large_blocks() {
    // SAFETY: no pointers are passed.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10) };
}

/// Gives the process group a cookie of its own for core scheduling: what it and its children run shares a
/// core with nobody else's.
pub(crate) fn schedule_core_apart() -> io::Result<()> {
    // The scope is a kind of pid; libc does not name it.
    const PROCESS_GROUP: libc::c_int = 2;
    // SAFETY: no pointers are passed.
    let done = unsafe { libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_CREATE, 0, PROCESS_GROUP, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A descriptor that can be read once a process has ended, be it our child or not. `Unsupported` before Linux 5.3.
pub(crate) fn watch_process(pid: Pid) -> io::Result<OwnedFd> {
    if older::lacks("pidfd_open") {
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.raw(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// How much the kernel takes of a mount's options.
pub(crate) fn page_size() -> usize {
    // SAFETY: no precondition.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// A second mount of what is seen at `path`, which is seen nowhere yet.
pub(crate) fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: a valid C string.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Has a mount that is seen nowhere yet show its files under the ids of a user namespace.
pub(crate) fn map_ids(mount: &OwnedFd, namespace: &OwnedFd, read_only: bool) -> io::Result<()> {
    let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let change = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | read_only,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_raw_fd() as u64,
    };
    let (fd, size) = (mount.as_raw_fd(), size_of_val(&change));
    let (number, flags) = (libc::SYS_mount_setattr, libc::AT_EMPTY_PATH);
    // SAFETY: a valid C string, and a structure of the given size.
    let done = unsafe { libc::syscall(number, fd, c"".as_ptr(), flags, &raw const change, size) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has a mount seen at `path`.
pub(crate) fn attach_mount(mount: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let (from, flags) = (mount.as_raw_fd(), libc::MOVE_MOUNT_F_EMPTY_PATH);
    let (number, to) = (libc::SYS_move_mount, libc::AT_FDCWD);
    // SAFETY: valid C strings.
    let done = unsafe { libc::syscall(number, from, c"".as_ptr(), to, path.as_ptr(), flags) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The number of a loop device that is free at this moment.
pub(crate) fn free_loop_device(control: &File) -> io::Result<u32> {
    const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
    // SAFETY: this request takes no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// What a loop device is told: `struct loop_config` of `linux/loop.h`. Of its `struct loop_info64` only the
/// flags are of use here.
#[repr(C)]
struct LoopConfig {
    file: u32,
    block_size: u32,
    before_flags: [u8; 52],
    flags: u32,
    after_flags: [u8; 176],
    reserved: [u64; 8],
}

/// Makes a free loop device the disk that an image holds, until nobody has it open or mounted any more.
pub(crate) fn configure_loop_device(
    device: &File,
    image: &File,
    read_only: bool,
    direct: bool,
) -> io::Result<()> {
    const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
    const READ_ONLY: u32 = 1;
    const AUTOCLEAR: u32 = 4;
    const DIRECT_IO: u32 = 16;
    let config = LoopConfig {
        file: image.as_raw_fd() as u32,
        block_size: 0,
        before_flags: [0; 52],
        flags: AUTOCLEAR | if read_only { READ_ONLY } else { 0 } | if direct { DIRECT_IO } else { 0 },
        after_flags: [0; 176],
        reserved: [0; 8],
    };
    if !older::lacks("LOOP_CONFIGURE") {
        // SAFETY: the pointer is to a `loop_config`, as this request wants.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        if done == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        // What a kernel before 5.8 says to a request that it does not know.
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
    }
    older::configure_loop_in_steps(device, image, AUTOCLEAR, direct)
}

/// Whether the calling thread is the main thread.
pub(crate) fn on_main_thread() -> bool {
    // SAFETY: no precondition.
    let thread = unsafe { libc::gettid() };
    thread == Pid::own().raw()
}

/// Takes the place of the C library's function by which the standard library finds where stacks end, in order to
/// tell an overflow in words. In a static binary that function brings in the whole of `scanf`, for one line of
/// `/proc/self/maps`.
// SAFETY: the name is the C library's, and so are the parameters. Nothing is written, and the error that is
// returned is one that every caller has to expect.
#[cfg(all(feature = "plain-stack-overflow", target_feature = "crt-static", target_env = "gnu"))]
#[unsafe(no_mangle)]
extern "C" fn pthread_getattr_np(_: libc::pthread_t, _: *mut libc::pthread_attr_t) -> libc::c_int {
    libc::ENOSYS
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read};

    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    #[test]
    fn of_several_descriptors_that_are_sent_none_is_taken_and_none_stays_open() {
        for count in [0, 1, 2, 3, 253] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (mut reader, writer) = io::pipe().unwrap();
            let rights = vec![writer.as_raw_fd(); count];
            let control = [ControlMessage::ScmRights(&rights)];
            let control = if count == 0 { &[][..] } else { &control[..] };
            let text = [IoSlice::new(b"x")];
            sendmsg::<()>(theirs.as_raw_fd(), &text, control, MsgFlags::empty(), None).unwrap();
            drop(writer);
            let received = receive_descriptor(&ours);
            let taken = received.as_ref().map(Option::is_some).ok();
            assert_eq!(taken, (count < 2).then_some(count == 1), "{count}");
            drop((received, ours, theirs));
            // The end comes once no copy is open any more.
            assert_eq!(reader.read(&mut [0]).unwrap(), 0, "{count}");
        }
    }

    #[test]
    fn a_record_tells_its_step_and_errno_and_nothing_else_is_one() {
        let mut record = [Step::Cwd as u8, 0, 0, 0, 0];
        record[1..].copy_from_slice(&libc::ENOENT.to_ne_bytes());
        assert_eq!(Step::parse(record), Some((Step::Cwd, libc::ENOENT)));
        assert_eq!(Step::parse([200, 0, 0, 0, 0]), None);
    }

    #[test]
    fn the_c_library_s_function_is_replaced_on_request_alone() {
        // SAFETY: an all-zero value to be overwritten.
        let mut attributes: libc::pthread_attr_t = unsafe { std::mem::zeroed() };
        // SAFETY: no precondition.
        let thread = unsafe { libc::pthread_self() };
        // SAFETY: the calling thread, and a valid buffer; what it allocates is left to the end of the test.
        let result = unsafe { libc::pthread_getattr_np(thread, &raw mut attributes) };
        let is_static = cfg!(all(target_feature = "crt-static", target_env = "gnu"));
        assert_eq!(result == libc::ENOSYS, is_static && cfg!(feature = "plain-stack-overflow"));
    }

    #[test]
    fn descriptors_of_the_parent_lie_above_all_of_the_childs() {
        assert_eq!(Image::floor([0, 1, 2].into_iter()), 5);
        assert_eq!(Image::floor([0, 7].into_iter()), 10);
    }
}

//! Tells when the kernel has killed something in a cgroup for want of memory (contract 6.5, item 12).
//! The main loop waits for the kernel's word; the kernel's count says whether it was a kill, and how many.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Error, Result, WithContext};
use crate::event_loop::{EventLoop, Handle, Next, Ready, Source, Timer, Token};
use crate::sync::lock;

/// When to look again after version 1 has announced a kill: first after this, then after four times that.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LOOKS: u32 = 5;

/// Where the kernel counts the kills of one cgroup, and how it says that the count may have changed.
#[derive(Debug)]
pub(super) struct Counter {
    /// Kept open and read again: a count of the same name may be that of a later cgroup.
    file: File,
    key: &'static str,
    /// Version 1 only.
    announced: Option<EventFd>,
}

impl Counter {
    /// In version 1 an eventfd is registered for it.
    pub(super) fn v1(cgroup: &Path) -> Result<Self> {
        let mut counter = Self::open(cgroup, "memory.oom_control", "oom_kill")?;
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let registration = format!("{} {}", event.as_raw_fd(), counter.file.as_raw_fd());
        let control = cgroup.join("cgroup.event_control");
        std::fs::write(&control, registration)
            .with_context(|| format!("cannot write `{}`", control.display()))?;
        counter.announced = Some(event);
        Ok(counter)
    }

    /// In version 2 the file itself has something urgent when it has changed since it was read. That needs no
    /// inotify, of which a user has but 128.
    pub(super) fn v2(cgroup: &Path) -> Result<Self> {
        Self::open(cgroup, "memory.events", "oom_kill")
    }

    fn open(cgroup: &Path, name: &str, key: &'static str) -> Result<Self> {
        let path = cgroup.join(name);
        let file = File::open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::not_found(format!("there is no `{}`", path.display())),
            _ => Error::from(error).context(format!("cannot open `{}`", path.display())),
        })?;
        Ok(Self { file, key, announced: None })
    }

    /// `None` once the cgroup was removed, which version 1 announces as it does a kill, or where the kernel does
    /// not count.
    fn read(&self) -> Option<u64> {
        let mut buffer = [0; 512];
        let length = self.file.read_at(&mut buffer, 0).ok()?;
        let text = std::str::from_utf8(&buffer[..length]).ok()?;
        let value = text.lines().filter_map(|line| line.split_once(' ')).find(|(key, _)| *key == self.key);
        value?.1.parse().ok()
    }

    fn watched(&self) -> (BorrowedFd<'_>, Ready) {
        match &self.announced {
            Some(event) => (event.as_fd(), Ready::EPOLLIN),
            None => (self.file.as_fd(), Ready::EPOLLPRI),
        }
    }
}

/// A running watch; ends when it is dropped.
///
/// Once it is dropped the callback is not called any more, and a call that was under way has returned. So the
/// callback must not drop it, nor [`check`](Self::check) it, nor block.
pub(crate) struct OomWatch {
    main: Handle,
    shared: Arc<Shared>,
}

struct Shared {
    counter: Counter,
    /// `None` once nobody wants to know any more. Locked while the callback runs: who looks after a kill may
    /// rely on its being told, be it by another thread.
    told: Mutex<Option<Told>>,
    token: Mutex<Option<Token>>,
}

struct Told {
    kills: u64,
    on_oom: Box<dyn FnMut() + Send>,
}

impl OomWatch {
    pub(super) fn start(
        main: &Handle,
        counter: Counter,
        on_oom: impl FnMut() + Send + 'static,
    ) -> Result<Self> {
        let kills = counter.read().ok_or_else(|| Error::not_found("the kernel does not count kills here"))?;
        let told = Mutex::new(Some(Told { kills, on_oom: Box::new(on_oom) }));
        let shared = Arc::new(Shared { counter, told, token: Mutex::new(None) });
        let watcher = Watcher { shared: shared.clone(), looks: 0, next_look: None };
        main.post(move |events| watcher.begin(events));
        Ok(Self { main: main.clone(), shared })
    }

    /// Calls back for a kill that was not told yet. To be called before the exit of a process is told: the
    /// kernel counts a kill before it kills, while its word to the main loop may come later than the exit.
    pub(crate) fn check(&self) {
        self.shared.look();
    }
}

impl Drop for OomWatch {
    fn drop(&mut self) {
        let told = lock(&self.shared.told).take();
        drop(told);
        let shared = self.shared.clone();
        self.main.post(move |events| {
            let token = *lock(&shared.token);
            if let Some(token) = token {
                events.poke(token, Ready::empty());
            }
        });
    }
}

impl Shared {
    /// Whether there were more kills than told so far, which is told now. `None` if there is no use in looking
    /// again.
    fn look(&self) -> Option<bool> {
        // Read before the lock: a count that is old by then is not more than what was told.
        let kills = self.counter.read()?;
        let mut told = lock(&self.told);
        let told = told.as_mut()?;
        let more = kills > told.kills;
        if more {
            told.kills = kills;
            (told.on_oom)();
        }
        Some(more)
    }
}

/// The watch's place on the main loop.
struct Watcher {
    shared: Arc<Shared>,
    looks: u32,
    next_look: Option<Timer>,
}

impl Watcher {
    fn begin(self, events: &mut EventLoop) {
        let shared = self.shared.clone();
        let added = events.add(|token, events| {
            let (fd, ready) = shared.counter.watched();
            events.watch(fd, token, ready)?;
            Ok(Box::new(self))
        });
        match added {
            Ok(token) => *lock(&shared.token) = Some(token),
            Err(error) => log::warn!("cannot watch for kills for want of memory: {error}"),
        }
    }

    /// Version 1 says that memory has run out before it kills, and says so to all cgroups below the one whose
    /// limit was reached. Whether this one is hit shows a moment later.
    fn look_later(&mut self, token: Token, events: &mut EventLoop) {
        if self.looks < LOOKS {
            let delay = FIRST_LOOK * 4_u32.pow(self.looks);
            self.looks += 1;
            self.next_look = Some(events.after(delay, move |events| events.poke(token, Ready::empty())));
        }
    }
}

impl Source for Watcher {
    fn ready(&mut self, token: Token, _: Ready, events: &mut EventLoop) -> Next {
        if let Some(timer) = self.next_look.take() {
            events.cancel(timer);
        }
        let announced = self.shared.counter.announced.as_ref();
        if announced.is_some_and(|event| event.read().is_ok()) {
            self.looks = 0;
        }
        match self.shared.look() {
            Some(true) => self.looks = LOOKS,
            Some(false) if announced.is_some() => self.look_later(token, events),
            Some(false) => {}
            None => return Next::Close,
        }
        Next::Keep
    }

    fn close(&mut self, events: &mut EventLoop) {
        if let Some(timer) = self.next_look.take() {
            events.cancel(timer);
        }
        events.unwatch(self.shared.counter.watched().0);
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;
    use std::sync::mpsc::{self, Receiver};
    use std::thread::{self, JoinHandle};
    use std::time::Instant;

    use super::super::tests::{Tree, group};
    use super::super::{Host, UNIFIED};
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A main loop on a thread.
    struct Main(Handle, Option<JoinHandle<()>>);

    impl Main {
        fn start() -> Self {
            let (send, receive) = mpsc::channel();
            let thread = thread::spawn(move || {
                let mut events = EventLoop::new().unwrap();
                send.send(events.handle()).unwrap();
                events.run().unwrap();
            });
            Self(receive.recv().unwrap(), Some(thread))
        }
    }

    impl Drop for Main {
        fn drop(&mut self) {
            self.0.post(EventLoop::stop);
            let _ = self.1.take().map(JoinHandle::join);
        }
    }

    /// A cgroup of our own in a hierarchy of this machine, removed in the end.
    struct Made(PathBuf);

    impl Made {
        fn new(controller: &str, name: &str) -> Option<Self> {
            let mounts = Host::at(Path::new("/")).unwrap().mounts;
            let mount = mounts.into_iter().find(|mount| mount.carries(controller));
            let path = mount.map(|mount| mount.point.join(format!("shim-oom-{name}-{}", std::process::id())));
            let made = path.filter(|path| std::fs::create_dir(path).is_ok());
            let all = std::env::var("SHIM_TESTS").is_ok_and(|tests| tests == "all");
            assert!(made.is_some() || !all, "a cgroup cannot be made here; it needs root");
            if made.is_none() {
                eprintln!("skipped: a cgroup cannot be made here; it needs root and `{controller}`");
            }
            made.map(Self)
        }

        fn write(&self, file: &str, content: &str) {
            std::fs::write(self.0.join(file), content).unwrap();
        }

        /// Has a process in it want more memory than it may have, and waits for its end.
        fn run_out_of_memory(&self) {
            let script = "echo $$ > \"$0\"; exec dd if=/dev/zero of=/dev/null bs=64M count=1";
            let mut sh = Command::new("sh");
            let output = sh.args(["-c", script]).arg(self.0.join("cgroup.procs")).output().unwrap();
            assert!(!output.status.success(), "{output:?}");
        }
    }

    impl Drop for Made {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir(&self.0);
        }
    }

    fn limited(name: &str) -> Option<Made> {
        let made = Made::new("memory", name)?;
        made.write("memory.limit_in_bytes", "16M");
        Some(made)
    }

    fn watch(main: &Handle, counter: Counter) -> (OomWatch, Receiver<()>) {
        let (send, receive) = mpsc::channel();
        (OomWatch::start(main, counter, move || send.send(()).unwrap()).unwrap(), receive)
    }

    fn wait_until(what: &str, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < LIMIT, "not in time: {what}");
            thread::yield_now();
        }
    }

    #[test]
    fn every_kill_in_a_cgroup_of_version_1_is_told_by_the_main_loop_and_its_removal_is_not() {
        let Some(made) = limited("told") else { return };
        let main = Main::start();
        let (watch, told) = watch(&main.0, Counter::v1(&made.0).unwrap());
        for _ in 0..2 {
            made.run_out_of_memory();
            told.recv_timeout(LIMIT).unwrap();
        }
        drop(made);
        wait_until("the loop lets go of a removed cgroup", || Arc::strong_count(&watch.shared) == 1);
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn a_kill_is_told_by_a_last_look_before_the_main_loop_had_its_turn_and_only_once() {
        let Some(made) = limited("look") else { return };
        let mut events = EventLoop::new().unwrap();
        let (watch, told) = watch(&events.handle(), Counter::v1(&made.0).unwrap());
        made.run_out_of_memory();
        watch.check();
        assert!(told.try_recv().is_ok());
        // What is ready comes before what is due.
        events.handle().post(|events| {
            events.after(Duration::from_millis(1), EventLoop::stop);
        });
        events.run().unwrap();
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn the_kernel_wakes_the_main_loop_for_a_changed_file_of_version_2() {
        // Stands in for `memory.events`, which a hybrid host does not have.
        let Some(made) = Made::new(UNIFIED, "changed") else { return };
        let main = Main::start();
        let counter = Counter::open(&made.0, "cgroup.events", "populated").unwrap();
        let (watch, told) = watch(&main.0, counter);
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        made.write("cgroup.procs", &child.id().to_string());
        let result = told.recv_timeout(LIMIT);
        child.kill().unwrap();
        child.wait().unwrap();
        result.unwrap();
        wait_until("the cgroup is empty", || std::fs::remove_dir(&made.0).is_ok());
        let shared = Arc::downgrade(&watch.shared);
        drop(watch);
        wait_until("the watch of a removed cgroup ends", || shared.strong_count() == 0);
    }

    #[test]
    fn a_watch_that_was_dropped_leaves_nothing_behind() {
        let Some(made) = limited("dropped") else { return };
        let main = Main::start();
        let (watch, told) = watch(&main.0, Counter::v1(&made.0).unwrap());
        let shared = Arc::downgrade(&watch.shared);
        drop(watch);
        assert!(told.recv().is_err(), "the callback is gone at once");
        wait_until("it leaves the loop", || shared.strong_count() == 0);
    }

    #[test]
    fn of_the_memory_events_of_version_2_only_new_kills_are_told() {
        let events =
            |kills: u32| format!("low 0\nhigh 0\nmax 9\noom 3\noom_kill {kills}\noom_group_kill 0\n");
        let tree = Tree::new(&[
            ("proc/self/mountinfo", "30 23 0:26 / /cg rw - cgroup2 cgroup2 rw\n"),
            ("proc/self/cgroup", "0::/shim\n"),
            ("proc/7/cgroup", "0::/ctr\n"),
            ("proc/8/cgroup", "0::/none\n"),
            ("cg/ctr/memory.events", &events(2)),
            ("cg/none/cgroup.events", ""),
        ]);
        let main = EventLoop::new().unwrap();
        let (send, told) = mpsc::channel();
        let on_oom = move || send.send(()).unwrap();
        let watch = group(&tree, 7).unwrap().watch_oom(&main.handle(), on_oom).unwrap();
        for (kills, times) in [(2, 0), (3, 1), (3, 0), (5, 1)] {
            std::fs::write(tree.root().join("cg/ctr/memory.events"), events(kills)).unwrap();
            watch.check();
            assert_eq!(told.try_iter().count(), times, "{kills} kills");
        }
        let error = group(&tree, 8).unwrap().watch_oom(&main.handle(), || ()).map(drop).unwrap_err();
        assert_eq!(error.code(), crate::error::Code::NotFound);
    }
}

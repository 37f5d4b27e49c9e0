//! What a client of real daemons does to a container's streams: terminals, logs, and attaching again.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::daemon::Daemon;
use crate::process::LIMIT;

/// Waits until its terminal has the size of the client's, then says what it reads.
const ON_A_TERMINAL: &str =
    "while [ \"$(stty size)\" != '33 91' ]; do sleep 0.1; done; echo ready; read a; echo got $a; exit 3";

pub(crate) fn run_with_a_terminal_has_its_size_and_gets_what_is_typed(daemon: &mut Daemon) {
    let args = daemon.run_args(&["--rm", "--tty"], "c", &["sh", "-c", ON_A_TERMINAL]);
    talk(daemon.ctr_command(&args));
}

pub(crate) fn exec_with_a_terminal_has_its_size_and_gets_what_is_typed(daemon: &mut Daemon) {
    daemon.run_detached("c", &["sleep", "1000"]);
    let exec = ["task", "exec", "--tty", "--fifo-dir", &daemon.fifos, "--exec-id", "e", "c"];
    talk(daemon.ctr_command(&[&exec, &["sh", "-c", ON_A_TERMINAL][..]].concat()));
    daemon.kill_and_remove("c");
}

/// Lets go of its terminal for a while, as a service manager does, and goes on with it. Where there is no console
/// the process's controlling terminal has its name.
const LETS_GO: &str = "[ -c /dev/console ] || { busybox mkdir -p /dev; busybox mknod /dev/console c 5 0; }; \
                       stty -echo; echo first; exec <&- >&- 2>&-; sleep 1; echo second >/dev/console; \
                       seq 40000 >/dev/console; read a </dev/console; echo got $a >/dev/console; exit 3";

pub(crate) fn a_terminal_that_nobody_holds_for_a_moment_goes_on(daemon: &mut Daemon) {
    let args = daemon.run_args(&["--rm", "--tty"], "c", &["sh", "-c", LETS_GO]);
    hear_it_out(daemon.ctr_command(&args));
    daemon.run_detached("c", &["sleep", "1000"]);
    let exec = ["task", "exec", "--tty", "--fifo-dir", &daemon.fifos, "--exec-id", "e", "c"];
    hear_it_out(daemon.ctr_command(&[&exec, &["sh", "-c", LETS_GO][..]].concat()));
    daemon.kill_and_remove("c");
}

/// Runs `ctr` on a terminal, for [`LETS_GO`].
fn hear_it_out(mut ctr: Command) {
    let mut console = Console::open(33, 91);
    let mut child = console.spawn(&mut ctr);
    for text in ["first", "second", "40000"] {
        console.expect(text);
    }
    console.master.write_all(b"word\r").expect("type");
    console.expect("got word");
    assert_eq!(child.wait().expect("reap ctr").code(), Some(3));
}

pub(crate) fn what_is_typed_faster_than_it_is_read_arrives_whole(daemon: &mut Daemon) {
    let script = "stty raw -echo; echo ready; sleep 1; head -c 20000 | wc -c; head -c 4; exit 3";
    let args = daemon.run_args(&["--rm", "--tty"], "c", &["sh", "-c", script]);
    let mut console = Console::open(33, 91);
    let mut child = console.spawn(&mut daemon.ctr_command(&args));
    console.expect("ready");
    console.master.write_all(&vec![b'x'; 20_000]).expect("type");
    console.expect("20000");
    console.master.write_all(b"word").expect("type");
    console.expect("word");
    assert_eq!(child.wait().expect("reap ctr").code(), Some(3));
}

pub(crate) fn a_megabyte_passes_through_a_terminal_in_both_directions_at_once(daemon: &mut Daemon) {
    const BYTES: usize = 1 << 20;
    let script = format!("stty raw -echo; echo ready; head -c {BYTES}; echo end; exit 3");
    let args = daemon.run_args(&["--rm", "--tty"], "c", &["sh", "-c", &script]);
    let mut console = Console::open(33, 91);
    let mut child = console.spawn(&mut daemon.ctr_command(&args));
    console.expect("ready");
    let mut types = console.master.try_clone().expect("share the terminal");
    let typing = thread::spawn(move || types.write_all(&vec![b'x'; BYTES]));
    console.expect("end");
    typing.join().expect("no panic").expect("type");
    assert_eq!(console.seen.matches('x').count(), BYTES);
    assert_eq!(child.wait().expect("reap ctr").code(), Some(3));
}

/// Runs `ctr` on a terminal, for [`ON_A_TERMINAL`].
fn talk(mut ctr: Command) {
    let mut console = Console::open(33, 91);
    let mut child = console.spawn(&mut ctr);
    console.expect("ready");
    console.master.write_all(b"word\r").expect("type");
    console.expect("got word");
    assert_eq!(child.wait().expect("reap ctr").code(), Some(3));
}

pub(crate) fn a_log_file_gets_all_output(daemon: &mut Daemon) {
    let log = daemon.root().join("logs/log");
    let uri = format!("file://{}", log.display());
    for _ in 0..2 {
        daemon.run_logged(&uri, &["sh", "-c", "seq 20000; echo oh >&2"]);
    }
    let once = (1..=20_000).map(|number| number.to_string()).chain(["oh".to_owned()]);
    let expected: Vec<_> = once.clone().chain(once).collect();
    let seen = fs::read_to_string(&log).expect("read the log");
    assert!(seen.lines().eq(expected), "{} bytes came", seen.len());
}

pub(crate) fn a_logging_program_gets_all_output(daemon: &mut Daemon) {
    let (program, log) = (daemon.root().join("logger"), daemon.root().join("log of c"));
    let script = "#!/bin/sh\nexec 9>>\"$1\"\necho $CONTAINER_NAMESPACE $CONTAINER_ID >&9\nexec 5>&-\n\
                  cat <&3 >&9\ncat <&4 >&9\n";
    fs::write(&program, script).expect("write the logging program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("make it executable");
    let path = log.to_string_lossy().replace(' ', "%20");
    daemon.run_logged(
        &format!("binary://{}?{path}", program.display()),
        &["sh", "-c", "seq 20000; echo oh >&2"],
    );
    let seen = fs::read_to_string(&log).expect("read the log");
    let first = format!("{} c", daemon.namespace);
    let numbers = (1..=20_000).map(|number| number.to_string());
    assert!(
        seen.lines().eq([first].into_iter().chain(numbers).chain(["oh".to_owned()])),
        "{} bytes",
        seen.len()
    );
}

pub(crate) fn clients_attach_one_after_the_other_and_across_a_restart(daemon: &mut Daemon) {
    let script = "while read a; do echo got $a; done";
    daemon.ctr_ok(&daemon.run_args(&["--detach"], "c", &["sh", "-c", script]));
    for words in [["one", "two"], ["three", "four"]] {
        for word in words {
            let mut client = Client::attach(daemon, "c");
            writeln!(client.stdin, "{word}").expect("write to ctr");
            assert_eq!(client.lines.recv_timeout(LIMIT).as_deref(), Ok(&*format!("got {word}")));
            // As if it had crashed: it does not say goodbye.
            client.ctr.kill().expect("kill ctr");
            client.ctr.wait().expect("reap ctr");
        }
        daemon.crash();
        daemon.restart();
    }
    daemon.kill_and_remove("c");
}

impl Daemon {
    /// Runs a container to its end with its output going to a URI.
    fn run_logged(&self, uri: &str, command: &[&str]) {
        let output = self.ctr(&self.run_args(&["--rm", "--log-uri", uri], "c", command));
        assert!(output.status == Some(0) && output.stdout.is_empty(), "{output:?}");
    }
}

/// A client that is attached to a container.
struct Client {
    ctr: Child,
    stdin: std::process::ChildStdin,
    lines: Receiver<String>,
}

impl Client {
    fn attach(daemon: &Daemon, id: &str) -> Self {
        // Not below `timeout`, which would stay when it is killed.
        let mut ctr = Command::new(daemon.release.binary("ctr"))
            .args(["task", "attach", id])
            .env("CONTAINERD_ADDRESS", daemon.address())
            .env("CONTAINERD_NAMESPACE", &daemon.namespace)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start ctr");
        let stdin = ctr.stdin.take().expect("stdin is piped");
        let output = BufReader::new(ctr.stdout.take().expect("stdout is piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { ctr, stdin, lines }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.ctr.kill();
        let _ = self.ctr.wait();
    }
}

/// A terminal of the test's own, for `ctr`, which wants one for a container with a terminal.
struct Console {
    master: File,
    slave: OwnedFd,
    pieces: Receiver<Vec<u8>>,
    seen: String,
}

impl Console {
    fn open(rows: u16, columns: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("open a terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("unlock the terminal");
        let name = ptsname(&master, Vec::new()).expect("find the terminal's name");
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).expect("set the terminal's size");
        let slave = OpenOptions::new().read(true).write(true).open(name.to_string_lossy().as_ref());
        let slave = slave.expect("open the terminal's other side").into();
        let master = File::from(master);
        let mut reader = master.try_clone().expect("share the terminal");
        let (sender, pieces) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { master, slave, pieces, seen: String::new() }
    }

    fn spawn(&self, command: &mut Command) -> Child {
        let slave = || Stdio::from(self.slave.try_clone().expect("share the terminal"));
        command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().expect("start ctr")
    }

    /// Waits until the terminal has shown that text.
    fn expect(&mut self, text: &str) {
        while !self.seen.contains(text) {
            let piece = self.pieces.recv_timeout(LIMIT);
            let piece = piece.unwrap_or_else(|_| panic!("no {text:?} in {:?}", self.seen));
            self.seen += &String::from_utf8_lossy(&piece);
        }
    }
}

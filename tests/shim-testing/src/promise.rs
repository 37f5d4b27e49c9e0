//! The registry of what a shim promises to containerd, as far as the stand-in watches it.
//! Names are stable: reports, waivers and the conformance suite refer to them.

use std::fmt;

/// How binding a promise is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Some containerd or one of its clients misbehaves otherwise.
    Must,
    /// Better shims keep it; breaking it is reported but does not fail a run.
    Should,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Must => "must",
            Self::Should => "should",
        })
    }
}

/// Something a shim promises.
#[derive(Debug, PartialEq, Eq)]
pub struct Promise {
    /// The stable name: area, dot, what.
    pub name: &'static str,
    /// How binding it is.
    pub level: Level,
    /// The section of the [contract](shim_runtime::contract) that demands it.
    pub section: &'static str,
    /// What is promised, in one sentence.
    pub sentence: &'static str,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

macro_rules! promises {
    ($($constant:ident $name:literal $level:ident $section:literal $sentence:literal)+) => {
        $(
            #[doc = $sentence]
            pub const $constant: &Promise = &Promise {
                name: $name, level: Level::$level, section: $section, sentence: $sentence,
            };
        )+

        /// Every promise the stand-in watches, by area.
        pub const ALL: &[&Promise] = &[$($constant),+];
    };
}

promises! {
    START_EXITS "start.exits" Must "2.5"
        "`start` ends by itself, with 0 when it has answered"
    START_SILENT "start.silent" Must "0.5"
        "`start` prints its answer and nothing else, neither on stdout nor on stderr"
    START_CLOSES_OUTPUT "start.closes-output" Must "0.5"
        "nothing that `start` leaves running holds its stdout or stderr"
    START_ANSWER_FORM "start.answer-form" Must "0.1"
        "the answer of `start` has a form and a version that the asking daemon understands"
    START_LISTENING "start.listening" Must "2.5"
        "the socket accepts connections when `start` answers; the daemon dials once, at once"
    START_ADDRESS_FILE "start.address-file" Must "2.5"
        "the bundle's file `address` holds the plain address; by it 1.6 and 1.7 find the shim after a restart"
    START_FAILURE_CLEAN "start.failure-clean" Must "2.5"
        "a `start` that fails says why and leaves no process, socket or file"
    INFO_ANSWER "info.answer" Should "3"
        "`-info`, given alone, prints a protobuf `RuntimeInfo` and ends with 0"
    SOCKET_PRIVATE "socket.private" Must "4"
        "the socket is a path of at most 106 bytes that only its owner can write to, never an abstract one"
    SOCKET_DIR "socket.dir" Should "4"
        "the socket lies in the directory that the daemon named"
    TASK_SERVICE "task.service" Must "0.2"
        "the task service of the version that the answer names is served"
    CONNECT_ALWAYS "connect.always" Must "6.3"
        "Connect answers with the shim's pid, also for a task that it does not know"
    CREATE_PID "create.pid" Must "6.3"
        "Create answers with the pid of a process that lives"
    STATE_TRUE "state.true" Must "6.3"
        "State tells the status and the pid that the calls before it imply"
    WAIT_ENDS "wait.ends" Must "6.3"
        "Wait answers when the process has ended"
    EVENT_ENVELOPE "event.envelope" Must "7"
        "each envelope has a valid namespace, topic and time; the daemon refuses others"
    EVENT_NAMESPACE "event.namespace" Must "7"
        "events carry the namespace that the shim was started with"
    EVENT_TYPE "event.type" Must "7"
        "an event's type is the bare message name that belongs to its topic"
    EVENT_CREATE "event.create" Must "6.4"
        "a Create that succeeded is followed by exactly one create event"
    EVENT_CREATE_BEFORE_RETURN "event.create-before-return" Should "6.3"
        "the create event is stamped before Create answers"
    EVENT_NONE_IF_REFUSED "event.none-if-refused" Must "6.3"
        "a Create that failed is followed by no event, least of all by an exit"
    EVENT_START_AFTER_CREATE "event.start-after-create" Must "6.4"
        "a start event comes after the create event, and once for each Start that succeeded"
    EVENT_EXIT_AFTER_START "event.exit-after-start" Must "6.4"
        "the exit event of a process comes after its start or exec-started event"
    EVENT_ONE_EXIT "event.one-exit" Must "6.4"
        "each process that ended has exactly one exit event"
    EVENT_INIT_EXIT_LAST "event.init-exit-last" Must "6.4"
        "the exit of the init is the last exit of its container"
    EVENT_EXEC_ORDER "event.exec-order" Must "6.4"
        "exec-added comes after create, exec-started after exec-added"
    EVENT_DELETE_AFTER_EXIT "event.delete-after-exit" Must "6.4"
        "a deleted init has one delete event, after its exit; nothing about the container follows"
    EVENT_PID "event.pid" Must "6.4"
        "the events of a process carry the pid that the calls answered"
    EXIT_SAME_TIME "exit.same-time-everywhere" Must "6.4"
        "Wait, State, Delete and the events tell the same time of exit"
    EXIT_SAME_STATUS "exit.same-status-everywhere" Must "6.4"
        "Wait, State, Delete and the events tell the same exit status"
    STDIO_EOF "stdio.eof" Must "5.3"
        "the client sees the end of stdout and stderr once the process has ended and was deleted"
    SHUTDOWN_ENDS "shutdown.ends" Must "6.3"
        "after the Shutdown that follows the last Delete the server ends"
    DELETE_QUICK "delete.quick" Must "2.6"
        "the `delete` action ends with 0 within 5 s"
    DELETE_ANSWER "delete.answer" Must "2.6"
        "the `delete` action prints a protobuf `DeleteResponse` or nothing on stdout"
    DELETE_IDEMPOTENT "delete.idempotent" Must "0.4"
        "the `delete` action succeeds after a normal deletion, and when it is repeated"
    DELETE_SPARES_GROUP "delete.spares-group" Must "2.6"
        "the `delete` action of one container does not harm a shim that serves others"
    LEAK_PROCESS "leak.process" Must "12.2"
        "no process is left when the last container is gone"
    LEAK_SOCKET "leak.socket" Must "2.6"
        "no socket and no lock file is left in the socket directory"
    LEAK_MOUNT "leak.mount" Must "6.3"
        "no mount is left"
    LEAK_CGROUP "leak.cgroup" Must "12.2"
        "no cgroup is left"
    LEAK_ROOTFS "leak.rootfs" Must "2.6"
        "the bundle's `rootfs` is empty after `delete`; the daemon removes it with rmdir"
    LEAK_DESCRIPTOR "leak.descriptor" Must "12.2"
        "a shim holds no descriptor of a container that was deleted"
    LEAK_THREAD "leak.thread" Must "12.2"
        "a shim keeps no thread of a container that was deleted"
    LEAK_FILE "leak.file" Should "2.3"
        "the bundle holds only files that the contract names, and nothing is left beside it"
}

/// The promise of that name.
pub fn find(name: &str) -> Option<&'static Promise> {
    ALL.iter().copied().find(|promise| promise.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_have_an_area() {
        let mut names: Vec<_> = ALL.iter().map(|promise| promise.name).collect();
        assert!(names.iter().all(|name| {
            name.split_once('.').is_some_and(|(area, what)| !area.is_empty() && !what.is_empty())
        }));
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(names.iter().all(|name| find(name).is_some()));
    }
}

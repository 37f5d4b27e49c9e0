//! The events of a task's life (contract 6.4), filled in and queued.

use crate::api::{
    CreateTaskRequest, Event, TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted,
    TaskExit, TaskIO, TaskPaused, TaskResumed, TaskStart,
};
use crate::publisher::Publisher;
use crate::types::Exit;

/// Queues events; the order of these calls is the order in which containerd gets them.
pub(super) struct Events(Publisher);

impl Events {
    pub(super) fn new(publisher: Publisher) -> Self {
        Self(publisher)
    }

    pub(super) fn created(&self, request: &CreateTaskRequest, pid: u32) {
        let io = TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..TaskIO::default()
        };
        let event = TaskCreate {
            container_id: request.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: Some(io).into(),
            checkpoint: request.checkpoint.clone(),
            pid,
            ..TaskCreate::default()
        };
        self.publish(&event);
    }

    /// Of the init process, or of an exec.
    pub(super) fn started(&self, id: &str, exec: Option<&str>, pid: u32) {
        let container_id = id.to_owned();
        match exec {
            None => {
                let event = TaskStart { container_id, pid, ..TaskStart::default() };
                self.publish(&event);
            }
            Some(exec) => {
                let event = TaskExecStarted {
                    container_id,
                    exec_id: exec.to_owned(),
                    pid,
                    ..TaskExecStarted::default()
                };
                self.publish(&event);
            }
        }
    }

    pub(super) fn exec_added(&self, id: &str, exec: &str) {
        let event = TaskExecAdded {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..TaskExecAdded::default()
        };
        self.publish(&event);
    }

    pub(super) fn exited(&self, id: &str, exec: Option<&str>, pid: u32, exit: Exit) {
        self.publish(&task_exit(id, exec, pid, exit));
    }

    pub(super) fn deleted(&self, id: &str, pid: u32, exit: Exit) {
        self.publish(&task_delete(id, pid, exit));
    }

    pub(super) fn paused(&self, id: &str) {
        let event = TaskPaused { container_id: id.to_owned(), ..TaskPaused::default() };
        self.publish(&event);
    }

    pub(super) fn resumed(&self, id: &str) {
        let event = TaskResumed { container_id: id.to_owned(), ..TaskResumed::default() };
        self.publish(&event);
    }

    pub(super) fn checkpointed(&self, id: &str, image: &str) {
        let event = TaskCheckpointed {
            container_id: id.to_owned(),
            checkpoint: image.to_owned(),
            ..TaskCheckpointed::default()
        };
        self.publish(&event);
    }

    fn publish<E: Event>(&self, event: &E) {
        self.0.publish(E::TOPIC, E::TYPE, event);
    }
}

fn task_exit(id: &str, exec: Option<&str>, pid: u32, exit: Exit) -> TaskExit {
    TaskExit {
        container_id: id.to_owned(),
        id: exec.unwrap_or(id).to_owned(),
        pid,
        exit_status: exit.status,
        exited_at: Some(exit.timestamp()).into(),
        ..TaskExit::default()
    }
}

/// The deletion of an init, which this event names by its container alone: its own id is empty, as in Go's shim.
fn task_delete(id: &str, pid: u32, exit: Exit) -> TaskDelete {
    TaskDelete {
        container_id: id.to_owned(),
        pid,
        exit_status: exit.status,
        exited_at: Some(exit.timestamp()).into(),
        ..TaskDelete::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_goes_by_its_container_s_id_in_its_exit_and_by_none_in_its_deletion() {
        let exit = task_exit("c1", None, 7, Exit::now(3));
        assert_eq!((exit.container_id.as_str(), exit.id.as_str()), ("c1", "c1"));
        let deletion = task_delete("c1", 7, Exit::now(3));
        assert_eq!((deletion.container_id.as_str(), deletion.id.as_str()), ("c1", ""));
        assert_eq!((deletion.pid, deletion.exit_status), (7, 3));
    }
}

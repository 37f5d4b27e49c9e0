//! The events of a task's life (contract 6.4), each with its topic and its type's name.

use containerd_shim_protos::events::task::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskPaused,
    TaskResumed, TaskStart,
};
use protobuf::Message;

use crate::api::CreateTaskRequest;
use crate::publisher::{Publisher, timestamp};
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
        self.0.publish("/tasks/create", "containerd.events.TaskCreate", &event);
    }

    /// Of the init process, or of an exec.
    pub(super) fn started(&self, id: &str, exec: Option<&str>, pid: u32) {
        let container_id = id.to_owned();
        match exec {
            None => {
                let event = TaskStart { container_id, pid, ..TaskStart::default() };
                self.0.publish("/tasks/start", "containerd.events.TaskStart", &event);
            }
            Some(exec) => {
                let event = TaskExecStarted {
                    container_id,
                    exec_id: exec.to_owned(),
                    pid,
                    ..TaskExecStarted::default()
                };
                self.0.publish("/tasks/exec-started", "containerd.events.TaskExecStarted", &event);
            }
        }
    }

    pub(super) fn exec_added(&self, id: &str, exec: &str) {
        let event = TaskExecAdded {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..TaskExecAdded::default()
        };
        self.0.publish("/tasks/exec-added", "containerd.events.TaskExecAdded", &event);
    }

    pub(super) fn exited(&self, id: &str, exec: Option<&str>, pid: u32, exit: Exit) {
        let event = TaskExit {
            container_id: id.to_owned(),
            id: exec.unwrap_or(id).to_owned(),
            pid,
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..TaskExit::default()
        };
        self.0.publish("/tasks/exit", "containerd.events.TaskExit", &event);
    }

    pub(super) fn deleted(&self, id: &str, pid: u32, exit: Exit) {
        let event = TaskDelete {
            container_id: id.to_owned(),
            pid,
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            id: id.to_owned(),
            ..TaskDelete::default()
        };
        self.0.publish("/tasks/delete", "containerd.events.TaskDelete", &event);
    }

    pub(super) fn paused(&self, id: &str) {
        let event = TaskPaused { container_id: id.to_owned(), ..TaskPaused::default() };
        self.plain("/tasks/paused", "containerd.events.TaskPaused", &event);
    }

    pub(super) fn resumed(&self, id: &str) {
        let event = TaskResumed { container_id: id.to_owned(), ..TaskResumed::default() };
        self.plain("/tasks/resumed", "containerd.events.TaskResumed", &event);
    }

    pub(super) fn checkpointed(&self, id: &str, image: &str) {
        let event = TaskCheckpointed {
            container_id: id.to_owned(),
            checkpoint: image.to_owned(),
            ..TaskCheckpointed::default()
        };
        self.plain("/tasks/checkpointed", "containerd.events.TaskCheckpointed", &event);
    }

    fn plain(&self, topic: &'static str, type_name: &str, event: &impl Message) {
        self.0.publish(topic, type_name, event);
    }
}

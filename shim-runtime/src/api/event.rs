//! What containerd is told without asking (contract 6.4): the messages of a task's life, each with its topic.

use protobuf::Message;

use super::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};

/// An event that containerd knows; see [`Context::publish`](super::Context::publish).
pub trait Event: Message + sealed::Sealed {
    /// Under which topic it is published.
    const TOPIC: &'static str;
    /// The name of its type, as containerd looks it up.
    const TYPE: &'static str;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! events {
    ($($event:ident => $topic:literal),+ $(,)?) => {$(
        impl sealed::Sealed for $event {}
        impl Event for $event {
            const TOPIC: &'static str = $topic;
            const TYPE: &'static str = concat!("containerd.events.", stringify!($event));
        }
    )+};
}

events! {
    TaskCreate => "/tasks/create",
    TaskStart => "/tasks/start",
    TaskExit => "/tasks/exit",
    TaskDelete => "/tasks/delete",
    TaskExecAdded => "/tasks/exec-added",
    TaskExecStarted => "/tasks/exec-started",
    TaskOOM => "/tasks/oom",
    TaskPaused => "/tasks/paused",
    TaskResumed => "/tasks/resumed",
    TaskCheckpointed => "/tasks/checkpointed",
}

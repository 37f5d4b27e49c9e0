//! What users meet: the traits they implement, the values these are given, and the messages of the task API.
//! Seldom edited: what rustc prints about a missing method or bound quotes these files.

mod child;
mod container;
mod context;
mod event;
mod request;
mod shim;
mod started;
mod task;

pub use containerd_shim_protos::api::Empty;
pub use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, Mount, PauseRequest,
    PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};
pub use containerd_shim_protos::events::task::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM,
    TaskPaused, TaskResumed, TaskStart,
};
pub use protobuf::well_known_types::any::Any;
pub use protobuf::well_known_types::timestamp::Timestamp;

pub use self::child::Child;
pub use self::container::{Container, Target};
pub use self::context::Context;
pub(crate) use self::context::{Serving, Setup};
pub use self::event::Event;
pub use self::request::{Create, Exec};
pub use self::shim::{Info, RawShim, Shim};
pub use self::started::{ExitHandle, Gated, Started};
pub(crate) use self::started::{Kind, Running};
pub use self::task::{Call, Task};

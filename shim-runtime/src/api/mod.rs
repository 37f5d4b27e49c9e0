//! What users meet: the traits they implement, the values these are given, and the messages of the task API.
//! Seldom edited: what rustc prints about a missing method or bound quotes these files.

mod child;
mod container;
mod context;
mod event;
mod request;
mod started;
mod task;

pub use crate::messages::*;

pub use self::child::Child;
pub use self::container::{Container, Target};
pub use self::context::Context;
pub(crate) use self::context::{Serving, Setup};
pub use self::event::Event;
pub use self::request::{Create, Exec};
pub use self::started::{ExitHandle, Gated, Started};
pub(crate) use self::started::{Kind, Running};
pub use self::task::{Call, Task};

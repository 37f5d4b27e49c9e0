//! A TTRPC server (contract 6.6) on the main thread's loop: calls that cannot block are answered where they
//! are read, the rest go to workers that exist only while there is work, and waiting calls are records.

mod connection;
mod listener;
mod service;
mod task_service;
mod underway;

use std::sync::{Arc, OnceLock};

use crate::api::Context;
use crate::lifetime::Lifetime;
use crate::peer::Budget;
use crate::publisher::Publisher;
use crate::workers::Workers;

#[cfg(feature = "testing")]
pub(crate) use self::connection::Connection;
pub(crate) use self::listener::Listener;
pub use self::service::Registry;
pub(crate) use self::task_service::TaskService;

/// What all connections share.
pub(crate) struct Server {
    pub(crate) context: Context,
    /// Set once the author's constructor is done, before anything is accepted.
    pub(crate) registry: OnceLock<Registry>,
    pub(crate) workers: Workers,
    pub(crate) lifetime: Lifetime,
    pub(crate) publisher: Publisher,
    /// What is kept for clients.
    pub(crate) budget: Budget,
}

pub(crate) type Shared = Arc<Server>;

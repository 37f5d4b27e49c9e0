//! A TTRPC server (contract 6.6) on the main thread's loop: calls that cannot block are answered where they
//! are read, the rest go to workers that exist only while there is work, and waiting calls are records.

mod authored;
mod budget;
mod connection;
mod lifetime;
mod listener;
mod reply;
mod service;
mod task_service;
mod underway;
mod workers;

use std::sync::{Arc, OnceLock};

use crate::api::Context;
use crate::publisher::Publisher;

pub(crate) use self::authored::{Authored, keep_destructors_off_this_thread};
pub(crate) use self::budget::Budget;
#[cfg(feature = "testing")]
pub(crate) use self::connection::Connection;
pub(crate) use self::lifetime::{Hold, Lifetime};
pub(crate) use self::listener::Listener;
pub use self::reply::{Reply, Waiters};
pub use self::service::Registry;
pub(crate) use self::task_service::TaskService;
pub(crate) use self::workers::{Need, Place, Workers};

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

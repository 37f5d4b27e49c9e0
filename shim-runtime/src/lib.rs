//! The runtime under `#[containerd_shim]`.
mod error;
mod types;
#[cfg(feature = "testing")]
pub mod testing;

pub use error::{Code, Error, Result, WithContext};
pub use types::{Exit, Pid, Signal};

//! Places where a test can have the process die, as by `kill -9`: between every two steps of a container's
//! life. Shims are built without the feature `testing`, where a place is nothing.

/// The environment variable that names the place to die at, for tests of the runtime itself.
#[cfg(feature = "testing")]
pub const VARIABLE: &str = "SHIM_CRASH_AT";

/// Dies here, if a test asked for it.
#[cfg(feature = "testing")]
pub(crate) fn here(place: &str) {
    if std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == place) {
        let _ = crate::sys::kill(crate::types::Pid::own(), crate::types::Signal::KILL);
    }
}

/// A place where a test could have the process die.
#[cfg(not(feature = "testing"))]
pub(crate) fn here(_: &str) {}

//! Places where a test can have the process die, as by `kill -9`, or stop, as by `kill -STOP`: between every two
//! steps of a container's life. Shims are built without the feature `testing`, where a place is nothing.

/// The environment variable that names the place to die at, for tests of the runtime itself.
#[cfg(feature = "testing")]
pub const VARIABLE: &str = "SHIM_CRASH_AT";
/// The one that names the place to stop at.
#[cfg(feature = "testing")]
pub const STOP_VARIABLE: &str = "SHIM_STOP_AT";

/// Dies or stops here, if a test asked for it.
#[cfg(feature = "testing")]
pub(crate) fn here(place: &str) {
    let stop = crate::types::Signal::STOP;
    for (variable, signal) in [(VARIABLE, crate::types::Signal::KILL), (STOP_VARIABLE, stop)] {
        if std::env::var_os(variable).is_some_and(|wanted| wanted == place) {
            let _ = crate::sys::kill(crate::types::Pid::own(), signal);
        }
    }
}

/// The environment variable that has each runtime command stop, as by `kill -STOP`, in the moment between its fork
/// and when it is tied to the shim's life.
#[cfg(feature = "testing")]
pub const COMMANDS_VARIABLE: &str = "SHIM_STOP_COMMANDS";

/// Whether a command is to stop, because a test asked for it.
#[cfg(feature = "testing")]
pub(crate) fn stops_commands() -> bool {
    std::env::var_os(COMMANDS_VARIABLE).is_some()
}

/// Whether a test could have asked for a command to stop.
#[cfg(not(feature = "testing"))]
pub(crate) fn stops_commands() -> bool {
    false
}

/// A place where a test could have the process die or stop.
#[cfg(not(feature = "testing"))]
pub(crate) fn here(_: &str) {}

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

/// The environment variable that has calls fail, for tests of the runtime itself: a place, the number of an error, and
/// how often, such as `splice 12 5`.
#[cfg(feature = "testing")]
pub const FAILURES: &str = "SHIM_FAIL_AT";

/// The number of the error with which a call is to fail here, if a test asked for it.
#[cfg(feature = "testing")]
pub(crate) fn failure(place: &str) -> Option<i32> {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static WANTED: OnceLock<Option<(String, i32, AtomicU32)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var(FAILURES).ok()?;
        let mut words = text.split(' ');
        let place = words.next()?.to_owned();
        Some((place, words.next()?.parse().ok()?, AtomicU32::new(words.next()?.parse().ok()?)))
    });
    let (wanted, error, times) = wanted.as_ref()?;
    let counts_down = |times: u32| times.checked_sub(1);
    let hits =
        wanted == place && times.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counts_down).is_ok();
    hits.then_some(*error)
}

/// The number of the error with which a test could have a call fail here.
#[cfg(not(feature = "testing"))]
pub(crate) fn failure(_: &str) -> Option<i32> {
    None
}

//! The shim's log: lines into the bundle's `log` FIFO, which containerd copies to its own (contract 5.1).
//! A log can neither block the shim nor end it: what does not fit is dropped.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{LevelFilter, Log, Metadata, Record};

use crate::error::{Error, Result, WithContext};
use crate::sync::panic_message;

struct Fifo {
    file: File,
    runtime: &'static str,
}

static LOGGER: OnceLock<Fifo> = OnceLock::new();

/// Opens the log FIFO, for both directions and without blocking: opening needs no reader, and a write without
/// one fills the pipe and then drops, with no `SIGPIPE`.
pub(crate) fn open(path: &Path) -> Result<File> {
    let open = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
    open.with_context(|| format!("cannot open log `{}`", path.display()))
}

/// Sends what the `log` crate is given into a FIFO.
pub(crate) fn init(fifo: File, runtime: &'static str, debug: bool) -> Result<()> {
    let logger = LOGGER.get_or_init(|| Fifo { file: fifo, runtime });
    log::set_logger(logger).map_err(|_| Error::internal("a logger was set before the shim's own"))?;
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    Ok(())
}

/// Sends it to standard error instead, for a shim that is run by hand.
pub(crate) fn init_on_stderr(runtime: &'static str, debug: bool) -> Result<()> {
    init(File::from(std::io::stderr().as_fd().try_clone_to_owned()?), runtime, debug)
}

/// Logs panics, with their place, instead of printing them.
pub(crate) fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic_message(panic.payload());
        match panic.location() {
            Some(place) => log::error!("panic at {place}: {message}"),
            None => log::error!("panic: {message}"),
        }
    }));
}

impl Log for Fifo {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            let line = line(SystemTime::now(), &level, &record.args().to_string(), self.runtime);
            // A full or broken log is no reason to fail, nor to log.
            let _ = (&self.file).write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// A line as Go's shims write it.
fn line(at: SystemTime, level: &str, message: &str, runtime: &str) -> String {
    let level = if level == "warn" { "warning" } else { level };
    format!("time=\"{}\" level={level} msg={message:?} runtime={runtime}\n", rfc3339(at))
}

/// A time of day in UTC with nanoseconds, such as `2026-01-31T12:00:00.000000000Z`.
fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86400, since.as_secs() % 86400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
}

/// The date of a day counted from 1970-01-01, reckoned in years that begin in March, so that the leap day
/// comes last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_line_is_one_line_and_carries_its_time_in_utc() {
        let at = UNIX_EPOCH + Duration::new(1_709_210_096, 5);
        assert_eq!(
            line(at, "warn", "a \"b\"\nc", "io.x.v1"),
            "time=\"2024-02-29T12:34:56.000000005Z\" level=warning msg=\"a \\\"b\\\"\\nc\" runtime=io.x.v1\n"
        );
    }

    #[test]
    fn dates_around_year_ends_and_leap_days_are_right() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(364), (1970, 12, 31));
        assert_eq!(civil(11016), (2000, 2, 29));
        assert_eq!(civil(20818), (2026, 12, 31));
    }
}

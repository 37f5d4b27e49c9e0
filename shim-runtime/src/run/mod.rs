//! One process, five lives: which one it is to lead is on its command line (contract 2.1).

mod assembly;
mod delete;
#[cfg(feature = "testing")]
pub(crate) mod in_process;
mod info;
mod main_loop;
mod placement;
mod serve;
mod start;
mod stderr;
mod version;

use std::io::Write;
use std::process::ExitCode;

use crate::args::{Action, Args, check_id};
use crate::entry::Entry;
use crate::error::{Error, Result, WithContext};
use crate::sys;

#[cfg(test)]
pub(crate) use self::main_loop::reaping;

/// Runs the shim: what the `main` of the attribute consists of. With `main = false`, call it from a `main` of
/// your own, on the main thread.
///
/// What goes wrong is one sentence on standard error, which containerd passes on to its user, and exit status
/// 1, or 2 for a command line that is not understood.
pub fn run<S: Entry>() -> ExitCode {
    let args = match Args::parse(std::env::args_os().skip(1)) {
        Ok(args) => args,
        Err(error) => return fail(&error, 2),
    };
    match live::<S>(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &Error, status: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{error}");
    ExitCode::from(status)
}

fn live<S: Entry>(args: &Args) -> Result<()> {
    if !sys::on_main_thread() {
        return Err(Error::failed_precondition("`shim_runtime::run` must be called on the main thread"));
    }
    match args.action {
        Action::Version => print(version::text(&S::CONFIG).as_bytes()),
        Action::Info => print(&info::answer::<S>()?),
        Action::Start => {
            check_names(args)?;
            print(&start::start::<S>(args)?)
        }
        Action::Delete => {
            check_names(args)?;
            print(&delete::delete::<S>(args)?)
        }
        Action::Serve => {
            check_names(args)?;
            serve::serve::<S>(args)
        }
    }
}

/// Ids become parts of paths, addresses and events.
fn check_names(args: &Args) -> Result<()> {
    if args.namespace.is_empty() {
        return Err(Error::invalid_argument("flag `-namespace` is missing: shims need a namespace"));
    }
    if args.id.is_empty() {
        return Err(Error::invalid_argument("flag `-id` is missing: it names the container"));
    }
    check_id("namespace", &args.namespace)?;
    check_id("container id", &args.id)
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout();
    out.write_all(bytes).and_then(|()| out.flush()).with_context(|| "cannot write to standard output")
}

//! What `#[containerd_shim]` expands to: an [`Entry`] for the annotated struct and a `main` of one line.
//! Written by hand it is the same thing; with `main = false` only the `main` is yours.

pub(crate) mod level;
mod raw;

pub(crate) use self::raw::annotated_group;
pub use self::raw::{Info, RawShim};
use crate::types::Signal;

/// The constants of a shim, one field for each option of the attribute.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The runtime's name, such as `io.containerd.host.v1`.
    pub runtime: &'static str,
    /// The shim's own version, for `-v` and `-info`.
    pub version: &'static str,
    /// The task API versions to serve: 2, 3 or both. Version 3 promises that one process hosts a whole pod
    /// ([contract 0.3](crate::contract#s0-3)).
    pub task: &'static [u8],
    /// Annotations of `config.json` whose value names the group that shares one shim, first match wins.
    pub group: &'static [&'static str],
    /// Signals that end the shim in order. `SIGTERM` does so in any case, and every other one that can be caught
    /// passes by.
    pub shutdown_on: &'static [Signal],
    /// Whether the runtime handles SIGCHLD and collects children that have ended. Without it every child is the
    /// author's to start and to wait for, by `std::process` for example: `Context::run` refuses to start any, and
    /// the process is no subreaper either.
    pub reaper: bool,
    /// Whether processes whose parent has ended become children of the shim (`PR_SET_CHILD_SUBREAPER`). Without it
    /// they go to the next subreaper above, most often init: the author sees the end of what a runtime command
    /// leaves behind by other means, a pidfd for example.
    pub subreaper: bool,
    /// Whether the runtime sets the `log` crate's logger and the panic hook, and makes log lines of what is
    /// written to standard error. Without it the bundle's log gets what is written to standard error as it is,
    /// panics among it; the runtime's own messages go where the author's logger takes them, or nowhere.
    pub logger: bool,
}

impl Config {
    /// What the attribute uses for options that are not written.
    pub const DEFAULT: Self = Self {
        runtime: "",
        version: "",
        task: &[2, 3],
        group: &["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"],
        shutdown_on: &[Signal::TERM, Signal::INT],
        reaper: true,
        subreaper: true,
        logger: true,
    };
}

/// A struct that [`run`](crate::run()) can turn into a shim. The attribute writes this impl, and `main`:
///
/// ```no_run
/// # use shim_runtime::prelude::*;
/// // #[containerd_shim(runtime = "io.containerd.host.v1")]
/// struct Host;
/// # impl Shim for Host {
/// #     type Container = HostProcess;
/// #     fn new(_: &Context) -> Result<Self> { Ok(Host) }
/// #     fn create(&self, req: &mut Create) -> Result<HostProcess> { HostProcess::create(req) }
/// # }
///
/// // is
/// impl ::shim_runtime::Entry for Host {
///     type Level = ::shim_runtime::level::Managed<Host>;
///     const CONFIG: ::shim_runtime::Config = ::shim_runtime::Config {
///         runtime: "io.containerd.host.v1",
///         version: ::core::env!("CARGO_PKG_VERSION"),
///         ..::shim_runtime::Config::DEFAULT
///     };
/// }
///
/// fn main() -> ::std::process::ExitCode {
///     ::shim_runtime::run::<Host>()
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be run as a shim",
    label = "`Entry` is missing for this type",
    note = "annotate `{Self}` with #[containerd_shim(runtime = \"io.containerd.NAME.v1\")]"
)]
pub trait Entry: Sized + 'static {
    /// Whose traits the struct implements: [`level::Managed`](crate::level::Managed) for
    /// [`Shim`](crate::Shim), [`level::Raw`](crate::level::Raw) for [`RawShim`](crate::RawShim).
    type Level: level::Level;
    /// The shim's constants.
    const CONFIG: Config;
}

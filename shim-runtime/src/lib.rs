//! The runtime under `#[containerd_shim]`: annotate a struct, build, and containerd runs containers with it.
//!
//! ```
//! use shim_runtime::prelude::*;
//!
//! /// Runs `process.args` of the bundle straight on the host.
//! #[containerd_shim(runtime = "io.containerd.host.v1")]
//! struct Host;
//!
//! impl Shim for Host {
//!     type Container = HostProcess;
//!     fn new(_: &Context) -> Result<Self> { Ok(Host) }
//!     fn create(&self, req: &mut Create) -> Result<HostProcess> { HostProcess::create(req) }
//! }
//! ```
//!
//! With `[[bin]] name = "containerd-shim-host-v1"` that is a whole shim, for every containerd from 1.6 to 2.4.
//! The attribute writes [`Entry`] and `main`; you implement [`Shim`] and, where the ready-made [`HostProcess`] is
//! not what you want, [`Container`]. To answer the RPCs of containerd yourself there is [`RawShim`] with
//! [`Task`].
//!
//! # Features
//! None is on unless a project asks for it.
//! * **`oci`**: ready-made containers of an OCI runtime such as `runc`.
//! * **`plain-stack-overflow`**: for the binary that is the shim, never for a library. A stack overflow then ends the
//!   shim with a plain SIGSEGV, as in a C program; without the feature the standard library says first which thread
//!   has overflowed its stack. It makes a static binary 106 KB smaller (the `runc` example 1.99 MB instead of 2.09 MB),
//!   because the C library's function that finds where a stack ends needs all of `scanf`; the crate replaces that function, `pthread_getattr_np`, by one that
//!   always fails, for everything in the binary that may call it. Where glibc is not linked statically the feature
//!   does nothing.
//! * **`testing`**: a stand-in for containerd and a harness, for tests.
//!
//! # Signals
//! A shim ends by SIGTERM, by what its `shutdown_on` lists, and by what cannot be caught. Every other signal passes
//! by: it has a handler that does nothing, unless somebody handles it already when [`run()`] is called, and handlers
//! that are installed later take its place. Programs that the shim starts have every signal at its default, by
//! whatever means they are started. System calls that the kernel does not resume after a handler, such as `poll`, can
//! fail with `EINTR`: code of yours that makes one calls it again, as the standard library does.
//!
//! # Kernel
//! Linux 4.7 or newer, since one thread reaps its own children alone (`__WNOTHREAD` of `waitid`). What came later is
//! used where it is there:
//!
//! | Linux | has | without it |
//! |---|---|---|
//! | 5.3 | `pidfd_open` | the `delete` action compares pid and start time right before it kills, and looks for the end every 10 ms |
//! | 5.6 | `openat2` | a mount's target is looked up by its name, so a link that is put in its way meanwhile is followed |
//! | 5.8 | `LOOP_CONFIGURE` | a loop device is set up in several steps |
//! | 5.9 | `close_range` | children close the first 1024 descriptors one by one; the others are closed at exec |
//! | 5.11 | `CLOSE_RANGE_CLOEXEC` | `start` marks the descriptors that `/proc/self/fd` lists |
//! | 5.12 | `mount_setattr`, with `open_tree` and `move_mount` of 5.2 | mounts with mapped ids (`uidmap=`, `gidmap=`) are refused |
//! | 5.14 | `PR_SCHED_CORE` | `start` fails if containerd asks for core scheduling |
//!
//! # Child processes
//! The main thread reaps the children that it forked itself, which are those started through this crate, and
//! orphans. Children of your own (`std::process` among them) are left to the thread that started them, as long
//! as that thread lives: when a thread ends, its children become the main thread's.
//!
//! # What containerd demands
//! The module [`contract`] is the specification of a shim as this crate keeps it, release by release. It is written
//! for shim authors in any language, and the rest of the documentation points into it.

#[cfg(not(target_os = "linux"))]
compile_error!("shim-runtime needs Linux: containerd shims for other systems work differently");
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("shim-runtime is made for x86_64 and aarch64");
#[cfg(panic = "abort")]
compile_error!("shim-runtime needs `panic = \"unwind\"`; one panic would end every container of the shim");

pub mod api;
mod args;
mod bootstrap;
mod bundle;
mod caller;
mod cgroup;
#[doc = include_str!("../docs/contract.md")]
#[expect(clippy::doc_markdown, reason = "the names of RPCs and events are words of the field there")]
pub mod contract {}
mod crash;
mod entry;
mod error;
mod event_loop;
mod files;
mod lifetime;
mod logger;
mod managed;
mod messages;
mod mount;
#[cfg(any(test, feature = "testing"))]
mod mutation;
mod nulls;
#[cfg(feature = "oci")]
mod oci;
mod peer;
mod process;
mod publisher;
mod reaper;
mod run;
mod server;
mod socket;
mod spawn;
mod stdio;
mod sync;
#[expect(unsafe_code, reason = "the one place for system calls that have no safe interface")]
mod sys;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod testing;
mod types;
mod wait;
mod wire;
mod workers;

pub use api::{
    Call, Child, Container, Context, Create, Event, Exec, ExitHandle, Gated, Started, Target, Task,
};
pub use bundle::{
    Bundle, CapabilitiesSpec, ConsoleSize, LinuxSpec, NamespaceSpec, ProcessSpec, RlimitSpec, RootSpec, Spec,
    UserSpec,
};
pub use entry::{Config, Entry, Info, RawShim};
pub use error::{Code, Error, Result, WithContext};
pub use managed::{Managed, Shim};
#[cfg(feature = "oci")]
pub use oci::{Engine, Oci};
pub use peer::{Reply, Waiters};
pub use process::HostProcess;
pub use run::run;
pub use server::Registry;
pub use shim_macros::containerd_shim;
pub use spawn::{Command, Output};
pub use stdio::{Stdio, StdioNames, Streams, Withheld};
pub use types::{Exit, Pid, Signal};

/// The two levels at which a shim can be written, as [`Entry`] names them.
pub mod level {
    pub use crate::entry::level::{Level, Raw};
    pub use crate::managed::level::Managed;
}

/// What a shim usually needs, in one import.
pub mod prelude {
    pub use crate::{
        Call, Child, Command, Container, Context, Create, Error, Exec, Exit, ExitHandle, Gated, HostProcess,
        Managed, Pid, RawShim, Reply, Result, Shim, Signal, Started, Stdio, Streams, Target, Task,
        WithContext, containerd_shim,
    };
}

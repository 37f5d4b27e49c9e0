//! The attribute `#[containerd_shim]`; use it through `shim_runtime`, which re-exports it and whose types the
//! expansion names. In stages: `args` and `item` parse, `validate` judges, `expand` writes.

#![forbid(unsafe_code)]

mod args;
mod errors;
mod expand;
mod item;
mod suggest;
#[cfg(test)]
mod tests;
mod validate;

use crate::errors::Errors;

/// Makes a struct a containerd shim.
///
/// The attribute holds what is constant about a shim; how it behaves is in the traits that the struct
/// implements. It goes on a struct or an enum without type parameters, in the root of a binary named as
/// containerd derives it from the runtime name: `containerd-shim-hello-v1` for `io.containerd.hello.v1`.
///
/// ```
/// use shim_runtime::prelude::*;
///
/// #[containerd_shim(runtime = "io.containerd.hello.v1")]
/// struct Hello;
///
/// impl Shim for Hello {
///     type Container = HostProcess;
///     fn new(_: &Context) -> Result<Self> {
///         Ok(Hello)
///     }
///     fn create(&self, req: &mut Create) -> Result<HostProcess> {
///         HostProcess::create(req)
///     }
/// }
/// ```
///
/// # What it expands to
///
/// The struct, untouched, and beside it
///
/// ```no_run
/// # use shim_runtime::prelude::*;
/// # struct Hello;
/// # impl Shim for Hello {
/// #     type Container = HostProcess;
/// #     fn new(_: &Context) -> Result<Self> { Ok(Hello) }
/// #     fn create(&self, req: &mut Create) -> Result<HostProcess> { HostProcess::create(req) }
/// # }
/// impl shim_runtime::Entry for Hello {
///     type Level = shim_runtime::level::Managed<Hello>;
///     const CONFIG: shim_runtime::Config = shim_runtime::Config {
///         runtime: "io.containerd.hello.v1",
///         version: env!("CARGO_PKG_VERSION"),
///         ..shim_runtime::Config::DEFAULT
///     };
/// }
///
/// fn main() -> std::process::ExitCode {
///     shim_runtime::run::<Hello>()
/// }
/// ```
///
/// That is all. Everything that runs is in `shim_runtime`, and a shim written so by hand is the same shim. Beside
/// each of the project's examples there is an `expanded.rs`, which a test keeps true.
/// Attributes and derives may stand on either side; a `#[cfg]` below the attribute is repeated on what is
/// generated.
///
/// # Options
///
/// In any order, each once; beside each, what stands for it without the attribute, most often a field of `Config`.
///
/// * **`runtime = "io.containerd.hello.v1"`**, the one that is required: the runtime's name, as in
///   `ctr run --runtime`. At least two dotted parts of ASCII letters, digits, `-` and `_`; the last is the
///   version, a `v` and a number. By hand: `runtime: "io.containerd.hello.v1"`.
/// * **`version = "1.2.3"`**: what the shim answers to `-v` and in its runtime information; the package's version
///   unless given. By hand: `version: "1.2.3"`.
/// * **`task = [2, 3]`**: the versions of the task API that are offered. Both unless given, so that one binary
///   serves every containerd from 1.6 on. Version 3 promises that one process can host every container of a pod;
///   a shim that can host only one says `task = [2]`. By hand: `task: &[2]`.
/// * **`group = ["com.example.group", ..]`**: annotations by which containers share one process: the first that a
///   container has decides, and those with the same value share. `io.containerd.runc.v2.group` and
///   `io.kubernetes.cri.sandbox-id`, as runc's shim has them, unless given. What labels cannot say goes into
///   `Shim::group`. By hand: `group: &["com.example.group"]`.
/// * **`shutdown_on = [SIGTERM, ..]`**: the signals that end the shim in order, out of `SIGHUP`, `SIGINT`,
///   `SIGQUIT`, `SIGUSR2`, `SIGPIPE`, `SIGALRM`, `SIGTERM`, `SIGCONT` and `SIGWINCH`. `SIGTERM` always does;
///   `SIGINT` does unless the option is given without it. Every other signal that can be caught passes by. By hand: `shutdown_on: &[shim_runtime::Signal::TERM]`.
/// * **`reaper = false`**, with `raw` alone: the runtime neither handles SIGCHLD nor collects children that have
///   ended, starts none, and is no subreaper. All children are the author's. By hand: `reaper: false`.
/// * **`subreaper = false`**, with `raw` alone: processes whose parent has ended, such as those that a runtime
///   command leaves behind, do not become the shim's children. By hand: `subreaper: false`.
/// * **`logger = false`**, with `raw` alone: no logger for the `log` crate and no panic hook are set; what is
///   written to standard error goes into the bundle's log as it is. By hand: `logger: false`.
/// * **`main = false`**: no `main` is written, for a shim with start-up work of its own, in a module, or beside
///   another one. It starts where the author's `main` calls `shim_runtime::run::<Hello>()`, on the main thread and
///   with nothing written to the standard output, where containerd reads the shim's answer. By hand: the `main`
///   above, left out.
/// * **`raw`**: the struct answers the task RPCs itself: it implements `RawShim` and `Task` in place of `Shim`, and
///   the runtime keeps no table of containers. By hand: `type Level = shim_runtime::level::Raw<Hello>`.
/// * **`crate = ::path`**: where `shim_runtime` is found if it is renamed or re-exported; an absolute path without
///   quotes. By hand: `impl my_reexport::shim_runtime::Entry for Hello`, and likewise throughout.
///
/// ```no_run
/// # use shim_runtime::prelude::*;
/// #[containerd_shim(runtime = "io.containerd.hello.v1", raw, task = [2], shutdown_on = [SIGTERM, SIGHUP], main = false)]
/// struct Hello;
/// # impl RawShim for Hello { fn new(_: &Context) -> Result<Self> { Ok(Hello) } }
/// # impl Task for Hello {}
/// # fn prepare() {}
///
/// fn main() -> std::process::ExitCode {
///     prepare();
///     shim_runtime::run::<Hello>()
/// }
/// ```
///
/// # Mistakes
///
/// All mistakes in the attribute are reported in one run, each at the token that is wrong. Three are found by
/// the compiler, in words of its own:
///
/// * "`main` function not found in crate": the struct is in a module, and so is its `main`. Move it to `main.rs`,
///   or use `main = false`.
/// * "the name `main` is defined multiple times": there are two shims, or a `main` beside the shim. Use
///   `main = false` on each shim and write a `main` that chooses.
/// * "cannot be sent (or shared) between threads safely": a shim is called from several threads at once; use
///   `Arc` and `Mutex` in place of `Rc` and `RefCell`.
#[proc_macro_attribute]
pub fn containerd_shim(
    options: proc_macro::TokenStream,
    item: proc_macro::TokenStream,
) -> proc_macro::TokenStream {
    annotate(options.into(), &item.into()).into()
}

/// The attribute on tokens that exist outside of a compiler too, for the tests.
fn annotate(
    options: proc_macro2::TokenStream,
    tokens: &proc_macro2::TokenStream,
) -> proc_macro2::TokenStream {
    let mut errors = Errors::default();
    let item = item::parse(tokens.clone(), &mut errors);
    let args = args::parse(options, &mut errors);
    let lists = validate::check(&args, &mut errors);
    let expansion = match &item.name {
        // After a mistake too, what an author's own `main` runs has to exist: one typo is one message.
        Some(name) if errors.is_empty() || args.own_main => expand::shim(tokens, &item, name, &args, &lists),
        _ => expand::rejected(tokens, &item, args.own_main),
    };
    let mistakes = errors.into_compile_errors();
    quote::quote!(#expansion #mistakes)
}

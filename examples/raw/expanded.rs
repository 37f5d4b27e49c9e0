// What the attribute makes of `src/main.rs`; not compiled, written by
// `BLESS=1 cargo test -p shim-macros expansions`.

/// The tasks of this shim, one process each.
#[derive(Default)]
struct Raw {
    tasks: Mutex<HashMap<String, Arc<Init>>>,
}
impl ::shim_runtime::Entry for Raw {
    type Level = ::shim_runtime::level::Raw<Raw>;
    const CONFIG: ::shim_runtime::Config = ::shim_runtime::Config {
        runtime: "io.containerd.raw.v1",
        version: ::core::env!("CARGO_PKG_VERSION"),
        ..::shim_runtime::Config::DEFAULT
    };
}
fn main() -> ::std::process::ExitCode {
    ::shim_runtime::run::<Raw>()
}

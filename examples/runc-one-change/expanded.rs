// What the attribute makes of `src/main.rs`; not compiled, written by
// `BLESS=1 cargo test -p shim-macros expansions`.

/// Makes containers of the OCI runtime, each with the one change.
struct RuncOneChange;
impl ::shim_runtime::Entry for RuncOneChange {
    type Level = ::shim_runtime::level::Managed<RuncOneChange>;
    const CONFIG: ::shim_runtime::Config = ::shim_runtime::Config {
        runtime: "io.containerd.runc-one-change.v1",
        version: ::core::env!("CARGO_PKG_VERSION"),
        ..::shim_runtime::Config::DEFAULT
    };
}
fn main() -> ::std::process::ExitCode {
    ::shim_runtime::run::<RuncOneChange>()
}

// What the attribute makes of `src/main.rs`; not compiled, written by
// `BLESS=1 cargo test -p shim-macros expansions`.

/// Makes ready-made processes, each with the one change.
struct OneChange;
impl ::shim_runtime::Entry for OneChange {
    type Level = ::shim_runtime::level::Managed<OneChange>;
    const CONFIG: ::shim_runtime::Config = ::shim_runtime::Config {
        runtime: "io.containerd.one-change.v1",
        version: ::core::env!("CARGO_PKG_VERSION"),
        ..::shim_runtime::Config::DEFAULT
    };
}
fn main() -> ::std::process::ExitCode {
    ::shim_runtime::run::<OneChange>()
}

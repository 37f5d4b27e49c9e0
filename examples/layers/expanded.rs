// What the attribute makes of `src/on_run.rs`; not compiled, written by
// `BLESS=1 cargo test -p shim-macros expansions`.

/// Runs commands on the host.
struct Layers;
impl ::shim_runtime::Entry for Layers {
    type Level = ::shim_runtime::level::Managed<Layers>;
    const CONFIG: ::shim_runtime::Config = ::shim_runtime::Config {
        runtime: "io.containerd.layers-on-run.v1",
        version: ::core::env!("CARGO_PKG_VERSION"),
        ..::shim_runtime::Config::DEFAULT
    };
}

// What the attribute makes of `src/with_macro.rs`; not compiled, written by
// `BLESS=1 cargo test -p shim-macros expansions`.

/// Runs commands on the host.
struct Layers;
impl ::shim_runtime::Entry for Layers {
    type Level = ::shim_runtime::level::Managed<Layers>;
    const CONFIG: ::shim_runtime::Config = ::shim_runtime::Config {
        runtime: "io.containerd.layers.v1",
        version: ::core::env!("CARGO_PKG_VERSION"),
        ..::shim_runtime::Config::DEFAULT
    };
}
fn main() -> ::std::process::ExitCode {
    ::shim_runtime::run::<Layers>()
}

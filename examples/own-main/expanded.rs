// What the attribute makes of `src/main.rs`; not compiled, written by
// `BLESS=1 cargo test -p shim-macros expansions`.

/// Runs what the file allows.
struct OwnMain {
    allowed: &'static [String],
}
impl ::shim_runtime::Entry for OwnMain {
    type Level = ::shim_runtime::level::Managed<OwnMain>;
    const CONFIG: ::shim_runtime::Config = ::shim_runtime::Config {
        runtime: "io.containerd.own-main.v1",
        version: ::core::env!("CARGO_PKG_VERSION"),
        ..::shim_runtime::Config::DEFAULT
    };
}

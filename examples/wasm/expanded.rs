// What the attribute makes of `src/main.rs`; not compiled, written by
// `BLESS=1 cargo test -p shim-macros expansions`.

/// One engine for all modules of the shim.
struct Wasm {
    engine: Engine,
}
impl ::shim_runtime::Entry for Wasm {
    type Level = ::shim_runtime::level::Managed<Wasm>;
    const CONFIG: ::shim_runtime::Config = ::shim_runtime::Config {
        runtime: "io.containerd.wasm.v1",
        version: ::core::env!("CARGO_PKG_VERSION"),
        ..::shim_runtime::Config::DEFAULT
    };
}
fn main() -> ::std::process::ExitCode {
    ::shim_runtime::run::<Wasm>()
}

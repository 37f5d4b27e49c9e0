use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1", raw, reaper = false)]
struct Hello;

impl RawShim for Hello {
    fn new(_: &Context) -> Result<Self> {
        unimplemented!()
    }
}

impl Task for Hello {}

const _: () = {
    let default = shim_runtime::Config::DEFAULT;
    let config = <Hello as shim_runtime::Entry>::CONFIG;
    assert!(default.reaper && !config.reaper);
};

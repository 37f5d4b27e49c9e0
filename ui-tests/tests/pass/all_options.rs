use shim_runtime::prelude::*;

#[containerd_shim(
    runtime = "io.containerd.hello.v1",
    version = "1.2.3",
    task = [2, 3],
    group = ["com.example.group"],
    shutdown_on = [SIGTERM, SIGINT],
    reaper = false,
    subreaper = false,
    logger = false,
    main = false,
    raw,
    crate = ::shim_runtime,
)]
struct Hello;

impl RawShim for Hello {
    fn new(_: &Context) -> Result<Self> {
        unimplemented!()
    }
}

impl Task for Hello {}

const _: () = {
    let config = <Hello as shim_runtime::Entry>::CONFIG;
    assert!(matches!(config.task, [2, 3]));
    assert!(config.group.len() == 1);
    assert!(config.shutdown_on.len() == 2);
    assert!(!config.reaper && !config.subreaper && !config.logger);
};

fn main() {}

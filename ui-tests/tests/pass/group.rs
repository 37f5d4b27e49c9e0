use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1", group = ["com.example.group", "com.example.pod"])]
struct Hello;

struct HostProcess;

impl Container for HostProcess {
    fn start(&self, _: Stdio) -> Result<Started> {
        unimplemented!()
    }
}

impl Shim for Hello {
    type Container = HostProcess;
    fn new(_: &Context) -> Result<Self> {
        unimplemented!()
    }
    fn create(&self, _: &mut Create) -> Result<HostProcess> {
        unimplemented!()
    }
}

const _: () = {
    let config = <Hello as shim_runtime::Entry>::CONFIG;
    assert!(matches!(config.group[0].as_bytes(), b"com.example.group"));
    assert!(matches!(config.group[1].as_bytes(), b"com.example.pod"));
};

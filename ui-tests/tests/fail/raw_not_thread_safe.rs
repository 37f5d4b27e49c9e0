use std::cell::Cell;

use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1", raw)]
struct Hello(Cell<u8>);

impl RawShim for Hello {
    fn new(_: &Context) -> Result<Self> {
        unimplemented!()
    }
}

impl Task for Hello {}

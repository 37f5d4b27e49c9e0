use shim_runtime::prelude::*;

// The struct is still there: no mistake but those in the attribute is reported.
#[containerd_shim(
    runtime = "io.containerd.hello",
    verion = "1.0",
    task = [2, 4],
    raw = true
    group = ["a"; "a"],
    shutdown_on = [SIGKILL, TERM],
)]
struct Hello<'a>(&'a str);

fn greet(hello: &Hello<'_>) -> usize {
    hello.0.len()
}

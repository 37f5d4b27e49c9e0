use super::*;

#[test]
fn names_that_containerd_can_find_are_accepted_and_others_told_what_was_meant() {
    for (name, meant) in [
        ("io.containerd.host.v1", ""),
        ("io.containerd.runc.v2-rs", ""),
        ("my_vm-2.v10", ""),
        ("io.containerd.hello", "io.containerd.hello.v1"),
        ("io.containerd.hello.2", "io.containerd.hello.v2"),
        ("io.containerd.hello.V2", "io.containerd.hello.v2"),
        ("hello", "io.containerd.hello.v1"),
        ("/usr/bin/containerd-shim-my-vm-v2", "io.containerd.my-vm.v2"),
        ("containerd-shim-my-vm-v2", "io.containerd.my-vm.v2"),
        ("my-vm", "io.containerd.my-vm.v1"),
    ] {
        let error = check(name).err().unwrap_or_default();
        assert!(error.is_empty() == meant.is_empty() && error.contains(meant), "{name}: {error}");
    }
}

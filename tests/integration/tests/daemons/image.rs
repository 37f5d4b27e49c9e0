//! An image made on the spot from the static busybox of the machine and the programs of the example
//! `wasm`: an OCI archive with one layer.

use std::env::consts::ARCH;
use std::fs;
use std::sync::OnceLock;

use integration::workspace;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// The name under which the archive is imported.
pub(crate) const NAME: &str = "test.invalid/busybox:latest";
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// The commands that the tests use, all of them links to busybox.
const APPLETS: [&str; 11] =
    ["cat", "dd", "echo", "head", "sh", "seq", "sleep", "stty", "touch", "true", "wc"];

/// Programs of the example, at the image's root.
const PROGRAMS: [&str; 3] = ["cat.wat", "endless.wat", "hello.wat"];

/// The archive of the image, whose processes have `variable` in their environment and sleep unless told
/// otherwise.
pub(crate) fn archive(variable: &str) -> Vec<u8> {
    static LAYER: OnceLock<Vec<u8>> = OnceLock::new();
    let architecture = match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let layer = LAYER.get_or_init(layer);
    let config = to_bytes(&json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Env": ["PATH=/bin", variable], "Cmd": ["sleep", "1000"] },
        "rootfs": { "type": "layers", "diff_ids": [digest(layer)] },
    }));
    let manifest = to_bytes(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    }));
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] =
        json!({ "io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": "latest" });
    let index = to_bytes(&json!({ "schemaVersion": 2, "manifests": [entry] }));

    let mut archive = Builder::new(Vec::new());
    add_file(&mut archive, "oci-layout", 0o644, &to_bytes(&json!({ "imageLayoutVersion": "1.0.0" })));
    add_file(&mut archive, "index.json", 0o644, &index);
    for blob in [layer, &config, &manifest] {
        add_file(&mut archive, &format!("blobs/{}", digest(blob).replace(':', "/")), 0o644, blob);
    }
    archive.into_inner().expect("finish the archive")
}

fn layer() -> Vec<u8> {
    let mut layer = Builder::new(Vec::new());
    for folder in ["bin", "dev", "etc", "proc", "run", "sys", "tmp"] {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        layer.append_data(&mut header, folder, [].as_slice()).expect("add a folder to the layer");
    }
    add_file(&mut layer, "bin/busybox", 0o755, &fs::read(BUSYBOX).expect("read busybox"));
    let programs = workspace::root().join("examples/wasm/programs");
    for program in PROGRAMS {
        let content = fs::read(programs.join(program)).expect("read a program");
        add_file(&mut layer, program, 0o644, &content);
    }
    for applet in APPLETS {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("add a link to the layer");
    }
    layer.into_inner().expect("finish the layer")
}

fn add_file(archive: &mut Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content).expect("add a file to the archive");
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
}

fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(blob)))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn to_bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

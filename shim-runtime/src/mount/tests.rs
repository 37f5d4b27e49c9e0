//! What the kernel makes of it, each test in a mount namespace of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use super::*;

/// Whether a test can run; with `SHIM_TESTS=all` it must.
fn leave_out(reason: &str) {
    let all = std::env::var("SHIM_TESTS").is_ok_and(|tests| tests == "all");
    assert!(!all, "cannot run: {reason}");
    eprintln!("skipped: {reason}");
}

/// Runs a test where its mounts are seen by nobody else, with a folder on a file system of its own.
fn apart(test: impl FnOnce(&Path) + Send) {
    let folder = nix::unistd::mkdtemp(&std::env::temp_dir().join("shim-mounts-XXXXXX")).unwrap();
    thread::scope(|scope| {
        let alone = || {
            if unshare(CloneFlags::CLONE_NEWNS).is_err() {
                return leave_out("a mount namespace cannot be made here; it needs root");
            }
            let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
            mount(Some("none"), &folder, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            test(&folder);
        };
        let result = scope.spawn(alone).join();
        fs::remove_dir(&folder).unwrap();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

fn wanted(kind: &str, source: &Path, options: &[&str]) -> Mount {
    Mount {
        type_: kind.to_owned(),
        source: source.display().to_string(),
        options: options.iter().map(|word| (*word).to_owned()).collect(),
        ..Mount::default()
    }
}

fn folder(parent: &Path, name: &str) -> PathBuf {
    let path = parent.join(name);
    fs::create_dir_all(&path).unwrap();
    path
}

fn assert_nothing_mounted(rootfs: &Path) {
    assert_eq!(table::mounts_below(rootfs).unwrap(), [] as [PathBuf; 0]);
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "not in time: {what}");
        thread::yield_now();
    }
}

/// Layers with a file each, and what an overlay of them is told.
fn layers(folder_of: &Path, count: usize) -> Vec<String> {
    let layer = |number: usize| {
        let layer = folder(folder_of, &format!("{}/{number}/fs", "long".repeat(20)));
        fs::write(layer.join(format!("file-{number}")), "").unwrap();
        layer.display().to_string()
    };
    let lower: Vec<_> = (0..count).map(layer).collect();
    let (upper, work) = (folder(folder_of, "upper"), folder(folder_of, "work"));
    let lower = format!("lowerdir={}", lower.join(":"));
    vec![lower, format!("upperdir={}", upper.display()), format!("workdir={}", work.display())]
}

#[test]
fn an_overlay_may_have_more_layers_than_a_page_holds_the_names_of() {
    apart(|scratch| {
        let rootfs = scratch.join("rootfs");
        let options = layers(scratch, 100);
        assert!(options[0].len() > 2 * sys::page_size(), "{}", options[0].len());
        let words: Vec<_> = options.iter().map(String::as_str).collect();
        let before = std::env::current_dir().unwrap();
        mount_all(&[wanted("overlay", Path::new("overlay"), &words)], &rootfs).unwrap();
        assert_eq!(std::env::current_dir().unwrap(), before);
        assert_eq!(fs::read_dir(&rootfs).unwrap().count(), 100);
        fs::write(rootfs.join("new"), "").unwrap();
        assert!(scratch.join("upper/new").exists());
        unmount_all(&rootfs).unwrap();
        assert_nothing_mounted(&rootfs);
    });
}

#[test]
fn options_that_a_page_does_not_hold_are_refused_and_what_came_before_is_undone() {
    apart(|scratch| {
        let rootfs = scratch.join("rootfs");
        let first = wanted("tmpfs", Path::new("first"), &[]);
        let second = wanted("tmpfs", Path::new("second"), &["x".repeat(sys::page_size()).as_str()]);
        let error = mount_all(&[first, second], &rootfs).unwrap_err().to_string();
        assert!(error.starts_with("cannot mount tmpfs `second` on `"), "{error}");
        assert!(error.ends_with(" bytes, a page is the limit"), "{error}");
        assert_nothing_mounted(&rootfs);
    });
}

#[test]
fn a_read_only_bind_and_its_propagation_take_calls_of_their_own() {
    apart(|scratch| {
        let (rootfs, source) = (scratch.join("rootfs"), folder(scratch, "source"));
        mount_all(&[wanted("bind", &source, &["rbind", "ro", "rshared"])], &rootfs).unwrap();
        let error = fs::write(rootfs.join("new"), "").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        fs::write(source.join("new"), "").unwrap();
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.contains("/rootfs ")).unwrap();
        assert!(line.contains(" shared:"), "{line}");
        unmount_all(&rootfs).unwrap();
    });
}

/// An image with a file system, if there is a program to make one.
fn image(scratch: &Path) -> Option<PathBuf> {
    let image = scratch.join("image");
    fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
    let made = Command::new("/sbin/mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&image).status();
    if made.is_ok_and(|status| status.success()) && Path::new("/dev/loop-control").exists() {
        return Some(image);
    }
    leave_out("it needs `mke2fs` and loop devices");
    None
}

/// The loop devices of an image.
fn devices(image: &Path) -> usize {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let of_image = |path: PathBuf| {
        fs::read_to_string(path.join("loop/backing_file"))
            .is_ok_and(|file| image == Path::new(file.trim_end()))
    };
    devices.filter(|device| of_image(device.path())).count()
}

#[test]
fn an_image_becomes_a_disk_for_as_long_as_it_is_mounted() {
    apart(|scratch| {
        let Some(image) = image(scratch) else { return };
        let rootfs = scratch.join("rootfs");
        mount_all(&[wanted("ext4", &image, &["loop"])], &rootfs).unwrap();
        fs::write(rootfs.join("file"), "kept").unwrap();
        assert_eq!(devices(&image), 1);
        unmount_all(&rootfs).unwrap();
        wait_until("the disk is gone", || devices(&image) == 0);
        mount_all(&[wanted("ext4", &image, &["loop", "ro", "direct-io"])], &rootfs).unwrap();
        assert_eq!(fs::read_to_string(rootfs.join("file")).unwrap(), "kept");
        let error = fs::write(rootfs.join("file"), "").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        unmount_all(&rootfs).unwrap();
        wait_until("the disk is gone", || devices(&image) == 0);
    });
}

#[test]
fn a_disk_that_cannot_be_mounted_is_given_back() {
    apart(|scratch| {
        let Some(image) = image(scratch) else { return };
        let rootfs = scratch.join("rootfs");
        let error = mount_all(&[wanted("ext4", &image, &["loop", "nonsense"])], &rootfs).unwrap_err();
        assert!(error.to_string().starts_with("cannot mount ext4 `"), "{error}");
        wait_until("the disk is gone", || devices(&image) == 0);
        let missing = scratch.join("missing");
        let error = mount_all(&[wanted("ext4", &missing, &["loop"])], &rootfs).unwrap_err();
        assert!(error.to_string().contains(": cannot open `"), "{error}");
    });
}

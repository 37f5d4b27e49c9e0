//! What the kernel makes of it, each test in a mount namespace of its own.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::event_loop::EventLoop;

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

/// Runs a test with somebody to supervise its processes, in the same mount namespace.
fn supervised(test: impl FnOnce(&Supervisor)) {
    let (tell, told) = mpsc::channel();
    let main = thread::spawn(move || {
        let (mut events, supervisor) = crate::run::reaping().unwrap();
        tell.send(supervisor).unwrap();
        events.run().unwrap();
    });
    let supervisor = told.recv().unwrap();
    test(&supervisor);
    supervisor.main().post(EventLoop::stop);
    main.join().unwrap();
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
    assert_eq!(mounts_below(rootfs).unwrap(), [] as [PathBuf; 0]);
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

fn overlay(options: &[String], more: &[&str]) -> Mount {
    let words: Vec<_> = options.iter().map(String::as_str).chain(more.iter().copied()).collect();
    wanted("overlay", Path::new("overlay"), &words)
}

#[test]
fn an_overlay_may_have_more_layers_than_a_page_holds_the_names_of() {
    apart(|scratch| {
        let rootfs = scratch.join("rootfs");
        let options = layers(scratch, 100);
        assert!(options[0].len() > 2 * sys::page_size(), "{}", options[0].len());
        let before = std::env::current_dir().unwrap();
        mount_all(&[overlay(&options, &[])], &rootfs, None).unwrap();
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
        let error = mount_all(&[first, second], &rootfs, None).unwrap_err().to_string();
        assert!(error.starts_with("cannot mount tmpfs `second` on `"), "{error}");
        assert!(error.ends_with(" bytes, a page is the limit"), "{error}");
        assert_nothing_mounted(&rootfs);
    });
}

#[test]
fn a_read_only_bind_and_its_propagation_take_calls_of_their_own() {
    apart(|scratch| {
        let (rootfs, source) = (scratch.join("rootfs"), folder(scratch, "source"));
        mount_all(&[wanted("bind", &source, &["rbind", "ro", "rshared"])], &rootfs, None).unwrap();
        let error = fs::write(rootfs.join("new"), "").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        fs::write(source.join("new"), "").unwrap();
        let table = crate::files::kernel_text("/proc/thread-self/mountinfo").unwrap();
        let rootfs = rootfs.display().to_string();
        let line = table.lines().find(|line| line.split(' ').nth(4) == Some(&rootfs)).unwrap();
        assert!(line.contains(" shared:"), "{line}");
        unmount_all(Path::new(&rootfs)).unwrap();
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
        // On a new kernel, and on one before 5.8.
        for lacked in ["", "LOOP_CONFIGURE"] {
            sys::LACKED.set(lacked);
            becomes_a_disk(&image, &rootfs);
        }
    });
}

fn becomes_a_disk(image: &Path, rootfs: &Path) {
    mount_all(&[wanted("ext4", image, &["loop"])], rootfs, None).unwrap();
    fs::write(rootfs.join("file"), "kept").unwrap();
    assert_eq!(devices(image), 1);
    unmount_all(rootfs).unwrap();
    wait_until("the disk is gone", || devices(image) == 0);
    mount_all(&[wanted("ext4", image, &["loop", "ro", "direct-io"])], rootfs, None).unwrap();
    assert_eq!(fs::read_to_string(rootfs.join("file")).unwrap(), "kept");
    let error = fs::write(rootfs.join("file"), "").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    unmount_all(rootfs).unwrap();
    wait_until("the disk is gone", || devices(image) == 0);
}

#[test]
fn a_disk_that_cannot_be_mounted_is_given_back() {
    apart(|scratch| {
        let Some(image) = image(scratch) else { return };
        let rootfs = scratch.join("rootfs");
        let error = mount_all(&[wanted("ext4", &image, &["loop", "nonsense"])], &rootfs, None).unwrap_err();
        assert!(error.to_string().starts_with("cannot mount ext4 `"), "{error}");
        wait_until("the disk is gone", || devices(&image) == 0);
        let missing = scratch.join("missing");
        let error = mount_all(&[wanted("ext4", &missing, &["loop"])], &rootfs, None).unwrap_err();
        assert!(error.to_string().contains(": cannot open `"), "{error}");
    });
}

/// Puts a program where programs are looked for, as far as this namespace sees.
fn install(name: &str, script: &str) {
    let place = Path::new("/usr/local/sbin");
    mount(Some("none"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(place.join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(place.join(name), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_file_system_in_user_space_is_mounted_by_its_helper() {
    apart(|scratch| {
        install("mount.fuse3", "mount -t tmpfs none \"$2\" && echo \"$@\" > \"$2/args\"");
        let rootfs = scratch.join("rootfs");
        let options = ["ro", "cache=on"];
        let fuse = wanted("fuse3.sshfs", Path::new("host:/"), &options);
        supervised(|supervisor| mount_all(std::slice::from_ref(&fuse), &rootfs, Some(supervisor)).unwrap());
        let said = fs::read_to_string(rootfs.join("args")).unwrap();
        assert_eq!(said, format!("host:/ {} -o ro -o cache=on -t sshfs\n", rootfs.display()));
        unmount_all(&rootfs).unwrap();
        assert_nothing_mounted(&rootfs);
        let error = mount_all(&[fuse], &rootfs, None).unwrap_err().to_string();
        assert!(error.ends_with(": `mount.fuse3` cannot be run here"), "{error}");
    });
}

#[test]
fn a_helper_that_fails_or_is_missing_is_named_with_what_it_said() {
    apart(|scratch| {
        install("mount.fuse3", "echo 'no such server' >&2; exit 3");
        let rootfs = scratch.join("rootfs");
        let refused = |kind: &str| {
            let mut said = String::new();
            supervised(|supervisor| {
                let mounts = [wanted(kind, Path::new("x"), &[])];
                said = mount_all(&mounts, &rootfs, Some(supervisor)).unwrap_err().to_string();
            });
            said
        };
        let error = refused("fuse3.sshfs");
        assert!(error.starts_with("cannot mount fuse3.sshfs `x` on `"), "{error}");
        assert!(error.ends_with(": `mount.fuse3` failed with status 3: no such server"), "{error}");
        let error = refused("fuse.sshfs");
        assert!(error.contains(": cannot execute `mount.fuse`: No such file or directory"), "{error}");
    });
}

const MAPPED: [&str; 2] = ["uidmap=0:1000:1,1:100000:65535", "gidmap=0:2000:65536"];

/// Mounts, unless the kernel cannot map ids on this file system, which the error must say.
fn can_map(mounts: &[Mount], rootfs: &Path) -> bool {
    let mut done = Ok(());
    supervised(|supervisor| done = mount_all(mounts, rootfs, Some(supervisor)));
    let Err(error) = done else { return true };
    assert!(error.to_string().contains(": cannot map the ids of `"), "{error}");
    assert_nothing_mounted(rootfs);
    leave_out("the kernel maps no ids on this file system");
    false
}

#[test]
fn files_are_shown_under_the_ids_that_theirs_are_mapped_to() {
    apart(|scratch| {
        let (rootfs, source) = (scratch.join("rootfs"), folder(scratch, "source"));
        fs::write(source.join("file"), "").unwrap();
        std::os::unix::fs::chown(source.join("file"), Some(5), Some(6)).unwrap();
        let options = [&["bind"][..], &MAPPED].concat();
        if !can_map(&[wanted("bind", &source, &options)], &rootfs) {
            return;
        }
        let ids = |path: &Path| fs::metadata(path).map(|file| (file.uid(), file.gid())).unwrap();
        assert_eq!(ids(&rootfs), (1000, 2000));
        assert_eq!(ids(&rootfs.join("file")), (100_004, 2006));
        unmount_all(&rootfs).unwrap();
        assert_nothing_mounted(&rootfs);
    });
}

#[test]
fn the_layers_of_an_overlay_are_mapped_and_nothing_else_is_left_mounted() {
    apart(|scratch| {
        let rootfs = scratch.join("rootfs");
        if !can_map(&[overlay(&layers(scratch, 60), &MAPPED)], &rootfs) {
            return;
        }
        assert_eq!(fs::read_dir(&rootfs).unwrap().count(), 60);
        for number in [0, 59] {
            let file = fs::metadata(rootfs.join(format!("file-{number}"))).unwrap();
            assert_eq!((file.uid(), file.gid()), (1000, 2000));
        }
        let table = crate::files::kernel_text("/proc/thread-self/mountinfo").unwrap();
        assert!(
            !table.lines().any(|line| line.split(' ').nth(4).unwrap().contains("/shim-layers-")),
            "{table}"
        );
        unmount_all(&rootfs).unwrap();
    });
}

#[test]
fn a_layer_that_cannot_be_mapped_is_named_and_nothing_is_left_behind() {
    apart(|scratch| {
        let rootfs = scratch.join("rootfs");
        let mut options = layers(scratch, 2);
        options[0].push_str(":/no-such-layer");
        let mut done = Ok(());
        supervised(|supervisor| done = mount_all(&[overlay(&options, &MAPPED)], &rootfs, Some(supervisor)));
        let error = done.unwrap_err().to_string();
        assert!(error.contains(": cannot map the ids of `"), "{error}");
        let table = crate::files::kernel_text("/proc/thread-self/mountinfo").unwrap();
        assert!(!table.contains("/shim-layers-"), "{table}");
        let error = mount_all(&[overlay(&options, &MAPPED)], &rootfs, None).unwrap_err().to_string();
        assert!(error.ends_with(": ids cannot be mapped here"), "{error}");
    });
}

/// A container whose mounts come back to the host decides where below its root they lie.
#[test]
fn a_mount_whose_path_is_longer_than_the_kernel_takes_goes_with_the_one_that_it_is_in() {
    apart(|folder| {
        use nix::fcntl::{OFlag, open, openat};
        use nix::sys::stat::{Mode, mkdirat};
        use std::os::fd::AsRawFd;
        let rootfs = folder.join("rootfs");
        fs::create_dir(&rootfs).unwrap();
        let tmpfs = |target: &Path| {
            mount(Some("none"), target, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        };
        tmpfs(&rootfs);
        let (flags, name) = (OFlag::O_RDONLY | OFlag::O_DIRECTORY, "x".repeat(250));
        let mut here = open(&rootfs, flags, Mode::empty()).unwrap();
        for _ in 0..20 {
            mkdirat(&here, &*name, Mode::S_IRWXU).unwrap();
            here = openat(&here, &*name, flags, Mode::empty()).unwrap();
        }
        tmpfs(Path::new(&format!("/proc/thread-self/fd/{}", here.as_raw_fd())));
        drop(here);
        assert_eq!(mounts_below(&rootfs).unwrap().len(), 2);
        unmount_all(&rootfs).unwrap();
        assert!(mounts_below(&rootfs).unwrap().is_empty());
    });
}

/// Puts a link in the place of a folder, and the folder back, for as long as it is let.
fn swap(folder: &Path, link: &Path, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        renameat2(AT_FDCWD, folder, AT_FDCWD, link, RenameFlags::RENAME_EXCHANGE).unwrap();
    }
}

/// As a container can whose folder is shared with the one that is made.
#[test]
fn a_target_that_is_swapped_for_a_link_never_leads_out_of_the_root() {
    const ROUNDS: usize = 3000;
    apart(|scratch| {
        let (rootfs, outside) = (folder(scratch, "rootfs"), folder(scratch, "outside/t"));
        let inside = folder(&rootfs, "way/t");
        let (way, link) = (inside.parent().unwrap(), rootfs.join("link"));
        std::os::unix::fs::symlink(outside.parent().unwrap(), &link).unwrap();
        let source = folder(scratch, "source");
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| swap(way, &link, &stop));
            let escaped = (0..ROUNDS).find(|_| {
                let mounts = [Mount {
                    target: "/way/t".to_owned(),
                    ..wanted("bind", &source, &["bind", "ro", "rprivate"])
                }];
                // It may fail, for the link leads nowhere inside.
                let _ = mount_all(&mounts, &rootfs, None);
                let escaped = !mounts_below(&outside).unwrap().is_empty();
                let _ = unmount_all(&rootfs);
                escaped
            });
            stop.store(true, Ordering::Relaxed);
            assert_eq!(escaped, None, "something is mounted outside");
        });
    });
}

#[test]
fn a_mount_on_a_target_is_changed_and_undone_like_one_on_the_root() {
    apart(|scratch| {
        let (rootfs, source) = (folder(scratch, "rootfs"), folder(scratch, "source"));
        folder(&rootfs, "in/here");
        std::os::unix::fs::symlink("/in", rootfs.join("link")).unwrap();
        let target = |mount| Mount { target: "/link/here".to_owned(), ..mount };
        let twice = [
            target(wanted("tmpfs", Path::new("first"), &[])),
            target(wanted("bind", &source, &["bind", "ro"])),
        ];
        mount_all(&twice, &rootfs, None).unwrap();
        assert_eq!(mounts_below(&rootfs).unwrap(), [rootfs.join("in/here"), rootfs.join("in/here")]);
        let error = fs::write(rootfs.join("in/here/new"), "").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        unmount_all(&rootfs).unwrap();
        assert_nothing_mounted(&rootfs);
        fs::write(rootfs.join("in/here/new"), "").unwrap();
        let missing = Mount { target: "/no/such".to_owned(), ..wanted("tmpfs", Path::new("none"), &[]) };
        let error = mount_all(&[missing], &rootfs, None).unwrap_err().to_string();
        assert!(error.starts_with("`/no/such` in the root file system: "), "{error}");
    });
}

#[test]
fn where_the_kernel_or_a_sandbox_has_no_call_for_it_a_target_is_found_by_its_name() {
    apart(|scratch| {
        let rootfs = folder(scratch, "rootfs");
        folder(&rootfs, "in/here");
        std::os::unix::fs::symlink("/in", rootfs.join("link")).unwrap();
        let openers: [fn(&OwnedFd, &Path) -> nix::Result<OwnedFd>; 2] =
            [|_, _| Err(Errno::ENOSYS), |_, _| Err(Errno::EPERM)];
        for open in openers {
            let found = Target::find_by(open, &rootfs, Path::new("/link/here")).unwrap();
            assert_eq!((found.path(), found.name()), (rootfs.join("in/here"), &*rootfs.join("in/here")));
            let options = Options::parse(&["ro".to_owned(), "private".to_owned()]).unwrap();
            mount_plain(&wanted("tmpfs", Path::new("none"), &[]), options, &found).unwrap();
            assert_eq!(mounts_below(&rootfs).unwrap(), [rootfs.join("in/here")]);
            unmount_all(&rootfs).unwrap();
        }
        let refused = Target::find_by(|_, _| Err(Errno::ELOOP), &rootfs, Path::new("/link/here"));
        assert!(
            refused.is_err_and(|error| error.to_string().contains("`/link/here` in the root file system"))
        );
    });
}

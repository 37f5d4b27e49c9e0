//! Makes a disk of a file. The kernel takes it away again once nobody has it mounted or open.

use std::fs::File;

use crate::error::{Error, Result, WithContext};
use crate::sys;

/// How often another device is asked for when somebody else was quicker to take one.
const TRIES: usize = 100;

/// A disk, to be kept until it is mounted.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) path: String,
    _open: File,
}

pub(super) fn attach(image: &str, read_only: bool, direct: bool) -> Result<Device> {
    let open = |path: &str, write| {
        let opened = File::options().read(true).write(write).open(path);
        opened.with_context(|| format!("cannot open `{path}`"))
    };
    let (control, image) = (open("/dev/loop-control", true)?, open(image, !read_only)?);
    for _ in 0..TRIES {
        let number = sys::free_loop_device(&control).with_context(|| "cannot get a loop device")?;
        let path = format!("/dev/loop{number}");
        let device = open(&path, !read_only)?;
        match sys::configure_loop_device(&device, &image, read_only, direct) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            done => {
                return done
                    .with_context(|| format!("cannot set up `{path}`"))
                    .map(|()| Device { path, _open: device });
            }
        }
    }
    Err(Error::resource_exhausted("every loop device was taken by somebody else"))
}

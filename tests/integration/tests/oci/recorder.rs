//! An engine that notes how it is called, and fails or hangs on request.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use containerd_shim_protos::shim::oci::Options;
use protobuf::Message;
use shim_runtime::Pid;
use shim_testing::{BundleBuilder, Process, Result};
use tempfile::TempDir;

use crate::LIMIT;

/// The program, in a folder of its own.
pub(crate) struct Recorder(TempDir);

impl Recorder {
    pub(crate) fn new() -> Result<Self> {
        let recorder = Self(tempfile::tempdir()?);
        fs::write(recorder.program(), include_str!("engine.sh"))?;
        fs::set_permissions(recorder.program(), fs::Permissions::from_mode(0o755))?;
        Ok(recorder)
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.0.path().join("engine")
    }

    /// A file beside the program.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    /// Has a verb fail with these words in the engine's log.
    pub(crate) fn fail(&self, verb: &str, words: &str) -> Result<()> {
        Ok(fs::write(self.file(&format!("fail-{verb}")), words)?)
    }

    /// Has a verb fail after these lines in the engine's log.
    pub(crate) fn log(&self, verb: &str, lines: &str) -> Result<()> {
        Ok(fs::write(self.file(&format!("log-{verb}")), lines)?)
    }

    /// Has a verb write this to its standard error first.
    pub(crate) fn say(&self, verb: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.file(&format!("say-{verb}")), text)?)
    }

    pub(crate) fn hang(&self, verb: &str) -> Result<()> {
        Ok(fs::write(self.file(&format!("hang-{verb}")), "")?)
    }

    /// Has a verb be killed before it does anything.
    pub(crate) fn die(&self, verb: &str) -> Result<()> {
        Ok(fs::write(self.file(&format!("die-{verb}")), "")?)
    }

    /// Has a verb do what it should again.
    pub(crate) fn mend(&self, verb: &str) {
        for way in ["fail", "log", "say", "hang", "die"] {
            let _ = fs::remove_file(self.file(&format!("{way}-{verb}")));
        }
    }

    /// Waits until a verb hangs.
    pub(crate) fn until_it_hangs(&self) {
        until("the engine to hang", || self.read("hangs").ends_with('\n'));
    }

    /// The process that plays the container's init.
    pub(crate) fn init(&self) -> Result<Process> {
        self.noted("init")
    }

    /// A process whose pid is in the file of that name.
    pub(crate) fn noted(&self, name: &str) -> Result<Process> {
        let pid = self.read(name).trim().parse().ok().and_then(Pid::new);
        Ok(Process::open(pid.unwrap_or_else(|| panic!("no pid is in `{name}`")))?)
    }

    /// The calls so far, each without what all of them begin with.
    pub(crate) fn calls(&self, bundle: &Path) -> Vec<String> {
        let log = format!("--log {}/log.json --log-format json ", bundle.display());
        self.read("calls").lines().map(|call| call.replacen(&log, "", 1)).collect()
    }

    /// Options that name the program.
    pub(crate) fn options(&self) -> Options {
        let binary_name = self.program().to_string_lossy().into_owned();
        Options { binary_name, root: "/tmp/state".to_owned(), ..Options::default() }
    }
}

/// A container with options of this message.
pub(crate) fn with_options(builder: BundleBuilder, options: &Options) -> BundleBuilder {
    builder.options("containerd.runc.v1.Options", options.write_to_bytes().unwrap_or_default())
}

/// Waits for what should come at once.
pub(crate) fn until(what: &str, mut is_there: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_there() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

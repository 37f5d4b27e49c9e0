//! Why a run with the stand-in failed: a broken promise, a call the shim refused, or a setting up that went
//! wrong. A failure carries the timeline, so that a test that unwraps it shows what led there.

use std::fmt;

use super::promise::Promise;
use super::timeline::Timeline;
use shim_runtime::Code;

/// A `Result` whose error is [`Failure`].
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// A promise that the shim did not keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which promise.
    pub promise: &'static Promise,
    /// What the stand-in saw.
    pub seen: String,
    /// What it should have seen.
    pub expected: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { promise, seen, expected } = self;
        write!(
            f,
            "{}: seen {seen}; expected {expected} ({}, contract {})",
            promise, promise.level, promise.section
        )
    }
}

/// What kind of failure it is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Cause {
    /// The shim broke promises; never empty.
    Broken(Vec<Broken>),
    /// The shim answered a call with an error, or not at all.
    Call {
        /// The method, for example `Start`.
        method: String,
        /// The code that containerd would act upon.
        code: Code,
        /// The sentence of the shim.
        message: String,
    },
    /// The stand-in itself could not do its part.
    Setup(String),
}

/// Why a run failed; `Display` is one sentence for each thing, `Debug` adds the timeline.
pub struct Failure(Box<Inner>);

struct Inner {
    cause: Cause,
    timeline: Option<Timeline>,
}

impl Failure {
    /// A failure of the stand-in itself.
    pub fn setup(message: impl Into<String>) -> Self {
        Self::new(Cause::Setup(message.into()))
    }

    pub(crate) fn new(cause: Cause) -> Self {
        Self(Box::new(Inner { cause, timeline: None }))
    }

    pub(crate) fn broken(broken: Vec<Broken>) -> Self {
        Self::new(Cause::Broken(broken))
    }

    pub(crate) fn call(method: &str, code: Code, message: impl Into<String>) -> Self {
        Self::new(Cause::Call { method: method.to_owned(), code, message: message.into() })
    }

    pub(crate) fn with(mut self, timeline: &Timeline) -> Self {
        self.0.timeline = Some(timeline.clone());
        self
    }

    /// What kind of failure this is.
    pub fn cause(&self) -> &Cause {
        &self.0.cause
    }

    /// The code with which the shim refused a call.
    pub fn code(&self) -> Option<Code> {
        match self.0.cause {
            Cause::Call { code, .. } => Some(code),
            _ => None,
        }
    }

    /// The promises that were broken; empty for the other kinds.
    pub fn promises(&self) -> &[Broken] {
        match &self.0.cause {
            Cause::Broken(broken) => broken,
            _ => &[],
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.cause {
            Cause::Broken(all) => {
                for (index, broken) in all.iter().enumerate() {
                    let parting = if index == 0 { "" } else { "\n" };
                    write!(f, "{parting}{broken}")?;
                }
                Ok(())
            }
            Cause::Call { method, code, message } => write!(f, "`{method}` failed: {code:?}: {message}"),
            Cause::Setup(message) => f.write_str(message),
        }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        match &self.0.timeline {
            Some(timeline) => write!(f, "\n{timeline}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::setup(error.to_string())
    }
}

impl From<nix::errno::Errno> for Failure {
    fn from(errno: nix::errno::Errno) -> Self {
        std::io::Error::from(errno).into()
    }
}

/// Adds what was being done to an error of the system.
pub(crate) trait Doing<T> {
    fn doing<M: fmt::Display>(self, what: impl FnOnce() -> M) -> Result<T>;
}

impl<T, E: fmt::Display> Doing<T> for std::result::Result<T, E> {
    fn doing<M: fmt::Display>(self, what: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| Failure::setup(format!("{}: {error}", what())))
    }
}

//! The one error type of the crate: a code that containerd acts upon, and a sentence that its user reads.
//! Every error that reaches the wire is turned into a status in one place, [`Error::code`] and `Display`.

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// A `Result` whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure an [`Error`] is, as gRPC numbers it.
///
/// containerd decides by these, so choose with care: `NotFound` means "the task is gone" and is taken as
/// success by deletion, `Unimplemented` means "ask an older API" ([contract 6.3](crate::contract#s6-3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(i32)]
pub enum Code {
    /// The caller gave up.
    Cancelled = 1,
    /// No better code fits; what most errors of a runtime are.
    Unknown = 2,
    /// The request itself is wrong, whatever the state.
    InvalidArgument = 3,
    /// The call's deadline passed.
    DeadlineExceeded = 4,
    /// There is no such task or process, or it has finished.
    NotFound = 5,
    /// The id is taken.
    AlreadyExists = 6,
    /// The caller may not do this.
    PermissionDenied = 7,
    /// A limit of the shim was reached.
    ResourceExhausted = 8,
    /// The state does not allow the call.
    FailedPrecondition = 9,
    /// The operation was aborted, typically by another one.
    Aborted = 10,
    /// A value lies outside its range.
    OutOfRange = 11,
    /// The shim does not offer this method.
    Unimplemented = 12,
    /// A fault of the shim.
    Internal = 13,
    /// The shim cannot answer now, for example because it is ending.
    Unavailable = 14,
}

/// Why a call failed: a [`Code`], a message, and what caused it.
///
/// Messages are lower case, without a full stop, and name the thing: ``cannot start container `c1`: it is
/// stopped``. `Display` prints the message and its causes, parted by `: `.
///
/// ```
/// use shim_runtime::{Code, Error};
/// let error = Error::not_found("no container `c1`").context("cannot read its state");
/// assert_eq!(error.code(), Code::NotFound);
/// assert_eq!(error.to_string(), "cannot read its state: no container `c1`");
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    code: Code,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $code:ident),+ $(,)?) => {$(
        $(#[$doc])*
        pub fn $name(message: impl Into<String>) -> Self {
            Self::new(Code::$code, message)
        }
    )+};
}

impl Error {
    /// An error with a code chosen at run time.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { code, message: message.into(), source: None }))
    }

    constructors! {
        /// [`Code::Unknown`]: the general failure of a runtime.
        other => Unknown,
        /// [`Code::InvalidArgument`].
        invalid_argument => InvalidArgument,
        /// [`Code::DeadlineExceeded`].
        deadline_exceeded => DeadlineExceeded,
        /// [`Code::NotFound`]; containerd takes it for "already gone".
        not_found => NotFound,
        /// [`Code::AlreadyExists`].
        already_exists => AlreadyExists,
        /// [`Code::ResourceExhausted`].
        resource_exhausted => ResourceExhausted,
        /// [`Code::FailedPrecondition`]: the state does not allow the call.
        failed_precondition => FailedPrecondition,
        /// [`Code::Unimplemented`]; never for Create, which containerd would retry with an older API.
        unimplemented => Unimplemented,
        /// [`Code::Internal`]: a fault of the shim itself.
        internal => Internal,
        /// [`Code::Unavailable`].
        unavailable => Unavailable,
    }

    /// What kind of failure this is.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// Puts `message` in front and keeps the code and the causes.
    pub fn context(self, message: impl Into<String>) -> Self {
        let code = self.0.code;
        Self(Box::new(Inner { code, message: message.into(), source: Some(Box::new(self)) }))
    }

    /// The same failure under another code.
    pub fn with_code(mut self, code: Code) -> Self {
        self.0.code = code;
        self
    }

    /// Input that does not parse, explained by the parser.
    pub(crate) fn invalid_argument_from(error: impl fmt::Display) -> Self {
        Self::invalid_argument(error.to_string())
    }

    /// Attaches what caused the failure; `Display` prints it after the message.
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        match &self.0.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.code)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// An I/O error is always [`Code::Unknown`]: a missing *file* must not reach containerd as `NotFound`, which
/// it reads as a missing *task*.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::other(error.to_string())
    }
}

impl From<nix::errno::Errno> for Error {
    fn from(errno: nix::errno::Errno) -> Self {
        io::Error::from(errno).into()
    }
}

/// Adds a sentence to the error of a `Result`.
pub trait WithContext<T>: Sized {
    /// Puts `message` in front of the error and keeps its code.
    fn context(self, message: impl Into<String>) -> Result<T> {
        self.with_context(|| message)
    }

    /// Puts `message()`, which is called only where there is an error, in front of it and keeps its code.
    fn with_context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T, E: Into<Error>> WithContext<T> for Result<T, E> {
    fn with_context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| error.into().context(message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_keeps_the_code_and_prints_outermost_first() {
        let error = Error::failed_precondition("it is stopped").context("cannot start container `c1`");
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert_eq!(error.to_string(), "cannot start container `c1`: it is stopped");
    }

    #[test]
    fn a_missing_file_is_not_a_missing_task() {
        let error = Error::from(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(error.code(), Code::Unknown);
    }
}

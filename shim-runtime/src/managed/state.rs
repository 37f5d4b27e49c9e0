//! The state machine of one process: its phases, and which call is allowed in which. No I/O, no locks.

use crate::api::Status;
use crate::error::{Error, Result};

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its id is taken; author code makes it.
    Creating,
    /// It exists and has run nothing of the user's.
    Created,
    /// Author code starts it.
    Starting,
    Running,
    Pausing,
    Paused,
    Resuming,
    /// It has ended, and its exit was published.
    Stopped,
    /// It could not be started, and never will be.
    Failed,
    /// Author code gives it up.
    Deleting,
}

/// A call that not every phase allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    Start,
    Delete,
    /// An exec is added, or started, which engines can do before they start the init.
    Exec,
    Kill,
    Pause,
    Resume,
    Update,
    Checkpoint,
    Resize,
    /// Stats.
    Measure,
}

impl Phase {
    /// As the task API reports it.
    pub(super) fn status(self) -> Status {
        match self {
            Self::Creating | Self::Created | Self::Starting | Self::Failed => Status::CREATED,
            Self::Running | Self::Resuming => Status::RUNNING,
            Self::Pausing => Status::PAUSING,
            Self::Paused => Status::PAUSED,
            Self::Stopped | Self::Deleting => Status::STOPPED,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "not started",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "being paused",
            Self::Paused => "paused",
            Self::Resuming => "being resumed",
            Self::Stopped => "stopped",
            Self::Failed => "one that could not be started",
            Self::Deleting => "being deleted",
        }
    }

    /// Whether it runs or is about to: its exit is still to come.
    pub(super) fn is_live(self) -> bool {
        !matches!(self, Self::Creating | Self::Created | Self::Stopped | Self::Failed | Self::Deleting)
    }

    fn allows(self, wanted: Move) -> bool {
        use Phase::{Created, Creating, Deleting, Failed, Paused, Running, Starting, Stopped};
        match wanted {
            Move::Start => self == Created,
            Move::Delete => matches!(self, Created | Stopped | Failed),
            Move::Exec => matches!(self, Created | Starting | Running),
            Move::Kill => !matches!(self, Creating | Stopped | Deleting),
            // What it has used is there as long as its cgroup is.
            Move::Measure => !matches!(self, Creating | Deleting),
            Move::Pause => self == Running,
            Move::Resume => self == Paused,
            Move::Update => matches!(self, Created | Starting | Running | Paused),
            Move::Checkpoint => matches!(self, Running | Paused),
            Move::Resize => !matches!(self, Stopped | Deleting),
        }
    }

    /// Refuses a call that the phase does not allow. `what` is the process in words, such as "container `c1`".
    pub(super) fn check(self, wanted: Move, what: &str) -> Result<()> {
        if self.allows(wanted) {
            return Ok(());
        }
        let verb = match wanted {
            Move::Start => "start",
            Move::Delete => "delete",
            Move::Exec => "execute a process in",
            Move::Kill => "kill",
            Move::Pause => "pause",
            Move::Resume => "resume",
            Move::Update => "update",
            Move::Checkpoint => "checkpoint",
            Move::Resize => "resize the terminal of",
            Move::Measure => "measure",
        };
        let message = format!("cannot {verb} {what}: it is {}", self.name());
        // Clients take this code for "already done" (contract 6.3, Kill).
        let gone = matches!(wanted, Move::Kill | Move::Measure);
        Err(if gone { Error::not_found(message) } else { Error::failed_precondition(message) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    const PHASES: [Phase; 10] = [
        Phase::Creating,
        Phase::Created,
        Phase::Starting,
        Phase::Running,
        Phase::Pausing,
        Phase::Paused,
        Phase::Resuming,
        Phase::Stopped,
        Phase::Failed,
        Phase::Deleting,
    ];

    fn allowed(wanted: Move) -> Vec<Phase> {
        PHASES.into_iter().filter(|phase| phase.allows(wanted)).collect()
    }

    #[test]
    fn each_move_is_allowed_in_its_phases_and_in_no_other() {
        use Phase::{Created, Failed, Paused, Running, Starting, Stopped};
        assert_eq!(allowed(Move::Start), [Created]);
        assert_eq!(allowed(Move::Delete), [Created, Stopped, Failed]);
        assert_eq!(allowed(Move::Exec), [Created, Starting, Running]);
        assert_eq!(allowed(Move::Pause), [Running]);
        assert_eq!(allowed(Move::Resume), [Paused]);
        assert_eq!(allowed(Move::Checkpoint), [Running, Paused]);
        assert_eq!(allowed(Move::Update), [Created, Starting, Running, Paused]);
    }

    #[test]
    fn a_refusal_names_the_process_and_its_state() {
        let error = Phase::Stopped.check(Move::Start, "container `c1`").unwrap_err();
        assert_eq!(error.to_string(), "cannot start container `c1`: it is stopped");
        assert_eq!(error.code(), Code::FailedPrecondition);
    }

    #[test]
    fn killing_what_has_ended_is_not_found() {
        assert_eq!(Phase::Stopped.check(Move::Kill, "x").unwrap_err().code(), Code::NotFound);
    }
}

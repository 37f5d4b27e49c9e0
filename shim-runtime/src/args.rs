//! The command line, in Go's flag syntax (contract 2.1): `-x v`, `--x v`, `-x=v`; flags first, action last.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// Which of its five lives the process is to lead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Action {
    /// `start`: prepare the socket, spawn the server, answer with its address.
    Start,
    /// `delete`: clean up after a container whose shim may be gone.
    Delete,
    /// No action: be the server.
    #[default]
    Serve,
    /// `-info`: describe the runtime.
    Info,
    /// `-v`: print the version.
    Version,
}

/// What the command line said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) action: Action,
    pub(crate) namespace: String,
    /// The daemon's gRPC socket; part of the hash that names ours.
    pub(crate) address: String,
    pub(crate) id: String,
    pub(crate) bundle: Option<PathBuf>,
    pub(crate) debug: bool,
    /// Listen here instead of on descriptor 3.
    pub(crate) socket: Option<PathBuf>,
    /// The number of the descriptor that `start` and its server talk over; see `run/start.rs`.
    pub(crate) handoff: Option<i32>,
}

/// Every flag: its name, whether it takes a value, and where that goes.
type Flag = (&'static str, Value);

enum Value {
    Text(fn(&mut Args, String)),
    Switch(fn(&mut Args, bool)),
    Number(fn(&mut Args, i32)),
}

const FLAGS: &[Flag] = &[
    ("namespace", Value::Text(|args, value| args.namespace = value)),
    ("address", Value::Text(|args, value| args.address = value)),
    // Ignored by Go shims since 1.7, and not needed: events go over TTRPC (contract 7).
    ("publish-binary", Value::Text(|_, _| {})),
    ("id", Value::Text(|args, value| args.id = value)),
    ("bundle", Value::Text(|args, value| args.bundle = Some(value.into()))),
    ("socket", Value::Text(|args, value| args.socket = Some(value.into()))),
    // Where Go serves its profiler. We have none, but the flag is no reason to fail.
    ("debug-socket", Value::Text(|_, _| {})),
    ("handoff", Value::Number(|args, value| args.handoff = Some(value))),
    ("debug", Value::Switch(|args, value| args.debug = value)),
    ("v", Value::Switch(|args, value| set_action(args, value, Action::Version))),
    ("version", Value::Switch(|args, value| set_action(args, value, Action::Version))),
    ("info", Value::Switch(|args, value| set_action(args, value, Action::Info))),
];

fn set_action(args: &mut Args, wanted: bool, action: Action) {
    if wanted {
        args.action = action;
    }
}

impl Args {
    /// Parses the arguments behind the program's name.
    pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let mut parsed = Self::default();
        let mut rest = args.into_iter().map(into_utf8);
        while let Some(arg) = rest.next() {
            let arg = arg?;
            let flag =
                arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).filter(|flag| !flag.is_empty());
            let Some(flag) = flag else {
                parsed.set_action_word(&arg, &mut rest)?;
                break;
            };
            parsed.flag(flag, &mut rest)?;
        }
        Ok(parsed)
    }

    fn flag(&mut self, flag: &str, rest: &mut impl Iterator<Item = Result<String>>) -> Result<()> {
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let Some((_, value)) = FLAGS.iter().find(|(known, _)| *known == name) else {
            return Err(Error::invalid_argument(format!(
                "unknown flag `-{}`; the flags are {}",
                name.escape_debug(),
                names()
            )));
        };
        let missing = || Err(Error::invalid_argument(format!("flag `-{name}` needs a value")));
        match (value, inline) {
            (Value::Switch(set), inline) => set(self, parse_switch(name, inline.as_deref())?),
            (Value::Text(set), inline) => {
                set(self, inline.map_or_else(|| rest.next().unwrap_or_else(missing), Ok)?);
            }
            (Value::Number(set), inline) => {
                let text = inline.map_or_else(|| rest.next().unwrap_or_else(missing), Ok)?;
                set(self, parse_number(name, &text)?);
            }
        }
        Ok(())
    }

    fn set_action_word(&mut self, word: &str, rest: &mut impl Iterator<Item = Result<String>>) -> Result<()> {
        let action = match word {
            "start" => Action::Start,
            "delete" => Action::Delete,
            _ => {
                let message = format!("unknown action {word:?}; it is `start`, `delete` or none");
                return Err(Error::invalid_argument(message));
            }
        };
        if self.action == Action::Serve {
            self.action = action;
        }
        match rest.next() {
            None => Ok(()),
            Some(extra) => {
                let message = format!("unexpected argument {:?} after `{word}`; flags come first", extra?);
                Err(Error::invalid_argument(message))
            }
        }
    }
}

fn into_utf8(arg: OsString) -> Result<String> {
    arg.into_string().map_err(|arg| {
        let shown = arg.to_string_lossy();
        Error::invalid_argument(format!("argument `{}` is not UTF-8", shown.escape_debug()))
    })
}

fn parse_number(name: &str, value: &str) -> Result<i32> {
    value
        .parse()
        .map_err(|_| Error::invalid_argument(format!("flag `-{name}` needs a number, not {value:?}")))
}

fn parse_switch(name: &str, value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "True" | "TRUE") => Ok(true),
        Some("0" | "f" | "F" | "false" | "False" | "FALSE") => Ok(false),
        Some(value) => {
            Err(Error::invalid_argument(format!("flag `-{name}` is true or false, not {value:?}")))
        }
    }
}

fn names() -> String {
    let shown = FLAGS.iter().filter(|(name, _)| *name != "handoff");
    shown.map(|(name, _)| format!("`-{name}`")).collect::<Vec<_>>().join(", ")
}

/// Refuses an id that could name anything but one file of its own: the id becomes part of paths, socket
/// hashes and events. containerd's own rule, without its limit of 76 characters.
pub(crate) fn check_id(what: &str, id: &str) -> Result<()> {
    let wrong = if id.is_empty() {
        "it is empty"
    } else if id.len() > 255 {
        "it is longer than 255 bytes"
    } else if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
        "only letters, digits, `.`, `_` and `-` may stand in it"
    } else if !id.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        "it must start with a letter or a digit"
    } else if id.contains("..") {
        "it contains `..`"
    } else {
        return Ok(());
    };
    Err(Error::invalid_argument(format!("bad {what} {id:?}: {wrong}")))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::mutation::{Mutations, rounds};

    fn parse(args: &[&str]) -> Result<Args> {
        Args::parse(args.iter().map(OsString::from))
    }

    #[test]
    fn flags_are_read_in_every_form_that_go_knows() {
        let args =
            parse(&["-namespace", "n", "--address", "/a", "-id=c1", "--debug", "-bundle", "/b", "start"]);
        let args = args.unwrap();
        assert_eq!((args.namespace.as_str(), args.address.as_str(), args.id.as_str()), ("n", "/a", "c1"));
        assert_eq!(args.bundle, Some("/b".into()));
        assert!(args.debug);
        assert_eq!(args.action, Action::Start);
        assert!(!parse(&["-debug=false"]).unwrap().debug);
    }

    #[test]
    fn an_unknown_flag_is_named() {
        let error = parse(&["-colour", "red"]).unwrap_err().to_string();
        assert!(error.starts_with("unknown flag `-colour`"), "{error}");
    }

    #[test]
    fn a_missing_value_an_unknown_action_and_a_late_flag_are_named() {
        assert_eq!(parse(&["-id"]).unwrap_err().to_string(), "flag `-id` needs a value");
        assert!(parse(&["stop"]).unwrap_err().to_string().contains("unknown action \"stop\""));
        assert!(parse(&["start", "-id", "x"]).unwrap_err().to_string().contains("\"-id\" after `start`"));
    }

    #[test]
    fn the_version_can_be_asked_for_without_anything_else() {
        for flag in ["-v", "--v", "-version", "--version"] {
            assert_eq!(parse(&[flag]).unwrap().action, Action::Version);
        }
        assert_eq!(parse(&["-info"]).unwrap().action, Action::Info);
        assert_eq!(parse(&[]).unwrap().action, Action::Serve);
    }

    #[test]
    fn ids_that_could_leave_their_folder_are_refused() {
        for bad in ["", "..", "a/b", "a\nb", "a\0b", "../c", "-x", "a..b", ".hidden"] {
            assert!(check_id("container id", bad).is_err(), "{bad:?}");
        }
        for good in ["c1", "a.b-c_d", &"f".repeat(64)] {
            assert!(check_id("container id", good).is_ok(), "{good:?}");
        }
    }

    /// Words that mean something to the parser, and any others.
    fn word() -> impl Strategy<Value = String> {
        const KNOWN: &[&str] =
            &["-id", "--id", "-id=c1", "-debug", "-debug=false", "start", "delete", "-", "--", "", "="];
        prop_oneof![proptest::sample::select(KNOWN).prop_map(str::to_owned), ".*", "-.*", "-{0,3}[a-z=]{0,9}"]
    }

    proptest! {
        #[test]
        fn any_words_are_understood_or_refused_with_one_sentence(words in vec(word(), 0..6)) {
            if let Err(error) = Args::parse(words.iter().map(OsString::from)) {
                let text = error.to_string();
                prop_assert!(!text.is_empty() && !text.ends_with('.'), "{}", text);
                prop_assert!(!text.contains(['\n', '\0', '\u{1b}']), "{:?}", text);
            }
        }

        #[test]
        fn every_form_of_a_flag_means_the_same(name in "[a-z0-9]{1,12}", value in "[^-].*") {
            let alone = parse(&["-id", &value, "-namespace", &name, "start"]).unwrap();
            let (id, namespace) = (format!("--id={value}"), format!("-namespace={name}"));
            prop_assert_eq!(parse(&[&namespace, &id, "start"]).unwrap(), alone);
        }
    }

    #[test]
    fn broken_command_lines_do_not_panic() {
        let sound = b"-namespace\0n\0--address\0/a\0-id=c1\0--debug\0-bundle\0/b\0-handoff\x004\0start";
        let mut mutations = Mutations::seeded(2);
        for _ in 0..rounds(20_000) {
            let line = mutations.change(sound);
            let words = line.split(|byte| *byte == 0).map(|word| OsStr::from_bytes(word).to_owned());
            if let Ok(args) = Args::parse(words) {
                let _ = check_id("container id", &args.id);
            }
        }
    }
}

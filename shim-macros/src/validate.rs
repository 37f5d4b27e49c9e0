//! Decides whether the values of the options make sense, and reads the elements of lists into [`Lists`].
//! What is refused here would otherwise be found out by containerd, at a bad time and in worse words.

mod runtime_name;

use proc_macro2::Span;
use quote::ToTokens;
use syn::parse::Parse;
use syn::{Error, Ident, LitBool, LitInt, LitStr, Path};

use crate::args::{Args, List, usage};
use crate::errors::Errors;
use crate::suggest;

/// The elements of the lists that were given, each of them right.
pub(crate) struct Lists {
    pub(crate) task: Option<Vec<LitInt>>,
    pub(crate) group: Option<Vec<LitStr>>,
    /// Names of the runtime's constants: `TERM` for `SIGTERM`.
    pub(crate) shutdown_on: Option<Vec<Ident>>,
}

/// Checks every value, even after a wrong one.
pub(crate) fn check(args: &Args, errors: &mut Errors) -> Lists {
    judge(args.runtime.as_ref(), |name| runtime_name::check(&name.value()), errors);
    judge(args.version.as_ref(), version, errors);
    judge(args.krate.as_ref(), crate_path, errors);
    switched_off(args, errors);
    let Args { task, group, shutdown_on, .. } = args;
    let signal = |name: Ident| signal(&name.to_string());
    Lists {
        task: task.as_ref().map(|list| elements(list, "task", "version: 2, 3 or both", task_version, errors)),
        group: group.as_ref().map(|list| elements(list, "group", "label", group_label, errors)),
        shutdown_on: shutdown_on.as_ref().map(|list| elements(list, "shutdown_on", "signal", signal, errors)),
    }
}

/// What the high level is built on can be given up at the low level only.
fn switched_off(args: &Args, errors: &mut Errors) {
    let is = |switch: &Option<LitBool>, value| switch.as_ref().is_some_and(|switch| switch.value == value);
    for (name, switch, lost) in [
        ("reaper", &args.reaper, "the reaper no container's exit is seen"),
        ("subreaper", &args.subreaper, "a subreaper what a runtime command leaves behind is lost"),
        ("logger", &args.logger, "the logger nobody is told why a container failed"),
    ] {
        if is(switch, false) && args.raw.is_none() {
            errors.at(switch, format!("without {lost}; use `raw`, or drop `{name} = false`"));
        }
    }
    if is(&args.reaper, false) && is(&args.subreaper, true) {
        let message =
            "a subreaper that never reaps leaves zombies; drop `subreaper = true` or `reaper = false`";
        errors.at(&args.subreaper, message);
    }
}

fn judge<T: ToTokens>(value: Option<&T>, rule: impl Fn(&T) -> Result<(), String>, errors: &mut Errors) {
    if let Some(value) = value
        && let Err(reason) = rule(value)
    {
        errors.at(value, reason);
    }
}

/// Reads the elements of a list, none of them twice. `rule` gives an element's name, for messages, and what the
/// expansion makes of it; `of` says what the list holds.
fn elements<T: Parse, U>(
    list: &List,
    option: &str,
    of: &str,
    rule: impl Fn(T) -> Result<(String, U), String>,
    errors: &mut Errors,
) -> Vec<U> {
    let (mut names, mut accepted) = (Vec::new(), Vec::new());
    if list.elements.is_empty() {
        errors.push(Error::new(list.span, format!("`{option}` needs at least one {of}")));
    }
    let (of, _) = of.split_once(':').unwrap_or((of, ""));
    for element in &list.elements {
        let shape = syn::parse2(element.clone());
        match shape.map_err(|_| format!("expected a {of}, as in {}", usage(option))).and_then(&rule) {
            Ok((name, _)) if names.contains(&name) => errors.at(element, format!("{name} is listed twice")),
            Ok((name, value)) => {
                names.push(name);
                accepted.push(value);
            }
            Err(reason) => errors.at(element, reason),
        }
    }
    accepted
}

fn version(version: &LitStr) -> Result<(), String> {
    match version.value().as_str() {
        "" => Err("a version cannot be empty; drop `version` to take the package's".to_owned()),
        _ => Ok(()),
    }
}

fn task_version(version: LitInt) -> Result<(String, LitInt), String> {
    match version.base10_digits() {
        "2" | "3" => Ok((format!("version {}", version.base10_digits()), version)),
        other => Err(format!("containerd has no task API v{other}; use 2, 3 or both")),
    }
}

fn group_label(label: LitStr) -> Result<(String, LitStr), String> {
    match label.value().as_str() {
        "" => Err("a group label cannot be empty".to_owned()),
        value => Ok((format!("label `{value}`"), label)),
    }
}

/// Signals that may end a shim.
const ENDING: &[&str] =
    &["SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGCONT", "SIGWINCH"];

fn signal(name: &str) -> Result<(String, Ident), String> {
    let short = format!("SIG{}", name.to_uppercase());
    let reason = match name {
        known if ENDING.contains(&known) => {
            return Ok((format!("`{known}`"), Ident::new(&known["SIG".len()..], Span::call_site())));
        }
        "SIGKILL" | "SIGSTOP" => "cannot be caught",
        "SIGILL" | "SIGFPE" | "SIGSEGV" | "SIGBUS" => {
            "is a fault in the shim itself, after which it cannot go on"
        }
        "SIGCHLD" => "belongs to the reaper",
        "SIGUSR1" => "makes the runtime log what the shim holds",
        // These exist: they must not be taken for a slip of the pen.
        "SIGABRT" | "SIGTRAP" | "SIGSYS" | "SIGTSTP" | "SIGTTIN" | "SIGTTOU" | "SIGURG" | "SIGXCPU"
        | "SIGXFSZ" | "SIGVTALRM" | "SIGPROF" | "SIGIO" | "SIGPWR" => "does not end a shim",
        _ if ENDING.contains(&&*short) => {
            return Err(format!("unknown signal `{name}`; did you mean `{short}`?"));
        }
        _ => return Err(format!("unknown signal `{name}`; {}", suggest::instead_of(name, ENDING))),
    };
    Err(format!("`{name}` {reason}; drop it from `shutdown_on`"))
}

/// The path is named from several places of the expansion, so it has to mean the same in each.
fn crate_path(path: &Path) -> Result<(), String> {
    let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
    if path.leading_colon.is_some() || names[0] == "crate" || names[0] == "$crate" {
        return Ok(());
    }
    let names: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| !["self", "super"].contains(name)).collect();
    Err(format!("path must start with `::` or `crate::`; write `crate = ::{}`", names.join("::")))
}

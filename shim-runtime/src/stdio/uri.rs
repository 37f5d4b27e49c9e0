//! The strings by which a client names a process's streams (contract 5.2): a path, or a URI whose scheme says
//! what becomes of the output.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::error::{Error, Result, WithContext};

/// Where a stream comes from or goes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is not connected.
    Nowhere,
    /// What lies at this path: a FIFO, as a rule.
    Path(PathBuf),
    /// The end of this file, which is made if need be.
    File(PathBuf),
    Program(Program),
}

/// A program that takes the output.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) args: Vec<OsString>,
    /// An end without the byte that says so does not count as ready.
    pub(super) says_when_ready: bool,
}

/// Understands the name of `stream`, which is one of `stdin`, `stdout` and `stderr`.
pub(super) fn parse(stream: &str, name: &str) -> Result<Place> {
    place(name).with_context(|| format!("cannot use `{name}` for {stream}"))
}

fn place(name: &str) -> Result<Place> {
    if name.is_empty() {
        return Ok(Place::Nowhere);
    }
    let Some((scheme, rest)) = name.split_once("://").filter(|_| !name.starts_with('/')) else {
        return absolute(name.into()).map(Place::Path);
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = || absolute(decode(path, false)?.into());
    match scheme {
        "fifo" => path().map(Place::Path),
        "file" => path().map(Place::File),
        "binary" | "binary-v2" => Ok(Place::Program(Program {
            path: path()?,
            args: arguments(query)?,
            says_when_ready: scheme == "binary-v2",
        })),
        _ if scheme.starts_with("ttrpc+") => Err(Error::invalid_argument(
            "this shim does not stream over a socket; use FIFOs, `file://` or `binary://`",
        )),
        _ => Err(Error::invalid_argument(format!(
            "there is no scheme `{scheme}`; use a FIFO's path, `file://`, `binary://` or `binary-v2://`"
        ))),
    }
}

fn absolute(path: PathBuf) -> Result<PathBuf> {
    if path.is_absolute() { Ok(path) } else { Err(Error::invalid_argument("it names no absolute path")) }
}

/// The key and the value of each pair, in their order. Of several values of a key the first counts, as for
/// containerd's own shims (contract 11.5).
fn arguments(query: &str) -> Result<Vec<OsString>> {
    let mut keys = Vec::new();
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = decode(key, true)?;
        if !keys.contains(&key) {
            keys.push(key.clone());
            arguments.extend([key, decode(value, true)?]);
        }
    }
    Ok(arguments)
}

/// Undoes percent-encoding; in a query a plus sign is a space.
fn decode(text: &str, in_query: bool) -> Result<OsString> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = [bytes.next(), bytes.next()].map(|digit| (digit? as char).to_digit(16));
                let [Some(high), Some(low)] = digits else {
                    return Err(Error::invalid_argument(format!("`{text}` has a `%` without two digits")));
                };
                (high * 16 + low) as u8
            }
            b'+' if in_query => b' ',
            byte => byte,
        });
    }
    Ok(OsString::from_vec(decoded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str) -> (PathBuf, Vec<String>, bool) {
        match parse("stdout", name).unwrap() {
            Place::Program(Program { path, args, says_when_ready }) => {
                let args = args.into_iter().map(|arg| arg.into_string().unwrap()).collect();
                (path, args, says_when_ready)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_path_is_taken_as_it_is_and_a_uri_is_decoded() {
        let parse = |name| parse("stdout", name).unwrap();
        assert_eq!(parse(""), Place::Nowhere);
        assert_eq!(parse("/run/a%20b://c"), Place::Path("/run/a%20b://c".into()));
        assert_eq!(parse("fifo:///run/a%20b"), Place::Path("/run/a b".into()));
        assert_eq!(parse("file:///var/log/a%2fb+c"), Place::File("/var/log/a/b+c".into()));
    }

    #[test]
    fn a_program_gets_each_key_and_its_first_value_in_their_order() {
        assert_eq!(
            program("binary:///bin/log?--tag=a+b&z&--tag=c&x=%26"),
            ("/bin/log".into(), ["--tag", "a b", "z", "", "x", "&"].map(str::to_owned).to_vec(), false)
        );
        assert_eq!(program("binary-v2:///bin/log"), ("/bin/log".into(), vec![], true));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (name, why) in [
            ("ttrpc+unix:///run/s?streaming_id=x", "does not stream over a socket"),
            ("http://host/x", "no scheme `http`"),
            ("file://host", "no absolute path"),
            ("logs/out", "no absolute path"),
            ("file:///a%2", "without two digits"),
        ] {
            let error = parse("stdout", name).unwrap_err();
            assert_eq!(error.code(), crate::Code::InvalidArgument);
            let message = error.to_string();
            assert!(message.contains(&format!("cannot use `{name}` for stdout")), "{message}");
            assert!(message.contains(why), "{message}");
        }
    }
}

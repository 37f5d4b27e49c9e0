//! Reads the attribute's options into [`Args`]: their names and the shape of their values. What a value may be is
//! for `validate` to say. A wrong option is skipped to the next comma, so that one mistake hides no other.

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::ext::IdentExt as _;
use syn::parse::{Nothing, Parse, ParseStream, Parser as _};
use syn::{Ident, Lit, LitBool, LitStr, Path, Result, Token, bracketed, token};

use crate::errors::Errors;
use crate::suggest;

/// The options as written; `None` for what was not given, or not well enough to be read.
#[derive(Default)]
pub(crate) struct Args {
    pub(crate) runtime: Option<LitStr>,
    pub(crate) version: Option<LitStr>,
    pub(crate) task: Option<List>,
    pub(crate) group: Option<List>,
    pub(crate) shutdown_on: Option<List>,
    pub(crate) reaper: Option<LitBool>,
    pub(crate) subreaper: Option<LitBool>,
    pub(crate) logger: Option<LitBool>,
    pub(crate) raw: Option<Nothing>,
    pub(crate) krate: Option<Path>,
    /// The author has a `main`, or has tried to say so.
    pub(crate) own_main: bool,
}

/// A list in brackets, cut at its commas.
pub(crate) struct List {
    pub(crate) span: Span,
    pub(crate) elements: Vec<TokenStream>,
}

/// An option: its name, what is expected as its value (nothing for a flag), an example, and how to read it.
type Opt = (&'static str, &'static str, &'static str, fn(&mut Args, ParseStream) -> Result<()>);

const BOOL: &str = "`true` or `false`";

/// A further option is a line here and a field in [`Args`].
const OPTIONS: &[Opt] = &[
    ("runtime", "a string", r#""io.containerd.hello.v1""#, |args, input| put(&mut args.runtime, input)),
    ("version", "a string", r#""1.2.3""#, |args, input| put(&mut args.version, input)),
    ("task", "a list of versions", "[2, 3]", |args, input| put(&mut args.task, input)),
    ("group", "a list of labels", r#"["com.example.group"]"#, |args, input| put(&mut args.group, input)),
    ("shutdown_on", "a list of signals", "[SIGTERM]", |args, input| put(&mut args.shutdown_on, input)),
    ("reaper", BOOL, "false", |args, input| put(&mut args.reaper, input)),
    ("subreaper", BOOL, "false", |args, input| put(&mut args.subreaper, input)),
    ("logger", BOOL, "false", |args, input| put(&mut args.logger, input)),
    ("main", BOOL, "false", main),
    ("raw", "", "", |args, input| put(&mut args.raw, input)),
    ("crate", "a path without quotes", "::my_reexport::shim_runtime", |args, input| {
        input.call(Path::parse_mod_style).map(|path| args.krate = Some(path))
    }),
];

/// Names that options once had or have elsewhere, and what to write in their place.
const RENAMED: &[(&str, &str)] = &[
    ("name", r#"runtime = "io.containerd.hello.v1""#),
    ("no_main", "main = false"),
    ("no_reaper", "reaper = false"),
    ("no_sub_reaper", "subreaper = false"),
    ("no_setup_logger", "logger = false"),
];

fn put<T: Parse>(slot: &mut Option<T>, input: ParseStream) -> Result<()> {
    input.parse().map(|value| *slot = Some(value))
}

fn main(args: &mut Args, input: ParseStream) -> Result<()> {
    // What cannot be read was most likely meant for `false`: a second `main` would only be noise.
    args.own_main = true;
    input.parse().map(|generate: LitBool| args.own_main = !generate.value())
}

/// How an option is written, for messages.
pub(crate) fn usage(name: &str) -> String {
    let example = OPTIONS.iter().find(|option| option.0 == name).map_or("", |option| option.2);
    format!("`{name} = {example}`")
}

/// Reads all options and reports each that is unknown, repeated, misshapen or missing.
pub(crate) fn parse(tokens: TokenStream, errors: &mut Errors) -> Args {
    let mut args = Args::default();
    let mut seen = Vec::new();
    let options = |input: ParseStream| {
        while !input.is_empty() {
            option(input, &mut args, &mut seen, errors);
            separator(input, errors);
        }
        Ok(())
    };
    if let Err(error) = options.parse2(tokens) {
        errors.push(error);
    }
    if !seen.contains(&"runtime") {
        let message = "missing `runtime`; write `#[containerd_shim(runtime = \"io.containerd.NAME.v1\")]`";
        errors.at(TokenStream::new(), message);
    }
    args
}

fn option(input: ParseStream, args: &mut Args, seen: &mut Vec<&'static str>, errors: &mut Errors) {
    let Ok(key) = input.call(Ident::parse_any) else {
        return nameless(input, seen, errors);
    };
    let name = key.unraw().to_string();
    if let Some(option) = OPTIONS.iter().find(|option| option.0 == name) {
        if !seen.contains(&option.0) {
            seen.push(option.0);
            return value(option, &key, input, args, errors);
        }
        errors.at(&key, format!("duplicate `{name}`; keep one of them"));
    } else if let Some((_, now)) = RENAMED.iter().find(|(old, _)| *old == name) {
        args.own_main |= name == "no_main";
        // An option that was meant is not missing as well.
        seen.extend(now.starts_with("runtime").then_some("runtime"));
        errors.at(&key, format!("write `{now}` in place of `{name}`"));
    } else {
        let known: Vec<&str> = OPTIONS.iter().map(|option| option.0).collect();
        seen.extend(suggest::closest(&name, &known));
        errors.at(&key, format!("unknown option `{name}`; {}", suggest::instead_of(&name, &known)));
    }
    until_separator(input);
}

/// Reports something in the place of an option that does not start with a name.
fn nameless(input: ParseStream, seen: &mut Vec<&'static str>, errors: &mut Errors) {
    let next: Option<TokenTree> = input.fork().parse().ok();
    if let Ok(Lit::Str(value)) = input.fork().parse() {
        seen.push("runtime");
        errors.at(&value, format!("options are named; write `runtime = {}`", value.token()));
    } else if !input.peek(Token![;]) {
        errors.at(next, format!("expected an option, as in {}", usage("runtime")));
    }
    until_separator(input);
}

/// Reads what follows the key of a known option.
fn value(
    &(name, expects, _, read): &Opt,
    key: &Ident,
    input: ParseStream,
    args: &mut Args,
    errors: &mut Errors,
) {
    let is_flag = expects.is_empty();
    if is_flag && (input.peek(Token![=]) || input.peek(token::Paren)) {
        errors.at(
            until_separator(input),
            format!("`{name}` is a flag and takes no value; write `{name}` alone, or leave it out"),
        );
    }
    let equals = input.parse::<Token![=]>();
    let ahead = input.fork();
    if !is_flag && (equals.is_err() || until_separator(&input.fork()).is_empty()) {
        until_separator(input);
        errors.at(key, format!("`{name}` needs a value, as in {}", usage(name)));
    } else if read(args, input).is_err() {
        until_separator(input);
        errors.at(until_separator(&ahead), format!("expected {expects}, as in {}", usage(name)));
    }
}

/// Demands a comma, and goes on where the author most likely thought there was one.
fn separator(input: ParseStream, errors: &mut Errors) {
    if input.is_empty() || input.parse::<Token![,]>().is_ok() {
        return;
    }
    let next: Option<TokenTree> = input.fork().parse().ok();
    errors.at(next, "expected `,` between options");
    if !input.peek(Ident::peek_any) {
        until_separator(input);
        let _skipped: Option<TokenTree> = input.parse().ok();
    }
}

/// Takes everything up to the next comma, or to what was meant to stand behind one.
fn until_separator(input: ParseStream) -> TokenStream {
    let mut tokens = TokenStream::new();
    let at_next_option = || input.peek(Ident::peek_any) && input.peek2(Token![=]);
    while !input.is_empty() && !input.peek(Token![,]) && !input.peek(Token![;]) && !at_next_option() {
        tokens.extend(input.parse::<TokenTree>());
    }
    tokens
}

impl Parse for List {
    fn parse(input: ParseStream) -> Result<Self> {
        let content;
        let span = bracketed!(content in input).span.join();
        let mut elements = Vec::new();
        while !content.is_empty() {
            let element = until_separator(&content);
            let separator: Option<TokenTree> = content.parse().ok();
            // What is no separator, or stands for an element, is kept as an element that fits nowhere.
            let wrong = separator.filter(|token| element.is_empty() || token.to_string() == ";");
            elements.extend(
                [element, wrong.into_iter().collect()].into_iter().filter(|tokens| !tokens.is_empty()),
            );
        }
        Ok(Self { span, elements })
    }
}

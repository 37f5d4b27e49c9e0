//! The stages one by one, on tokens that no compiler has made.

mod args;
mod expand;
mod expansions;
mod item;
mod suggest;
mod validate;

use proc_macro2::{TokenStream, TokenTree};
use syn::LitStr;

use crate::errors::Errors;

/// What was reported, in order.
fn messages(errors: Errors) -> Vec<String> {
    fn strings(tokens: TokenStream) -> Vec<String> {
        let each = |token| match token {
            TokenTree::Group(group) => strings(group.stream()),
            token => syn::parse2(token.into()).map(|text: LitStr| text.value()).into_iter().collect(),
        };
        tokens.into_iter().flat_map(each).collect()
    }
    strings(errors.into_compile_errors())
}

/// The options of an attribute, and what is wrong with them at the first look.
fn read(options: &str) -> (crate::args::Args, Errors) {
    let mut errors = Errors::default();
    let args = crate::args::parse(options.parse().unwrap(), &mut errors);
    (args, errors)
}

/// Everything that is wrong with the options of an attribute.
fn check(options: &str) -> Vec<String> {
    let (args, mut errors) = read(options);
    crate::validate::check(&args, &mut errors);
    messages(errors)
}

//! Reads the head of the annotated item: attributes, visibility, keyword, name and generics.
//! The body is never parsed: it goes through token for token, and rustc explains what is wrong in it.

use proc_macro2::TokenStream;
use syn::ext::IdentExt as _;
use syn::parse::{ParseStream, Parser as _};
use syn::{Attribute, Generics, Ident, LitStr, Result, Token, Visibility};

use crate::errors::Errors;

/// What the expansion needs to know of the annotated item.
#[derive(Default)]
pub(crate) struct Item {
    /// The `cfg`s below the attribute; what is generated stands and falls with the item.
    pub(crate) cfgs: Vec<Attribute>,
    /// The type's name; `None` for an item that cannot be a shim.
    pub(crate) name: Option<Ident>,
    /// The item is itself a function named `main`, beside which there must be no other.
    pub(crate) is_main: bool,
}

/// Reads the head of an item and reports one that cannot be a shim.
pub(crate) fn parse(tokens: TokenStream, errors: &mut Errors) -> Item {
    let mut item = Item::default();
    let item_and_body = |input: ParseStream| {
        let result = head(input, &mut item, errors);
        input.parse::<TokenStream>()?;
        result
    };
    if let Err(error) = item_and_body.parse2(tokens) {
        errors.push(error);
    }
    item
}

fn head(input: ParseStream, item: &mut Item, errors: &mut Errors) -> Result<()> {
    item.cfgs = input.call(Attribute::parse_outer)?;
    item.cfgs.retain(|attribute| attribute.path().is_ident("cfg"));
    input.parse::<Visibility>()?;
    let keyword = keyword(input)?;
    if keyword != "struct" && keyword != "enum" {
        item.is_main = keyword == "fn" && input.call(Ident::parse_any).is_ok_and(|name| name == "main");
        errors.at(&keyword, format!("#[containerd_shim] goes on {}", refusal(&keyword.to_string())));
        return Ok(());
    }
    let name = input.parse()?;
    let generics: Generics = input.parse()?;
    if generics.params.is_empty() {
        item.name = Some(name);
    } else {
        let message =
            "a shim cannot be generic: `main` has to name one concrete type; annotate a newtype around it";
        errors.at(generics, message);
    }
    Ok(())
}

/// The word that says what the item is, behind such as `unsafe`, `async` and `extern "C"`.
fn keyword(input: ParseStream) -> Result<Ident> {
    const QUALIFIERS: [&str; 6] = ["const", "async", "unsafe", "extern", "default", "auto"];
    let mut word = input.call(Ident::parse_any)?;
    while QUALIFIERS.iter().any(|qualifier| word == qualifier) {
        input.parse::<Option<LitStr>>()?;
        if !input.peek(Ident::peek_any) || input.peek2(Token![:]) {
            break;
        }
        word = input.call(Ident::parse_any)?;
    }
    Ok(word)
}

fn refusal(keyword: &str) -> &'static str {
    match keyword {
        "fn" => "a struct; the macro writes `main`, so move this function's body into `impl Shim for ...`",
        "impl" => "the struct, not on its impl block",
        "trait" => "the struct that implements `Shim`, not on a trait",
        "union" => "a struct; a union cannot be a shim",
        "mod" => "the struct inside the module, not on the module",
        _ => "a struct",
    }
}

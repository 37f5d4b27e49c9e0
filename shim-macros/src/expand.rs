//! Writes the expansion: the item untouched, one `impl Entry`, a `main` of one line.
//! Every path is absolute and every token of ours wears the attribute's span; the one exception is the type
//! `Level`, by which a missing `impl Shim` is reported under the name of the author's struct.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::quote;
use syn::Ident;

use crate::errors::Errors;
use crate::item::Item;
use crate::validate::Settings;

/// The expansion of an attribute without mistakes.
pub(crate) fn shim(
    tokens: &TokenStream,
    item: &Item,
    name: &Ident,
    own_main: bool,
    settings: &Settings,
) -> TokenStream {
    let krate = settings.krate.as_ref().map_or_else(|| quote!(::shim_runtime), |path| quote!(#path));
    let cfgs = &item.cfgs;
    // Means what the author's name means, but lies where the attribute stands.
    let mut at_attribute = name.clone();
    at_attribute.set_span(name.span().located_at(Span::call_site()));

    let level = if settings.raw { quote!(Raw) } else { quote!(Managed) };
    let level = shown_at(name, quote!(#krate::level::#level<#name>));
    let config = config(settings, &krate);
    // Where every field is given clippy calls the defaults needless, as if none could ever be added.
    let complete = matches!(
        settings,
        Settings { version: Some(_), task: Some(_), group: Some(_), shutdown_on: Some(_), .. }
    );
    let allow = complete.then(|| quote!(#[allow(clippy::needless_update)]));
    let main = (!own_main).then(|| {
        quote! {
            #(#cfgs)*
            fn main() -> ::std::process::ExitCode { #krate::run::<#at_attribute>() }
        }
    });
    quote! {
        #tokens
        #(#cfgs)*
        impl #krate::Entry for #at_attribute {
            type Level = #level;
            #allow
            const CONFIG: #krate::Config = #config;
        }
        #main
    }
}

/// Places both ends of a type at `name`: from one to the other rustc underlines a type whose bound is not met.
fn shown_at(name: &Ident, ty: TokenStream) -> TokenStream {
    let mut tokens: Vec<TokenTree> = ty.into_iter().collect();
    let start =
        tokens.iter().position(|token| matches!(token, TokenTree::Ident(_))).unwrap_or_default().max(1);
    let last = tokens.len() - 1;
    for (_, token) in tokens.iter_mut().enumerate().filter(|(at, _)| *at < start || *at == last) {
        token.set_span(token.span().located_at(name.span()));
    }
    tokens.into_iter().collect()
}

/// The configuration: only what was given, so that the defaults stay in one place, the runtime.
fn config(settings: &Settings, krate: &TokenStream) -> TokenStream {
    let runtime = &settings.runtime;
    // Read where the shim is compiled: the version of the shim's package, not of this one.
    let version = settings
        .version
        .as_ref()
        .map_or_else(|| quote!(::core::env!("CARGO_PKG_VERSION")), |version| quote!(#version));
    let task = settings.task.as_ref().map(|versions| quote!(task: &[#(#versions),*],));
    let group = settings.group.as_ref().map(|labels| quote!(group: &[#(#labels),*],));
    let shutdown_on =
        settings.shutdown_on.as_ref().map(|signals| quote!(shutdown_on: &[#(#krate::Signal::#signals),*],));
    quote! {
        #krate::Config {
            runtime: #runtime,
            version: #version,
            #task
            #group
            #shutdown_on
            ..#krate::Config::DEFAULT
        }
    }
}

/// What is left of an attribute with mistakes: the mistakes, and beside them the item and an empty `main`, so
/// that one typo is one message and the editor still knows the struct.
pub(crate) fn rejected(tokens: &TokenStream, item: &Item, own_main: bool, errors: Errors) -> TokenStream {
    let cfgs = &item.cfgs;
    let mistakes = errors.into_compile_errors();
    let main = (!own_main && !item.is_main).then(|| quote!(#(#cfgs)* fn main() {}));
    quote! {
        #tokens
        #mistakes
        #main
    }
}

#[cfg(test)]
#[path = "tests/expand.rs"]
mod tests;

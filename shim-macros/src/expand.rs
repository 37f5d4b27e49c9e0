//! Writes the expansion: the item untouched, one `impl Entry`, a `main` of one line.
//! Every path is absolute and every token of ours wears the attribute's span; the one exception is the type
//! `Level`, by which a missing `impl Shim` is reported under the name of the author's struct.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::{Ident, LitStr};

use crate::args::Args;
use crate::item::Item;
use crate::validate::Lists;

/// The expansion, of what could be read of the attribute.
pub(crate) fn shim(
    tokens: &TokenStream,
    item: &Item,
    name: &Ident,
    args: &Args,
    lists: &Lists,
) -> TokenStream {
    let krate = args.krate.as_ref().map_or_else(|| quote!(::shim_runtime), |path| quote!(#path));
    let cfgs = &item.cfgs;
    // Means what the author's name means, but lies where the attribute stands.
    let mut at_attribute = name.clone();
    at_attribute.set_span(name.span().located_at(Span::call_site()));

    let level = if args.raw.is_some() { quote!(Raw) } else { quote!(Managed) };
    let level = shown_at(name, quote!(#krate::level::#level<#name>));
    let config = config(args, lists, &krate);
    let main = (!args.own_main).then(|| {
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
            #config
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
fn config(args: &Args, lists: &Lists, krate: &TokenStream) -> TokenStream {
    let Args { runtime, version, reaper, subreaper, logger, .. } = args;
    let Lists { task, group, shutdown_on } = lists;
    let runtime = runtime.as_ref().map_or_else(|| quote!(""), LitStr::to_token_stream);
    // Read where the shim is compiled: the version of the shim's package, not of this one.
    let version =
        version.as_ref().map_or_else(|| quote!(::core::env!("CARGO_PKG_VERSION")), LitStr::to_token_stream);
    let options = [
        task.as_ref().map(|versions| quote!(task: &[#(#versions),*])),
        group.as_ref().map(|labels| quote!(group: &[#(#labels),*])),
        shutdown_on.as_ref().map(|signals| quote!(shutdown_on: &[#(#krate::Signal::#signals),*])),
        reaper.as_ref().map(|switch| quote!(reaper: #switch)),
        subreaper.as_ref().map(|switch| quote!(subreaper: #switch)),
        logger.as_ref().map(|switch| quote!(logger: #switch)),
    ];
    // Where every field is given clippy calls the defaults needless, as if none could ever be added.
    let allow = options.iter().all(Option::is_some).then(|| quote!(#[allow(clippy::needless_update)]));
    let options = options.iter().flatten();
    quote! {
        #allow
        const CONFIG: #krate::Config = #krate::Config {
            runtime: #runtime,
            version: #version,
            #(#options,)*
            ..#krate::Config::DEFAULT
        };
    }
}

/// What is left of an attribute with mistakes: the item and an empty `main`, so that the editor still knows the
/// struct and rustc reports no more than the mistakes.
pub(crate) fn rejected(tokens: &TokenStream, item: &Item, own_main: bool) -> TokenStream {
    let cfgs = &item.cfgs;
    let main = (!own_main && !item.is_main).then(|| quote!(#(#cfgs)* fn main() {}));
    quote!(#tokens #main)
}

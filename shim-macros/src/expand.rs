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
mod tests {
    use super::*;

    const ITEM: &str = "#[cfg(unix)] #[derive(Debug)] pub struct Host { place: String }";

    fn expand(attribute: &str, item: &str) -> TokenStream {
        crate::annotate(attribute.parse().unwrap_or_default(), &item.parse().unwrap_or_default())
    }

    fn assert_same(tokens: &TokenStream, expected: &str) {
        let packed = |text: &str| text.split_whitespace().collect::<String>();
        assert_eq!(packed(&tokens.to_string()), packed(expected));
    }

    #[test]
    fn the_expansion_is_the_item_one_impl_and_one_line_of_main() {
        assert_same(
            &expand(r#"runtime = "io.containerd.host.v1""#, "struct Host;"),
            r#"struct Host;
            impl ::shim_runtime::Entry for Host {
                type Level = ::shim_runtime::level::Managed<Host>;
                const CONFIG: ::shim_runtime::Config = ::shim_runtime::Config {
                    runtime: "io.containerd.host.v1",
                    version: ::core::env!("CARGO_PKG_VERSION"),
                    ..::shim_runtime::Config::DEFAULT
                };
            }
            fn main() -> ::std::process::ExitCode { ::shim_runtime::run::<Host>() }"#,
        );
    }

    #[test]
    fn every_option_has_its_place_and_cfgs_are_repeated() {
        let options = r#"runtime = "io.x.v1", version = "1", task = [2, 3], group = ["a"],
                         shutdown_on = [SIGTERM, SIGINT], main = false, raw, crate = crate::rt"#;
        assert_same(
            &expand(options, ITEM),
            r#"#[cfg(unix)] #[derive(Debug)] pub struct Host { place: String }
            #[cfg(unix)]
            impl crate::rt::Entry for Host {
                type Level = crate::rt::level::Raw<Host>;
                #[allow(clippy::needless_update)]
                const CONFIG: crate::rt::Config = crate::rt::Config {
                    runtime: "io.x.v1",
                    version: "1",
                    task: &[2, 3],
                    group: &["a"],
                    shutdown_on: &[crate::rt::Signal::TERM, crate::rt::Signal::INT],
                    ..crate::rt::Config::DEFAULT
                };
            }"#,
        );
    }

    #[test]
    fn a_mistake_leaves_the_item_and_an_empty_main() {
        let message = r#"::core::compile_error! { "duplicate `raw`" } #[cfg(unix)] fn main() {}"#;
        assert_same(&expand(r#"runtime = "io.x.v1", raw, raw"#, ITEM), &format!("{ITEM} {message}"));
        assert!(!expand("main = false", ITEM).to_string().contains("fn main"));
        assert_eq!(expand("", "fn main() {}").to_string().matches("fn main").count(), 1);
    }

    /// All tokens, groups opened, with the source that their span points at; `None` is the attribute itself.
    fn spans(tokens: TokenStream) -> Vec<(String, Option<String>)> {
        let each = |token| match token {
            TokenTree::Group(group) => spans(group.stream()),
            token => vec![(token.to_string(), token.span().source_text())],
        };
        tokens.into_iter().flat_map(each).collect()
    }

    #[test]
    fn user_tokens_keep_their_spans_and_nothing_else_wears_them() {
        let item = "struct Host { place: String }";
        let options =
            r#"runtime = "io.x.v1", version = "1", task = [2], shutdown_on = [SIGTERM], crate = ::rt"#;
        let tokens = spans(expand(options, item));
        let (item, ours) = tokens.split_at(spans(item.parse().unwrap_or_default()).len());
        assert!(item.iter().all(|(token, source)| source.as_ref() == Some(token)), "{item:?}");

        let words = ours.iter().filter(|(token, source)| source.is_some() && ![":", ">"].contains(&&**token));
        let (words, sources): (Vec<_>, Vec<_>) =
            words.cloned().map(|(token, source)| (token, source.unwrap_or_default())).unzip();
        assert_eq!(words, sources);
        assert_eq!(words.join(" "), r#"rt rt Host rt rt "io.x.v1" "1" 2 rt rt rt"#);
    }
}

use proc_macro2::{TokenStream, TokenTree};

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
                     shutdown_on = [SIGTERM, SIGINT], reaper = false, subreaper = false, logger = true,
                     main = false, raw, crate = crate::rt"#;
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
                reaper: false,
                subreaper: false,
                logger: true,
                ..crate::rt::Config::DEFAULT
            };
        }"#,
    );
}

#[test]
fn a_mistake_leaves_the_item_and_an_empty_main() {
    let rest = r#"#[cfg(unix)] fn main() {} ::core::compile_error! { "duplicate `raw`; keep one of them" }"#;
    assert_same(&expand(r#"runtime = "io.x.v1", raw, raw"#, ITEM), &format!("{ITEM} {rest}"));
    assert_eq!(expand("", "fn main() {}").to_string().matches("fn main").count(), 1);
}

#[test]
fn after_a_mistake_an_authors_own_main_still_has_a_shim_to_run() {
    let expansion = expand("main = false, raw", ITEM).to_string();
    let has = |part| expansion.contains(part);
    assert!(has("missing `runtime`") && has("level :: Raw < Host >") && !has("fn main"), "{expansion}");
    assert!(!expand("main = false", "struct Host<T>(T);").to_string().contains("Entry"));
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
    let options = r#"runtime = "io.x.v1", version = "1", task = [2], shutdown_on = [SIGTERM], raw, reaper = false,
                     crate = ::rt"#;
    let tokens = spans(expand(options, item));
    let (item, ours) = tokens.split_at(spans(item.parse().unwrap_or_default()).len());
    assert!(item.iter().all(|(token, source)| source.as_ref() == Some(token)), "{item:?}");

    // The one exception: from the first to the last token of the level's type rustc underlines the name.
    let by_name = |token: &str| ours.contains(&(token.to_owned(), Some("Host".to_owned())));
    assert!(by_name(":") && by_name(">"));

    let words = ours.iter().filter(|(token, source)| source.is_some() && ![":", ">"].contains(&&**token));
    let (words, sources): (Vec<_>, Vec<_>) =
        words.cloned().map(|(token, source)| (token, source.unwrap_or_default())).unzip();
    assert_eq!(words, sources);
    assert_eq!(words.join(" "), r#"rt rt Host rt rt "io.x.v1" "1" 2 rt false rt rt"#);
}

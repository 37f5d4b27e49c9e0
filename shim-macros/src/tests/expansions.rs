//! Keeps beside each example, in `expanded.rs`, what the attribute makes of it.

use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::TokenStream;
use quote::ToTokens as _;
use syn::{Attribute, Item};

/// Rewrites what this test compares.
const BLESS: &str = "BLESS=1 cargo test -p shim-macros expansions";

#[test]
fn the_expansions_beside_the_examples_are_what_the_attribute_makes_of_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut stale = Vec::new();
    for example in entries(&root.join("examples")) {
        let sources = sources(&example.join("src"));
        let expansions: Vec<_> = sources.iter().filter_map(|source| expansion(&example, source)).collect();
        let (made, path) = (expansions.join("\n"), example.join("expanded.rs"));
        if made == fs::read_to_string(&path).unwrap_or_default() {
            continue;
        }
        if std::env::var_os("BLESS").is_none() {
            stale.push(path.strip_prefix(root).unwrap().to_owned());
        } else if made.is_empty() {
            fs::remove_file(path).unwrap();
        } else {
            fs::write(path, made).unwrap();
        }
    }
    assert!(stale.is_empty(), "no longer, or not yet, what the attribute makes: {stale:?}; run `{BLESS}`");
}

/// The expansion of what is annotated in a file, nothing where nothing is.
fn expansion(example: &Path, source: &Path) -> Option<String> {
    let file = syn::parse_file(&fs::read_to_string(source).unwrap()).unwrap();
    let expanded: TokenStream = file.items.into_iter().filter_map(expand).collect();
    if expanded.is_empty() {
        return None;
    }
    let source = source.strip_prefix(example).unwrap().display();
    let code = prettyplease::unparse(&syn::parse2(expanded).unwrap());
    Some(format!(
        "// What the attribute makes of `{source}`; not compiled, written by\n// `{BLESS}`.\n\n{code}"
    ))
}

fn expand(mut item: Item) -> Option<TokenStream> {
    let attributes = match &mut item {
        Item::Struct(item) => &mut item.attrs,
        Item::Enum(item) => &mut item.attrs,
        _ => return None,
    };
    let ours = |attribute: &Attribute| {
        attribute.path().segments.last().is_some_and(|last| last.ident == "containerd_shim")
    };
    let attribute = attributes.remove(attributes.iter().position(ours)?);
    let options = attribute.meta.require_list().unwrap().tokens.clone();
    Some(crate::annotate(options, &item.to_token_stream()))
}

/// All Rust files below a folder, in a fixed order.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let (folders, mut files): (Vec<_>, Vec<_>) = entries(folder).into_iter().partition(|path| path.is_dir());
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.extend(folders.iter().flat_map(|folder| sources(folder)));
    files
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

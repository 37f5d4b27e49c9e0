use super::messages;
use crate::errors::Errors;
use crate::item::{Item, parse};

fn read(source: &str) -> (Item, Vec<String>) {
    let mut errors = Errors::default();
    let item = parse(source.parse().unwrap_or_default(), &mut errors);
    (item, messages(errors))
}

#[test]
fn the_body_is_not_looked_at() {
    let (item, errors) = read("#[cfg(unix)] /** Doc. */ #[derive(Debug)] pub(crate) struct Host { a: !?! }");
    assert_eq!(item.name.map(|name| name.to_string()).as_deref(), Some("Host"));
    assert_eq!((item.cfgs.len(), errors.len()), (1, 0));
}

#[test]
fn every_other_kind_of_item_is_refused_whatever_stands_before_its_keyword() {
    for (source, place) in [
        (
            "pub const unsafe extern \"C\" fn main() {}",
            "a struct; the macro writes `main`, so move this function's body into `impl Shim for ...`",
        ),
        ("unsafe impl Send for Host {}", "the struct, not on its impl block"),
        ("pub unsafe auto trait Host {}", "the struct that implements `Shim`, not on a trait"),
        ("union Host { a: u8 }", "a struct; a union cannot be a shim"),
        ("const HOST: u8 = 1;", "a struct"),
        ("extern \"C\" {}", "a struct"),
    ] {
        let (item, errors) = read(source);
        assert_eq!(errors, [format!("#[containerd_shim] goes on {place}")], "{source}");
        assert_eq!((item.name.is_some(), item.is_main), (false, source.contains("main")));
    }
}

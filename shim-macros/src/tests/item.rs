use super::*;

fn read(source: &str) -> (Item, Vec<String>) {
    let mut errors = Errors::default();
    let item = parse(source.parse().unwrap_or_default(), &mut errors);
    (item, errors.messages())
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
        ("pub const unsafe extern \"C\" fn main() {}", refusal("fn")),
        ("unsafe impl Send for Host {}", refusal("impl")),
        ("pub unsafe auto trait Host {}", refusal("trait")),
        ("union Host { a: u8 }", refusal("union")),
        ("const HOST: u8 = 1;", refusal("const")),
        ("extern \"C\" {}", refusal("extern")),
    ] {
        let (item, errors) = read(source);
        assert_eq!(errors, [format!("#[containerd_shim] goes on {place}")], "{source}");
        assert_eq!((item.name.is_some(), item.is_main), (false, source.contains("main")));
    }
}

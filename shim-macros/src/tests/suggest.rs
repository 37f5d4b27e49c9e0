use crate::suggest::{closest, instead_of};

#[test]
fn a_slip_finds_its_word_and_another_word_gets_the_whole_choice() {
    assert_eq!(closest("runtme", &["version", "runtime"]), Some("runtime"));
    assert_eq!(closest("sigtrem", &["SIGHUP", "SIGTERM"]), Some("SIGTERM"));
    assert_eq!(instead_of("colour", &["runtime", "raw"]), "expected one of `runtime`, `raw`");
}

//! The structure of the runtime crate: rooms (the modules of the crate) on floors, as CONTRIBUTING.md lists them. A
//! room uses only its own floor and those below, and no two rooms use each other. One name means one type.

#![expect(clippy::expect_used, reason = "a step that fails is a test that fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use integration::workspace;

/// The floor of each room, from the table of CONTRIBUTING.md whose rows begin with a number.
fn floors() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(workspace::root().join("CONTRIBUTING.md")).expect("read CONTRIBUTING.md");
    let mut floors = BTreeMap::new();
    for line in text.lines() {
        let mut cells = line.trim_matches('|').splitn(2, '|').map(str::trim);
        let floor = cells.next().and_then(|cell| cell.parse().ok());
        let (Some(floor), Some(rooms)) = (floor, cells.next()) else { continue };
        // Names are in backticks, with words for people between them.
        for room in rooms.split('`').skip(1).step_by(2) {
            let before = floors.insert(room.to_owned(), floor);
            assert_eq!(before, None, "CONTRIBUTING.md has the room `{room}` twice");
        }
    }
    floors
}

fn source() -> PathBuf {
    workspace::root().join("shim-runtime/src")
}

/// All Rust files below a folder, or the file itself.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries =
        fs::read_dir(path).expect("list a folder").map(|entry| entry.expect("list a folder").path());
    let found = entries.flat_map(|entry| if entry.is_dir() { files(&entry) } else { vec![entry] });
    found.filter(|file| file.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// A file without its comments and without its tests, which may reach wherever they need to.
fn code(file: &Path) -> String {
    if file.file_name().is_some_and(|name| name == "tests.rs") {
        return String::new();
    }
    let text = fs::read_to_string(file).expect("read a source file");
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The rooms that a piece of code names after `crate::`, alone or in braces.
fn uses(code: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (_, rest) in code.match_indices("crate::").map(|(at, name)| (at, &code[at + name.len()..])) {
        let Some(inside) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let mut depth = 1;
        let mut begins = true;
        for (at, c) in inside.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => begins = true,
                c if c.is_whitespace() => {}
                _ if begins && depth == 1 => {
                    found.insert(word(&inside[at..]));
                    begins = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

/// Which rooms each room uses.
fn plan() -> BTreeMap<String, BTreeSet<String>> {
    let entries = fs::read_dir(source()).expect("list the sources").map(|entry| entry.expect("list").path());
    let mut plan = BTreeMap::new();
    for entry in entries {
        let room = entry.file_stem().expect("a name").to_string_lossy().into_owned();
        if room != "lib" {
            let used: BTreeSet<_> = files(&entry).iter().flat_map(|file| uses(&code(file))).collect();
            plan.insert(room, used);
        }
    }
    plan
}

#[test]
fn every_room_has_its_floor_and_uses_none_above_it() {
    let (floors, plan) = (floors(), plan());
    let listed: BTreeSet<_> = floors.keys().collect();
    let built: BTreeSet<_> = plan.keys().collect();
    assert_eq!(listed, built, "CONTRIBUTING.md lists other rooms than `shim-runtime/src` has");
    for (room, used) in &plan {
        for below in used.iter().filter(|used| plan.contains_key(*used)) {
            assert!(
                floors[below] <= floors[room],
                "`{room}` (floor {}) uses `{below}` above it",
                floors[room]
            );
        }
    }
}

#[test]
fn no_rooms_use_each_other_not_even_by_way_of_others() {
    let plan = plan();
    for room in plan.keys() {
        let mut reached = BTreeSet::new();
        let mut open: Vec<&String> = plan[room].iter().filter(|used| *used != room).collect();
        while let Some(next) = open.pop() {
            if plan.contains_key(next) && reached.insert(next) {
                open.extend(&plan[next]);
            }
        }
        assert!(!reached.contains(room), "`{room}` is used by a room that it uses, one of {reached:?}");
    }
}

#[test]
fn imports_are_found_alone_and_in_braces() {
    let code =
        "use crate::error::Error;\nuse crate::{sys, api::{Any, Call}, wire::Client as Other};\ncrate::a()";
    assert_eq!(uses(code).into_iter().collect::<Vec<_>>(), ["a", "api", "error", "sys", "wire"]);
}

//! Which names containerd can make a binary's name of (contract 1). `shimctl` takes this file too, so it knows
//! nothing of tokens.

/// containerd looks for the binary `containerd-shim-A-B`, where `A` and `B` are the last two parts of the name.
pub(super) fn check(name: &str) -> Result<(), String> {
    if name.contains('/') {
        return Err(format!("a runtime name is not a path; write the dotted name, as in {}", example(name)));
    }
    if let Some(wrong) = name.chars().find(|c| !c.is_ascii_alphanumeric() && !"-_.".contains(*c)) {
        let wrong = wrong.escape_debug();
        return Err(format!(
            "`{wrong}` cannot stand in a runtime name; use ASCII letters, digits, `-`, `_` and `.`"
        ));
    }
    let parts: Vec<&str> = name.split('.').collect();
    let &[.., kind, version] = parts.as_slice() else {
        return Err(format!("a runtime name has at least two dotted parts, as in {}", example(name)));
    };
    if parts.contains(&"") {
        return Err("a runtime name cannot have an empty part between dots".to_owned());
    }
    if is_version(version) {
        return Ok(());
    }
    let fixed = format!("v{}", version.trim_start_matches(['v', 'V']));
    let meant = match name.strip_suffix(version) {
        Some(stem) if is_version(&fixed) => format!("{stem}{fixed}"),
        _ => format!("{name}.v1"),
    };
    Err(format!(
        "the last part of a runtime name is its version: containerd would look for \
         `containerd-shim-{kind}-{version}`; did you mean \"{meant}\"?"
    ))
}

/// A `v` and a number; what follows is free, as in `v2-rs`.
fn is_version(part: &str) -> bool {
    part.strip_prefix('v').is_some_and(|number| number.starts_with(|first: char| first.is_ascii_digit()))
}

/// A runtime name for someone who wrote a path, the name of a binary, or one word.
fn example(name: &str) -> String {
    let file = name.rsplit('/').next().unwrap_or_default();
    let kind = file.strip_prefix("containerd-shim-").unwrap_or(file);
    let parts = kind.rsplit_once('-').filter(|(_, version)| is_version(version)).unwrap_or((kind, "v1"));
    let usable = !kind.is_empty() && kind.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    let (kind, version) = if usable { parts } else { ("hello", "v1") };
    format!("\"io.containerd.{kind}.{version}\"")
}

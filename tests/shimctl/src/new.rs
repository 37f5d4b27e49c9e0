//! `shimctl new`: writes a project that is a shim already. The templates are real files with the names of a
//! runtime `io.containerd.hello.v1` in them, which are all that is replaced.

use std::fs::{self, DirBuilder};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

/// The rules and words of the attribute.
#[path = "../../../shim-macros/src/validate/runtime_name.rs"]
mod runtime_name;

/// Write a new project that builds a shim
///
/// The project is a crate of its own with a shim that works, tests of its struct and of its binary, a README,
/// and the settings for a small static binary. Nothing is written when something is wrong.
#[derive(Args)]
pub(crate) struct New {
    /// The runtime's name: `io.containerd.NAME.vN` gives the binary `containerd-shim-NAME-vN`
    runtime: String,
    /// What a container is: `host` (a process), `thread` (a thread of the shim), `oci` (one of `runc` or an engine
    /// like it), `raw` (all calls by hand)
    #[arg(long, default_value = "host")]
    kind: String,
    /// Depend on the `shim-runtime` in this checkout of its workspace, instead of a release
    #[arg(long, value_name = "WORKSPACE")]
    path: Option<PathBuf>,
    /// The folder to write; `containerd-shim-NAME-vN` in the working directory unless told
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// The names in the templates.
const RUNTIME: &str = "io.containerd.hello.v1";
const BINARY: &str = "containerd-shim-hello-v1";
const STRUCT: &str = "HelloRuntime";
/// The crates that the templates depend on, as they do, and where each lies in this workspace.
const RUNTIME_CRATE: Crate = Crate {
    line: "shim-runtime = { version = \"0.1\", features = [\"plain-stack-overflow\"] }",
    name: "shim-runtime",
    folder: "shim-runtime",
};
const TESTING_CRATE: Crate =
    Crate { line: "shim-testing = \"0.1\"", name: "shim-testing", folder: "tests/shim-testing" };

/// A crate that generated projects depend on.
struct Crate {
    /// The line of the template's manifest.
    line: &'static str,
    name: &'static str,
    folder: &'static str,
}

/// Path and text of each file that all kinds have.
const SHARED: [(&str, &str); 6] = [
    ("Cargo.toml", include_str!("../templates/all/Cargo.toml")),
    ("README.md", include_str!("../templates/all/README.md")),
    ("clippy.toml", include_str!("../templates/all/clippy.toml")),
    // Keeps the settings of folders above away.
    ("rustfmt.toml", include_str!("../templates/all/rustfmt.toml")),
    (".gitignore", include_str!("../templates/all/gitignore")),
    // This workspace's own.
    (".cargo/config.toml", include_str!("../../../.cargo/config.toml")),
];

/// What sets the projects of a kind apart.
struct Kind {
    name: &'static str,
    /// The runtime's feature that its shim needs.
    feature: Option<&'static str>,
    files: [(&'static str, &'static str); 2],
}

/// The files of a kind, which have the same names in each.
macro_rules! files {
    ($kind:literal) => {
        [
            ("src/main.rs", include_str!(concat!("../templates/", $kind, "/main.rs"))),
            ("tests/containerd.rs", include_str!(concat!("../templates/", $kind, "/containerd.rs"))),
        ]
    };
}

const KINDS: [Kind; 4] = [
    Kind { name: "host", feature: None, files: files!("host") },
    Kind { name: "thread", feature: None, files: files!("thread") },
    Kind { name: "raw", feature: None, files: files!("raw") },
    Kind { name: "oci", feature: Some("oci"), files: files!("oci") },
];

/// Runs the command.
pub(crate) fn new(new: &New) -> ExitCode {
    match generate(new) {
        Ok(dir) => {
            println!("wrote `{}`; try `cargo test` there", dir.display());
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("shimctl: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn generate(new: &New) -> Result<PathBuf, String> {
    let mut project = Project::new(&new.runtime, new.path.as_deref())?;
    let kind = find(&new.kind)?;
    project.feature = kind.feature;
    let files: Vec<_> = SHARED.iter().chain(&kind.files).copied().collect();
    let dir = new.dir.clone().unwrap_or_else(|| PathBuf::from(&project.binary));
    if dir.symlink_metadata().is_ok() {
        return Err(format!("`{}` exists; remove it, or name another folder by `--dir`", dir.display()));
    }
    // Whole or not at all, whatever happens on the way.
    let name = dir.file_name().ok_or_else(|| format!("`{}` names no new folder", dir.display()))?;
    let part = dir.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let written = project.write(&part, &files).and_then(|()| fs::rename(&part, &dir));
    written.map_err(|error| {
        let _ = fs::remove_dir_all(&part);
        format!("cannot write `{}`: {error}", dir.display())
    })?;
    Ok(dir)
}

fn find(kind: &str) -> Result<&'static Kind, String> {
    let found = KINDS.iter().find(|known| known.name == kind);
    found.ok_or_else(|| format!("unknown kind `{kind}`; write `host`, `thread`, `oci` or `raw`"))
}

/// What the names in the templates are replaced by.
struct Project {
    runtime: String,
    binary: String,
    name: String,
    /// The checkout to depend on instead of a release.
    workspace: Option<PathBuf>,
    feature: Option<&'static str>,
}

impl Project {
    fn new(runtime: &str, path: Option<&Path>) -> Result<Self, String> {
        runtime_name::check(runtime)?;
        let mut parts = runtime.rsplit('.');
        let (version, kind) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let binary = format!("containerd-shim-{kind}-{version}");
        let workspace = path.map(checkout).transpose()?;
        Ok(Self { runtime: runtime.to_owned(), binary, name: struct_name(kind), workspace, feature: None })
    }

    fn text(&self, template: &str) -> String {
        let mut text = template.replace(RUNTIME, &self.runtime).replace(BINARY, &self.binary);
        text = text.replace(STRUCT, &self.name);
        let features = self.feature.map(|feature| format!("\"{feature}\", ")).unwrap_or_default();
        let features = format!(", features = [{features}\"plain-stack-overflow\"]");
        text = text.replace(RUNTIME_CRATE.line, &self.dependency(&RUNTIME_CRATE, &features));
        if self.workspace.is_some() {
            text = text.replace(TESTING_CRATE.line, &self.dependency(&TESTING_CRATE, ""));
        }
        text
    }

    /// A line of the manifest; `features` is what follows the source.
    fn dependency(&self, on: &Crate, features: &str) -> String {
        let source = self.workspace.as_ref().map_or_else(
            || "version = \"0.1\"".to_owned(),
            // TOML quotes and escapes a string as JSON does.
            |workspace| format!("path = {}", Value::from(workspace.join(on.folder).to_string_lossy())),
        );
        format!("{} = {{ {source}{features} }}", on.name)
    }

    fn write(&self, dir: &Path, files: &[(&str, &str)]) -> std::io::Result<()> {
        DirBuilder::new().create(dir)?;
        for (path, template) in files {
            let path = dir.join(path);
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::write(path, self.text(template))?;
        }
        Ok(())
    }
}

/// The folder of a checkout of this workspace. Its name must be text, which is all that a manifest can hold.
fn checkout(workspace: &Path) -> Result<PathBuf, String> {
    let found = workspace.canonicalize().ok();
    let found = found.filter(|dir| dir.join(RUNTIME_CRATE.folder).join("Cargo.toml").is_file());
    let found = found.filter(|dir| dir.to_str().is_some());
    found.ok_or_else(|| {
        let workspace = workspace.display();
        format!("no `shim-runtime` in `{workspace}`; `--path` takes the folder of its workspace")
    })
}

/// `my-vm` makes `MyVmRuntime`, which no name of the prelude is like.
fn struct_name(kind: &str) -> String {
    let words = kind.split(['-', '_']).filter_map(|word| word.split_at_checked(1));
    let name: String = words.map(|(first, rest)| first.to_uppercase() + rest).collect();
    let before = if name.starts_with(|first: char| first.is_ascii_digit()) { "Shim" } else { "" };
    format!("{before}{name}Runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_runtime_name_makes_the_name_of_a_struct() {
        for (kind, name) in [
            ("hello", "HelloRuntime"),
            ("my-vm", "MyVmRuntime"),
            ("my_2nd-vm", "My2ndVmRuntime"),
            ("2fast", "Shim2fastRuntime"),
            ("--", "Runtime"),
            ("process", "ProcessRuntime"),
        ] {
            assert_eq!(struct_name(kind), name);
        }
    }

    #[test]
    fn the_names_of_the_templates_are_all_replaced() {
        let project = Project::new("io.containerd.my-vm.v2-rs", None).unwrap();
        for (path, template) in SHARED.iter().chain(KINDS.iter().flat_map(|kind| &kind.files)) {
            let text = project.text(template);
            assert!(!text.contains("hello.v1") && !text.contains("hello-v1"), "{path}: {text}");
            assert!(!text.contains(STRUCT), "{path}: {text}");
        }
        assert!(project.text(SHARED[0].1).contains("name = \"containerd-shim-my-vm-v2-rs\""));
    }

    #[test]
    fn a_release_of_this_very_line_is_depended_on() {
        let line = env!("CARGO_PKG_VERSION").rsplit_once('.').map(|(line, _)| line);
        let manifest = SHARED[0].1;
        assert_eq!(line, Some("0.1"));
        assert!(manifest.contains(RUNTIME_CRATE.line) && manifest.contains(TESTING_CRATE.line));
    }

    #[test]
    fn the_profiles_are_those_of_this_workspace() {
        let profiles = |manifest: &str| {
            let settings = manifest.lines().skip_while(|line| *line != "[profile.release]");
            let settings = settings.take_while(|line| *line != "[workspace]");
            settings.filter(|line| line.contains('=')).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(profiles(SHARED[0].1), profiles(include_str!("../../../Cargo.toml")));
    }
}

//! What `shimctl new` writes: projects of every kind, built, tested, linted and run as their authors would do
//! it; and what it refuses to write. Cargo works offline, with the versions of this workspace and in its target
//! folder, where most of what it needs is built.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use integration::built;

type Done = Result<(), Box<dyn Error>>;

/// This workspace.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// `shimctl` in a folder.
fn shimctl(dir: &Path, args: &[&str]) -> Result<Output, Box<dyn Error>> {
    let mut command = Command::new(built::shimctl());
    Ok(command.args(args).current_dir(dir).stdin(Stdio::null()).output()?)
}

/// A generated project.
struct Project {
    dir: PathBuf,
    binary: &'static str,
}

impl Project {
    /// Writes a project where an earlier run had it: cargo tells crates apart by their paths.
    fn generate(kind: &str, runtime: &str, binary: &'static str) -> Result<Self, Box<dyn Error>> {
        let parent = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generated");
        fs::create_dir_all(&parent)?;
        let dir = parent.join(binary);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        let output = shimctl(&parent, &["new", runtime, "--kind", kind, "--path", WORKSPACE])?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains(binary));
        fs::copy(Path::new(WORKSPACE).join("Cargo.lock"), dir.join("Cargo.lock"))?;
        Ok(Self { dir, binary })
    }

    fn cargo(&self, args: &[&str]) -> Result<Output, Box<dyn Error>> {
        let mut command = Command::new(env!("CARGO"));
        command.args(args).current_dir(&self.dir).stdin(Stdio::null());
        command.env("CARGO_TARGET_DIR", target_dir()).env("CARGO_INCREMENTAL", "0");
        Ok(command.output()?)
    }

    /// Runs cargo, which must succeed.
    fn expect(&self, args: &[&str]) -> Done {
        let output = self.cargo(args)?;
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "`cargo {}` failed:\n{stdout}\n{stderr}", args.join(" "));
        Ok(())
    }

    /// Everything that an author does but running it.
    fn check(&self) -> Done {
        self.expect(&["fmt", "--check"])?;
        self.expect(&["test", "--offline", "--quiet"])?;
        self.expect(&["clippy", "--offline", "--all-targets", "--quiet", "--", "-D", "warnings"])?;
        self.expect(&["build", "--offline", "--quiet"])
    }

    /// `shimctl run` with the project's binary: status, stdout and stderr.
    fn run(&self, args: &[&str]) -> Result<(Option<i32>, String, String), Box<dyn Error>> {
        let built = built::shimctl().with_file_name(self.binary);
        let built = built.to_string_lossy().into_owned();
        let output = shimctl(&self.dir, &[&["run", &built, "--"], args].concat())?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
    }
}

/// The outermost folder above this test's programs that cargo marked as its own.
fn target_dir() -> &'static Path {
    let above = built::shimctl().ancestors();
    above.filter(|dir| dir.join("CACHEDIR.TAG").exists()).last().unwrap_or(Path::new("target"))
}

#[test]
fn a_host_project_builds_passes_and_runs_and_its_lint_stops_std_processes() -> Done {
    let project =
        Project::generate("host", "io.containerd.generated-host.v1", "containerd-shim-generated-host-v1")?;
    project.check()?;
    let (status, stdout, stderr) = project.run(&["sh", "-c", "echo hello; exit 3"])?;
    assert_eq!((status, stdout.as_str()), (Some(3), "hello\n"), "{stderr}");
    assert!(!stderr.contains("broken promise"), "{stderr}");

    let main = project.dir.join("src/main.rs");
    let text = fs::read_to_string(&main)?;
    let call = "let _ = std::process::Command::new(\"true\").status();\n        HostProcess::create(req)";
    fs::write(&main, text.replace("HostProcess::create(req)", call))?;
    let output = project.cargo(&["clippy", "--offline", "--quiet"])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("use `Context::run`"), "{stderr}");
    Ok(())
}

#[test]
fn a_thread_project_builds_passes_and_runs() -> Done {
    let project = Project::generate(
        "thread",
        "io.containerd.generated_thread.v2-rs",
        "containerd-shim-generated_thread-v2-rs",
    )?;
    project.check()?;
    let (status, stdout, stderr) = project.run(&["hello", "world"])?;
    assert_eq!((status, stdout.as_str()), (Some(2), "hello world\n"), "{stderr}");
    assert!(!stderr.contains("broken promise"), "{stderr}");
    Ok(())
}

#[test]
fn a_raw_project_builds_passes_and_runs() -> Done {
    let project =
        Project::generate("raw", "io.containerd.generated-raw.v1", "containerd-shim-generated-raw-v1")?;
    project.check()?;
    let (status, stdout, stderr) = project.run(&["hello", "world"])?;
    assert_eq!((status, stdout.as_str()), (Some(2), "hello world\n"), "{stderr}");
    assert!(!stderr.contains("broken promise"), "{stderr}");
    Ok(())
}

#[test]
fn an_oci_project_builds_and_passes() -> Done {
    // Its own test of the binary runs a container where it finds root and runc.
    Project::generate("oci", "io.containerd.generated-oci.v1", "containerd-shim-generated-oci-v1")?.check()
}

/// The names in a folder.
fn names(dir: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

#[test]
fn what_cannot_be_written_is_refused_in_one_sentence_and_nothing_is_left() -> Done {
    let dir = tempfile::tempdir()?;
    fs::create_dir(dir.path().join("containerd-shim-taken-v1"))?;
    let taken = "containerd-shim-taken-v1";
    for (args, reason) in [
        (&["hello"][..], "a runtime name has at least two dotted parts, as in \"io.containerd.hello.v1\""),
        (&["io.containerd.hello"], "did you mean \"io.containerd.hello.v1\"?"),
        (&["/usr/bin/containerd-shim-hello-v1"], "a runtime name is not a path; write the dotted name"),
        (&["io.containerd.h ello.v1"], "` ` cannot stand in a runtime name; use ASCII letters"),
        (&["io..v1"], "a runtime name cannot have an empty part between dots"),
        (
            &["io.containerd.hello.v1", "--kind", "wasm"],
            "unknown kind `wasm`; write `host`, `thread`, `oci` or `raw`",
        ),
        (&["io.containerd.hello.v1", "--path", "/"], "no `shim-runtime` in `/`; `--path` takes"),
        (&["io.containerd.hello.v1", "--dir", "no/such/folder"], "cannot write `no/such/folder`: "),
        (&["io.containerd.hello.v1", "--dir", ".."], "`..` exists; remove it, or name another"),
        (&["io.containerd.taken.v1"], "`containerd-shim-taken-v1` exists; remove it, or name another"),
    ] {
        let output = shimctl(dir.path(), &[&["new"], args].concat())?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{args:?}: {stderr}");
        assert!(stderr.starts_with("shimctl: ") && stderr.contains(reason), "{args:?}: {stderr}");
        assert_eq!(names(dir.path())?, [taken], "{args:?}");
    }
    assert_eq!(names(&dir.path().join(taken))?, [""; 0]);
    Ok(())
}

#[test]
fn a_project_goes_where_it_is_told_and_depends_on_a_release_unless_told() -> Done {
    let dir = tempfile::tempdir()?;
    let output = shimctl(dir.path(), &["new", "io.containerd.hello.v1", "--dir", "mine"])?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(names(dir.path())?, ["mine"]);
    let manifest = fs::read_to_string(dir.path().join("mine/Cargo.toml"))?;
    for dependency in ["shim-runtime = { version = \"0.1\", features = [", "shim-testing = \"0.1\""] {
        assert!(manifest.contains(&format!("\n{dependency}")), "{manifest}");
    }
    for path in ["README.md", "clippy.toml", ".gitignore", ".cargo/config.toml", "tests/containerd.rs"] {
        assert!(dir.path().join("mine").join(path).is_file(), "{path}");
    }
    Ok(())
}

//! A shim with a `main` of its own: it reads which programs may run before anything else, and has a flag that
//! prints them.

use std::process::ExitCode;
use std::sync::OnceLock;

use shim_runtime::Code;
use shim_runtime::prelude::*;

/// The variable, in containerd's environment, that names the file with a program on each line.
const VARIABLE: &str = "OWN_MAIN_ALLOWED";

/// What `main` read, for the shim. A failure is kept as it is: `delete` has to work nevertheless.
static ALLOWED: OnceLock<Result<Vec<String>>> = OnceLock::new();

/// Runs what the file allows.
#[containerd_shim(runtime = "io.containerd.own-main.v1", main = false)]
struct OwnMain {
    allowed: &'static [String],
}

impl Shim for OwnMain {
    type Container = HostProcess;

    fn new(_: &Context) -> Result<Self> {
        // An error here is what `start` answers, and what containerd shows to its user.
        match ALLOWED.get_or_init(allowed) {
            Ok(allowed) => Ok(Self { allowed }),
            Err(error) => Err(Error::failed_precondition(error.to_string())),
        }
    }

    fn create(&self, req: &mut Create) -> Result<HostProcess> {
        let process = req.bundle().spec()?.process.unwrap_or_default();
        let program = process.args.first().map_or("", String::as_str);
        if !self.allowed.iter().any(|allowed| allowed == program) {
            return Err(Error::new(Code::PermissionDenied, format!("program `{program}` is not allowed")));
        }
        HostProcess::create(req)
    }
}

fn allowed() -> Result<Vec<String>> {
    let Some(file) = std::env::var_os(VARIABLE) else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string(&file);
    let text = text.with_context(|| format!("cannot read `{}`, named by `{VARIABLE}`", file.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Every life of the shim begins here, whoever began it: containerd with `start` and `delete`, and `start` with
/// the server, which has the same environment but no flag of ours.
fn main() -> ExitCode {
    let allowed = ALLOWED.get_or_init(allowed);
    // A flag of one's own stands alone: all others are containerd's, and `run` refuses those it does not know.
    if std::env::args().skip(1).eq(["-allowed"]) {
        return match allowed {
            Ok(allowed) => {
                println!("{}", allowed.join("\n"));
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    // Nothing was printed on this path: containerd reads the answer of `start` from standard output.
    shim_runtime::run::<OwnMain>()
}

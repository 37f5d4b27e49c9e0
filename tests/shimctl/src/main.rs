//! Makes containerd shims, and drives them without containerd.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use shim_testing::Dialect;

mod bench;
mod cost;
mod new;
mod promises;
mod run;
mod soak;
mod table;

/// Makes containerd shims and drives them without containerd: plays the daemon's part and watches what a shim
/// promises.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    New(new::New),
    Run(run::Run),
    Bench(bench::Bench),
    Soak(soak::Soak),
    Promises,
}

/// How the shim is spoken to, and what it is given to run.
#[derive(Args, Clone)]
struct Play {
    /// The task service that is called; what the answer of `start` says unless told
    #[arg(long, value_enum)]
    task: Option<TaskVersion>,
    /// The containerd that is played: `legacy`, `params`, or one of 1.6, 1.7, 2.0, 2.3
    #[arg(long, default_value = "params")]
    bootstrap: Dialect,
    /// Write a full OCI spec, for shims with an OCI runtime; in a busybox unless `--rootfs` is given
    #[arg(long)]
    runc_spec: bool,
    /// The root file system of the container, which stays as it is
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// The static busybox of which `--runc-spec` makes a root file system
    #[arg(long, value_name = "FILE", default_value = "/bin/busybox")]
    busybox: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum TaskVersion {
    /// `containerd.task.v2.Task`
    V2,
    /// `containerd.task.v3.Task`
    V3,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::New(new) => new::new(&new),
        Command::Run(run) => run::run(&run),
        Command::Bench(bench) => bench::bench(&bench),
        Command::Soak(soak) => soak::soak(&soak),
        Command::Promises => promises::print(),
    }
}

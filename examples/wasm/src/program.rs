//! A module with all that WASI preview 1 lets it see: arguments, environment, stdio, and the root file system
//! as its `/`.

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cap_std::fs::Dir;
use shim_runtime::ProcessSpec;
use shim_runtime::prelude::*;
use wasmi::{Engine, Linker, Module, Store, TypedResumableCall};
use wasmi_wasi::{WasiCtx, WasiCtxBuilder, WasiFile, ambient_authority};

/// How much a program computes between two looks at the signal: well below a millisecond.
const SLICE: u64 = 100_000;
/// The status of a program that did what no program may, as if SIGABRT had ended it.
const TRAPPED: u32 = 128 + 6;

/// A container: a module that is ready to run.
pub(crate) struct Program {
    module: Module,
    root: Dir,
    process: ProcessSpec,
}

impl Program {
    /// Reads and checks the module.
    pub(crate) fn load(engine: &Engine, root: &Path, process: Option<ProcessSpec>) -> Result<Self> {
        let process = process.unwrap_or_default();
        let path = process.args.first().map_or("", String::as_str);
        let root = Dir::open_ambient_dir(root, ambient_authority())
            .with_context(|| format!("cannot open the root file system `{}`", root.display()))?;
        // Neither `..` nor a symbolic link leads out of the directory.
        let bytes =
            root.read(path.trim_start_matches('/')).with_context(|| format!("cannot read `{path}`"))?;
        let module = Module::new(engine, bytes).map_err(|error| {
            Error::invalid_argument(format!("`{path}` is no WebAssembly module")).with_source(error)
        })?;
        Ok(Self { module, root, process })
    }

    /// What the program finds when it asks the system for anything.
    fn wasi(&self, io: Stdio) -> Result<WasiCtx> {
        let mut wasi = WasiCtxBuilder::new();
        wasi.args(&self.process.args).map_err(failed)?;
        for variable in &self.process.env {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            wasi.env(name, value).map_err(failed)?;
        }
        wasi.preopened_dir(self.root.try_clone()?, "/").map_err(failed)?;
        // A stream that nobody connected is empty, or takes everything.
        if let Some(stdin) = io.stdin {
            wasi.stdin(wasi_file(stdin));
        }
        if let Some(stdout) = io.stdout {
            wasi.stdout(wasi_file(stdout));
        }
        if let Some(stderr) = io.stderr {
            wasi.stderr(wasi_file(stderr));
        }
        Ok(wasi.build())
    }
}

impl Container for Program {
    fn start(&self, io: Stdio) -> Result<Started> {
        let stderr = io.stderr.as_ref().map(OwnedFd::try_clone).transpose()?;
        let (module, wasi) = (self.module.clone(), self.wasi(io)?);
        // The signal that is to end the program, 0 for none. A thread cannot be killed; it looks here instead.
        let signal = Arc::new(AtomicU32::new(0));
        let sent = signal.clone();
        let stop = move |signal: Signal| {
            if ends_a_program(signal) {
                sent.store(signal.number().unsigned_abs(), Ordering::Relaxed);
            }
        };
        Started::thread(stop, move || {
            run(&module, wasi, &signal).or_else(|trap| {
                if let Some(stderr) = stderr {
                    writeln!(File::from(stderr), "{trap}")?;
                }
                Ok(TRAPPED)
            })
        })
    }
}

/// Runs a program to its end; returns its exit status.
fn run(module: &Module, wasi: WasiCtx, signal: &Arc<AtomicU32>) -> Result<u32> {
    let mut store = Store::new(module.engine(), wasi);
    let mut linker = Linker::new(module.engine());
    wasmi_wasi::add_to_linker(&mut linker, |wasi: &mut WasiCtx| wasi).map_err(failed)?;
    store.set_fuel(SLICE).map_err(failed)?;
    let instance = linker.instantiate_and_start(&mut store, module).map_err(failed)?;
    let main = instance.get_typed_func::<(), ()>(&store, "_start").map_err(failed)?;
    // Looked for at each call of the system, for programs that wait more than they compute,
    let looked_for = signal.clone();
    store.call_hook(move |_, _| check(&looked_for));
    let mut call = main.call_resumable(&mut store, ());
    loop {
        let halted = match call {
            Ok(TypedResumableCall::Finished(())) => return Ok(0),
            Ok(TypedResumableCall::OutOfFuel(halted)) => halted,
            Ok(TypedResumableCall::HostTrap(trap)) => return ended(trap.host_error()),
            Err(error) => return ended(&error),
        };
        // and here for those that only compute.
        if let Err(error) = check(signal) {
            return ended(&error);
        }
        store.set_fuel(SLICE.max(halted.required_fuel())).map_err(failed)?;
        call = halted.resume(&mut store);
    }
}

/// Ends a program that was sent a signal, as if it had called `proc_exit`.
fn check(signal: &AtomicU32) -> Result<(), wasmi::Error> {
    match signal.load(Ordering::Relaxed) {
        0 => Ok(()),
        signal => Err(wasmi::Error::i32_exit((128 + signal).cast_signed())),
    }
}

/// The status of a program that did not come to the end of its `_start`: `proc_exit` is an error, too.
fn ended(error: &wasmi::Error) -> Result<u32> {
    error.i32_exit_status().map(i32::cast_unsigned).ok_or_else(|| failed(error))
}

/// What a signal does to a process without a handler for it, which is all that a module can be.
fn ends_a_program(signal: Signal) -> bool {
    const CHILD: i32 = 17;
    const URGENT: i32 = 23;
    !matches!(signal.number(), 0 | CHILD | URGENT) && signal != Signal::CONT && signal != Signal::WINCH
}

fn wasi_file(fd: OwnedFd) -> Box<dyn WasiFile> {
    let file = cap_std::fs::File::from_std(File::from(fd));
    Box::new(wasmi_wasi::file::File::from_cap_std(file))
}

/// The engine's errors have no code of their own.
fn failed(error: impl Display) -> Error {
    Error::other(error.to_string())
}

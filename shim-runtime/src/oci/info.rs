//! What the engine can do, as `-info` tells it (contract 3).

use std::collections::HashMap;
use std::process::{Command, Stdio};

use serde_json::value::RawValue;

use super::engine::Engine;
use super::options::Options;
use crate::api::Any;
use crate::entry::Info;
use crate::error::{Result, WithContext};

const TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// What every engine can do, for those that do not tell. Less than most can: containerd leaves to an engine
/// only what is listed, recursive read-only and id-mapped mounts above all.
const LEAST: &str = concat!(
    r#"{"ociVersionMin":"1.0.0","ociVersionMax":"1.0.2","#,
    r#""hooks":["prestart","poststart","poststop"],"#,
    r#""mountOptions":["async","atime","bind","defaults","dev","diratime","dirsync","exec","mand","noatime","nodev","#,
    r#""nodiratime","noexec","nomand","norelatime","nostrictatime","nosuid","private","rbind","relatime","remount","#,
    r#""ro","rprivate","rshared","rslave","runbindable","rw","shared","slave","strictatime","suid","sync","unbindable"],"#,
    r#""linux":{"namespaces":["ipc","mount","network","pid","user","uts"],"cgroup":{"v1":true,"v2":true}}}"#,
);

pub(super) fn info(engine: Engine, options: Option<&Any>) -> Result<Info> {
    let program = engine.program(&Options::of(options)?);
    // Nobody reaps in this life of the process.
    let mut command = Command::new(&program);
    command.arg("features").env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot execute `{program}`"))?;
    let told = Some(output.stdout).filter(|told| output.status.success() && is_usable(told));
    let value = told.unwrap_or_else(|| LEAST.as_bytes().to_owned());
    let features = Any { type_url: TYPE.to_owned(), value, ..Any::default() };
    Ok(Info { features: Some(features), ..Info::default() })
}

/// Whether it is an object with `linux` in it, which containerd reads without looking (contract 3).
fn is_usable(features: &[u8]) -> bool {
    let features = serde_json::from_slice::<HashMap<String, Box<RawValue>>>(features);
    features.is_ok_and(|features| features.get("linux").is_some_and(|linux| linux.get().starts_with('{')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_without_linux_are_none() {
        assert!(is_usable(LEAST.as_bytes()));
        assert!(is_usable(br#"{"linux":{}}"#));
        for broken in ["", "{}", r#"{"linux":null}"#, "[]", r#"{"linux":{}"#] {
            assert!(!is_usable(broken.as_bytes()), "{broken}");
        }
    }

    #[test]
    fn an_engine_that_is_missing_is_named() {
        let error = info(Engine::new("no-such-engine"), None).unwrap_err();
        assert!(error.to_string().contains("`no-such-engine`"), "{error}");
    }
}

//! The options that containerd has for OCI runtimes, and how they are kept in the bundle for a `delete` that
//! may come after the shim's death (contract 11.3).

use std::io::{self, Write};
use std::path::Path;

use containerd_shim_protos::shim::oci;
use protobuf::Message;
use serde::{Deserialize, Serialize};

use crate::api::Any;
use crate::bootstrap::type_name;
use crate::bundle::Bundle;
use crate::error::{Error, Result, WithContext};
use crate::files;
use crate::nulls;

const TYPE: &str = "containerd.runc.v1.Options";
const FILE: &str = "options.json";
/// The engine's name once more, for shims that know no `options.json`.
const ENGINE_FILE: &str = "runtime";

/// `containerd.runc.v1.Options`. The file in the bundle has its fields under the same names, those that are
/// zero left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Options {
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) no_pivot_root: bool,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) no_new_keyring: bool,
    #[serde(skip_serializing_if = "is_zero")]
    shim_cgroup: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) io_uid: u32,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) io_gid: u32,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) binary_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) root: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) systemd_cgroup: bool,
    #[serde(skip_serializing_if = "is_zero")]
    criu_image_path: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) criu_work_path: String,
    #[serde(skip_serializing_if = "is_zero")]
    task_api_address: String,
    #[serde(skip_serializing_if = "is_zero")]
    task_api_version: u32,
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Options {
    /// Those of a request; without any, and for an empty message of another type, the defaults.
    ///
    /// # Errors
    /// `InvalidArgument` that names the type when they are of another one.
    pub(super) fn of(any: Option<&Any>) -> Result<Self> {
        let Some(any) = any.filter(|any| !any.value.is_empty()) else { return Ok(Self::default()) };
        if type_name(&any.type_url) != TYPE {
            let message = format!("bad options of type `{}`; an OCI runtime takes `{TYPE}`", any.type_url);
            return Err(Error::invalid_argument(message));
        }
        oci::Options::parse_from_bytes(&any.value)
            .map(Self::from)
            .map_err(Error::invalid_argument_from)
            .with_context(|| format!("cannot understand the options of type `{}`", any.type_url))
    }

    /// Those that a shim, this one or an older one, has left in the bundle.
    pub(super) fn read(bundle: &Bundle) -> Self {
        let file = |name| files::read(&bundle.path().join(name), files::SMALL);
        let kept = file(FILE).ok().and_then(|text| nulls::from_slice::<Self>(&text).ok());
        let mut options = kept.unwrap_or_default();
        if options.binary_name.is_empty() {
            let name = file(ENGINE_FILE).unwrap_or_default();
            String::from_utf8_lossy(&name).trim().clone_into(&mut options.binary_name);
        }
        options
    }

    pub(super) fn write(&self, bundle: &Bundle) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|error| Error::internal(error.to_string()))?;
        for (name, content) in [(FILE, text.as_slice()), (ENGINE_FILE, self.binary_name.as_bytes())] {
            let path = bundle.path().join(name);
            write_private(&path, content).with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        Ok(())
    }
}

/// Writes a file that only its owner can read.
pub(super) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    files::create(path, 0o600)?.write_all(content)
}

impl From<oci::Options> for Options {
    fn from(options: oci::Options) -> Self {
        Self {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            binary_name: options.binary_name,
            root: options.root,
            systemd_cgroup: options.systemd_cgroup,
            criu_image_path: options.criu_image_path,
            criu_work_path: options.criu_work_path,
            task_api_address: options.task_api_address,
            task_api_version: options.task_api_version,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str) -> Any {
        let options = oci::Options { binary_name: "crun".into(), io_uid: 7, ..oci::Options::default() };
        let value = options.write_to_bytes().unwrap();
        Any { type_url: type_url.to_owned(), value, ..Any::default() }
    }

    #[test]
    fn options_of_another_type_are_refused_by_its_name() {
        let error = Options::of(Some(&any("runtimeoptions.v1.Options"))).unwrap_err();
        assert_eq!(error.code(), crate::Code::InvalidArgument);
        assert!(error.to_string().contains("`runtimeoptions.v1.Options`"), "{error}");
        assert_eq!(Options::of(None).unwrap(), Options::default());
        assert_eq!(Options::of(Some(&any("x.y/containerd.runc.v1.Options"))).unwrap().io_uid, 7);
    }

    #[test]
    fn the_file_in_the_bundle_has_the_fields_that_are_set_and_comes_back_whole() {
        let bundle = Bundle::new(std::env::temp_dir().join(format!("shim-options-{}", std::process::id())));
        std::fs::create_dir_all(bundle.path()).unwrap();
        let options = Options::of(Some(&any(TYPE))).unwrap();
        options.write(&bundle).unwrap();
        let text = std::fs::read_to_string(bundle.path().join(FILE)).unwrap();
        assert_eq!(text, r#"{"io_uid":7,"binary_name":"crun"}"#);
        assert_eq!(Options::read(&bundle), options);
        // What a shim of containerd 1.4 leaves.
        std::fs::remove_file(bundle.path().join(FILE)).unwrap();
        assert_eq!(Options::read(&bundle).binary_name, "crun");
        std::fs::remove_dir_all(bundle.path()).unwrap();
    }
}

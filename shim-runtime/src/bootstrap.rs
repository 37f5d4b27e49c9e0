//! What `start` is told on its standard input, and what it answers on its standard output (contract 2.4, 2.5).
//! Three generations of daemons send and expect different bytes; the two input forms parse as each other.

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::error::{Error, Result, WithContext};

/// The most that is read from standard input, as the Go shim does: 10 MiB.
pub(crate) const INPUT_LIMIT: u64 = 10 << 20;

/// The log level from which on `BootstrapParams` ask for debug messages.
const LOG_LEVEL_DEBUG: i32 = -4;

/// In which form the daemon speaks, and so wants to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Before 2.3: the options alone, or nothing; flags and environment carry the rest.
    Legacy,
    /// From 2.3 on: `BootstrapParams`.
    Params,
}

/// What the input said; empty where it said nothing.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) form: Form,
    /// The container's runtime options, or its task's.
    pub(crate) options: Option<Any>,
    pub(crate) debug: bool,
    pub(crate) ttrpc_address: Option<String>,
    pub(crate) containerd_version: Option<String>,
    pub(crate) socket_dir: Option<String>,
}

impl Told {
    /// Reads the input of a `start` for this id and namespace.
    ///
    /// A legacy `Any{type_url, value}` parses as `BootstrapParams{instance_id, namespace}` and the reverse, so
    /// only parameters that repeat the flags are taken for parameters.
    pub(crate) fn parse(input: &[u8], id: &str, namespace: &str) -> Result<Self> {
        if let Ok(params) = BootstrapParams::parse_from_bytes(input)
            && params.instance_id == id
            && params.namespace == namespace
        {
            return Ok(Self::from_params(params));
        }
        let options = match input {
            [] => None,
            bytes => Some(Any::parse_from_bytes(bytes).map_err(Error::invalid_argument_from).with_context(
                || {
                    format!(
                        "{} bytes on standard input are neither bootstrap parameters nor options",
                        bytes.len()
                    )
                },
            )?),
        };
        Ok(Self {
            form: Form::Legacy,
            options,
            debug: false,
            ttrpc_address: None,
            containerd_version: None,
            socket_dir: None,
        })
    }

    fn from_params(params: BootstrapParams) -> Self {
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        let mut extensions =
            params.extensions.into_iter().filter_map(|extension| extension.value.into_option());
        Self {
            form: Form::Params,
            // Later extensions are announced for other uses; those are kept apart by their type's name.
            options: extensions.find(|any| type_name(&any.type_url).ends_with("Options")),
            debug: params.log_level.value() <= LOG_LEVEL_DEBUG,
            ttrpc_address: some(params.containerd_ttrpc_address),
            containerd_version: some(params.containerd_version),
            socket_dir: params.socket_dir.and_then(some),
        }
    }
}

/// The name of a message type without whatever prefix its URL has.
pub(crate) fn type_name(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

/// The task API version to announce: the daemon speaks version 2 unless it is told otherwise, and only one
/// that sent parameters certainly knows version 3 (contract 0.2).
pub(crate) fn version(form: Form, served: &[u8]) -> u8 {
    let preferred = if form == Form::Params { 3 } else { 2 };
    if served.contains(&preferred) { preferred } else { served.first().copied().unwrap_or(2) }
}

/// The answer to a `start`, in the form that the daemon can read.
pub(crate) fn answer(form: Form, version: u8, address: &str) -> Result<Vec<u8>> {
    match (form, version) {
        // The last field's last byte must not be white space, which 2.3.0 to 2.3.3 trim: it is a `c`.
        (Form::Params, version) => {
            let result = BootstrapResult {
                version: version.into(),
                address: address.to_owned(),
                protocol: "ttrpc".to_owned(),
                ..BootstrapResult::default()
            };
            result.write_to_bytes().map_err(Error::invalid_argument_from)
        }
        // The one form that every daemon reads, and that means version 2.
        (Form::Legacy, 2) => Ok(address.as_bytes().to_vec()),
        // For a shim that serves version 3 alone: read from 2.0 on.
        (Form::Legacy, version) => {
            let json = serde_json::json!({"version": version, "address": address, "protocol": "ttrpc"});
            Ok(json.to_string().into_bytes())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutation::{Mutations, rounds};
    use containerd_shim_protos::bootstrap_api::Extension;

    fn params() -> BootstrapParams {
        BootstrapParams {
            instance_id: "c1".into(),
            namespace: "default".into(),
            containerd_ttrpc_address: "/run/x.ttrpc".into(),
            socket_dir: Some("/run/s".into()),
            ..BootstrapParams::default()
        }
    }

    #[test]
    fn parameters_that_repeat_the_flags_are_parameters() {
        let mut params = params();
        params.log_level = protobuf::EnumOrUnknown::from_i32(-8);
        let options = Any { type_url: "x.io/containerd.runc.v1.Options".into(), ..Any::default() };
        params.extensions.push(Extension { value: Some(options).into(), ..Extension::default() });
        let told = Told::parse(&params.write_to_bytes().unwrap(), "c1", "default").unwrap();
        assert_eq!(told.form, Form::Params);
        assert!(told.debug);
        assert_eq!(told.socket_dir.as_deref(), Some("/run/s"));
        assert!(told.options.is_some());
    }

    #[test]
    fn legacy_options_that_parse_as_parameters_stay_options() {
        let any = Any { type_url: "my.Options".into(), value: b"text".to_vec(), ..Any::default() };
        let bytes = any.write_to_bytes().unwrap();
        assert!(BootstrapParams::parse_from_bytes(&bytes).is_ok(), "the danger this test is for");
        let told = Told::parse(&bytes, "c1", "default").unwrap();
        assert_eq!(told.form, Form::Legacy);
        assert_eq!(told.options.unwrap().type_url, "my.Options");
    }

    #[test]
    fn bytes_that_are_neither_are_refused() {
        let error = Told::parse(&[0xff; 7], "c1", "default").unwrap_err().to_string();
        assert!(error.starts_with("7 bytes on standard input are neither"), "{error}");
    }

    #[test]
    fn each_form_is_answered_in_kind() {
        let params = answer(Form::Params, 3, "unix:///run/s/a").unwrap();
        let result = BootstrapResult::parse_from_bytes(&params).unwrap();
        assert_eq!((result.version, result.address.as_str()), (3, "unix:///run/s/a"));
        assert_eq!(params.trim_ascii(), params, "white space would be trimmed");
        assert_eq!(answer(Form::Legacy, 2, "unix:///run/s/a").unwrap(), b"unix:///run/s/a");
        assert_eq!((version(Form::Legacy, &[2, 3]), version(Form::Params, &[2, 3])), (2, 3));
        assert_eq!((version(Form::Legacy, &[3]), version(Form::Params, &[2])), (3, 2));
    }

    #[test]
    fn broken_input_is_understood_or_refused_and_never_panics() {
        let sound = params().write_to_bytes().unwrap();
        let mut mutations = Mutations::seeded(3);
        for _ in 0..rounds(20_000) {
            let bytes = mutations.change(&sound);
            if let Err(error) = Told::parse(&bytes, "c1", "default") {
                assert!(error.to_string().starts_with(&format!("{} bytes on standard input", bytes.len())));
            }
        }
    }
}

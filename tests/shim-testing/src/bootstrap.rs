//! What `start` is told on stdin, and how each generation reads its answer
//! ([contract 2.4](shim_runtime::contract#s2-4) and [2.5](shim_runtime::contract#s2-5)).
//! Reading is as strict and as lenient as the daemons are, so that what passes here passes there.

use std::path::{Path, PathBuf};

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, Extension, LogLevel};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde::Deserialize;

use super::dialect::Dialect;

/// In which form an answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The plain address.
    Address,
    /// A JSON object.
    Json,
    /// A protobuf `BootstrapResult`.
    Protobuf,
}

/// The answer of `start`, as the daemon takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The version of the task service that will be called.
    pub version: u32,
    /// Where the shim listens, for example `unix:///run/containerd/s/0a1b`.
    pub address: String,
    /// `ttrpc` or `grpc`.
    pub protocol: String,
    /// In which form it came.
    pub form: Form,
}

/// The keys of the JSON form; a missing one reads as empty, as in Go.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Json {
    version: i64,
    address: String,
    protocol: String,
}

impl Answer {
    /// Reads an answer as the daemon of that dialect does; the error says what that daemon would say.
    pub fn parse(dialect: Dialect, bytes: &[u8]) -> Result<Self, String> {
        if dialect >= Dialect::V2_3
            && let Ok(result) = BootstrapResult::parse_from_bytes(bytes)
        {
            return Self::from_result(result);
        }
        let text =
            str::from_utf8(bytes).map_err(|_| "neither text nor a `BootstrapResult`".to_owned())?.trim();
        let json = if dialect == Dialect::V1_6 { None } else { serde_json::from_str::<Json>(text).ok() };
        // What is no JSON, and JSON of an old version, is an address as a whole.
        let Some(json) = json.filter(|json| json.version >= 2) else {
            return Self {
                version: 2,
                address: text.to_owned(),
                protocol: "ttrpc".to_owned(),
                form: Form::Address,
            }
            .checked();
        };
        let newest = if dialect == Dialect::V1_7 { 2 } else { 3 };
        if json.version > newest {
            return Err(format!(
                "unsupported shim version {}; containerd {dialect} knows versions up to {newest}",
                json.version
            ));
        }
        let version = json.version as u32;
        Self { version, address: json.address, protocol: json.protocol, form: Form::Json }.checked()
    }

    fn from_result(result: BootstrapResult) -> Result<Self, String> {
        let answer =
            Self { version: 0, address: result.address, protocol: result.protocol, form: Form::Protobuf }
                .checked()?;
        match result.version {
            version @ 2..=3 => Ok(Self { version: version as u32, ..answer }),
            version => Err(format!("shim version {version}; containerd supports only 2 and 3")),
        }
    }

    /// An unknown protocol comes first: an empty answer decodes as an empty result, and fails by it.
    fn checked(self) -> Result<Self, String> {
        match self.protocol.to_ascii_lowercase().as_str() {
            "ttrpc" => {}
            "grpc" => return Err("protocol `grpc`, which this stand-in does not speak".to_owned()),
            other => return Err(format!("unexpected protocol `{other}`")),
        }
        self.path().map(|_| self)
    }

    /// The path of the socket. Daemons dial other kinds of address too; a shim for Linux must not ask for it.
    pub fn path(&self) -> Result<PathBuf, String> {
        if self.address.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(format!("white space in the address `{}`", self.address.escape_debug()));
        }
        match self.address.strip_prefix("unix://") {
            Some(path) if Path::new(path).is_absolute() => Ok(path.into()),
            _ if !self.address.contains("://") => {
                Err(format!("`{}` would be an abstract socket", self.address))
            }
            _ => Err(format!("`{}` is no `unix://` address with an absolute path", self.address)),
        }
    }
}

/// What the daemon knows when it runs `start`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) id: String,
    pub(crate) namespace: String,
    pub(crate) debug: bool,
    pub(crate) ttrpc: String,
    pub(crate) grpc: String,
    pub(crate) binary: String,
    pub(crate) socket_dir: String,
    /// Task options, else the runtime options of the container.
    pub(crate) options: Option<Any>,
}

impl Told {
    /// The bytes on stdin of `start`, for a binary of that base name.
    pub(crate) fn stdin(&self, dialect: Dialect, base_name: &str) -> Vec<u8> {
        let bytes = if dialect.sends_params(base_name) {
            self.params(dialect).write_to_bytes()
        } else {
            self.options.as_ref().map_or(Ok(Vec::new()), Message::write_to_bytes)
        };
        // Encoding fails for messages above 2 GiB only.
        bytes.unwrap_or_default()
    }

    fn params(&self, dialect: Dialect) -> BootstrapParams {
        let extension =
            |options: &Any| Extension { value: MessageField::some(options.clone()), ..Extension::default() };
        let level = if self.debug { LogLevel::LOG_LEVEL_DEBUG } else { LogLevel::LOG_LEVEL_INFO };
        BootstrapParams {
            instance_id: self.id.clone(),
            namespace: self.namespace.clone(),
            log_level: level.into(),
            containerd_version: dialect.version().to_owned(),
            containerd_ttrpc_address: self.ttrpc.clone(),
            containerd_grpc_address: self.grpc.clone(),
            containerd_binary: self.binary.clone(),
            extensions: self.options.iter().map(extension).collect(),
            socket_dir: Some(self.socket_dir.clone()),
            ..BootstrapParams::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] = b"unix:///run/s/1\n";
    const JSON_2: &[u8] = br#"{"version":2,"address":"unix:///run/s/1","protocol":"ttrpc"}"#;
    const JSON_3: &[u8] = br#"{"version":3,"address":"unix:///run/s/1","protocol":"ttrpc"}"#;

    fn protobuf(version: i32, protocol: &str) -> Vec<u8> {
        let (address, protocol) = ("unix:///run/s/1".to_owned(), protocol.to_owned());
        BootstrapResult { version, address, protocol, ..BootstrapResult::default() }.write_to_bytes().unwrap()
    }

    /// Version and form by dialect, oldest first; `None` where the daemon fails.
    fn read(bytes: &[u8]) -> [Option<(u32, Form)>; 4] {
        Dialect::ALL.map(|dialect| {
            let answer = Answer::parse(dialect, bytes).ok()?;
            assert_eq!(answer.path().unwrap(), Path::new("/run/s/1"));
            Some((answer.version, answer.form))
        })
    }

    #[test]
    fn the_matrix_of_answers_is_read_as_by_the_daemons() {
        let [address, json, proto] = [Form::Address, Form::Json, Form::Protobuf];
        assert_eq!(read(PLAIN), [Some((2, address)); 4]);
        assert_eq!(read(JSON_2), [None, Some((2, json)), Some((2, json)), Some((2, json))]);
        assert_eq!(read(JSON_3), [None, None, Some((3, json)), Some((3, json))]);
        assert_eq!(read(&protobuf(3, "ttrpc")), [None, None, None, Some((3, proto))]);
        assert_eq!(read(&protobuf(2, "TTRPC")), [None, None, None, Some((2, proto))]);
    }

    #[test]
    fn answers_that_no_daemon_takes_are_refused_with_its_reason() {
        let reason = |dialect, bytes: &[u8]| Answer::parse(dialect, bytes).unwrap_err();
        assert!(reason(Dialect::V2_3, b"").contains("unexpected protocol"));
        assert!(reason(Dialect::V2_3, &protobuf(4, "ttrpc")).contains("supports only 2 and 3"));
        assert!(reason(Dialect::V1_7, JSON_3).contains("unsupported shim version 3"));
        for dialect in Dialect::ALL {
            assert!(reason(dialect, b"shim started\nunix:///run/s/1").contains("address"), "{dialect}");
            assert!(reason(dialect, b"@abstract").contains("abstract"), "{dialect}");
        }
        // The protocol must be named in JSON (contract 2.5).
        assert!(reason(Dialect::V2_0, br#"{"version":3,"address":"unix:///run/s/1"}"#).contains("protocol"));
    }

    #[test]
    fn either_form_of_stdin_parses_as_the_other_and_only_id_and_namespace_tell_them_apart() {
        let options =
            Any { type_url: "runtimeoptions.v1.Options".into(), value: b"text".to_vec(), ..Any::default() };
        let told =
            Told { id: "c1".into(), namespace: "ns".into(), options: Some(options), ..Told::default() };
        let legacy = told.stdin(Dialect::V2_0, "shim");
        let params = told.stdin(Dialect::V2_3, "shim");

        let misread = BootstrapParams::parse_from_bytes(&legacy).unwrap();
        assert_eq!(
            (misread.instance_id.as_str(), misread.namespace.as_str()),
            ("runtimeoptions.v1.Options", "text")
        );
        let misread = Any::parse_from_bytes(&params).unwrap();
        assert_eq!((misread.type_url.as_str(), misread.value.as_slice()), ("c1", &b"ns"[..]));

        let read = BootstrapParams::parse_from_bytes(&params).unwrap();
        assert_eq!((read.instance_id, read.namespace), (told.id.clone(), told.namespace.clone()));
        assert_eq!(read.extensions[0].value.type_url, "runtimeoptions.v1.Options");
    }

    #[test]
    fn old_daemons_send_nothing_without_options() {
        let told = Told { id: "c1".into(), ..Told::default() };
        assert_eq!(told.stdin(Dialect::V2_0, "shim"), b"");
        assert_eq!(told.stdin(Dialect::V2_3, "containerd-shim-runc-v1"), b"");
        assert_ne!(told.stdin(Dialect::V2_3, "containerd-shim-runc-v2"), b"");
    }
}

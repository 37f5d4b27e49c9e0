//! `-info`: what the shim is, as a protobuf `RuntimeInfo` (contract 3).

use std::io::{IsTerminal, Read};

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;

use crate::api::Any;
use crate::bootstrap::INPUT_LIMIT;
use crate::entry::Entry;
use crate::entry::level::Level;
use crate::error::{Error, Result, WithContext};

pub(super) fn answer<S: Entry>() -> Result<Vec<u8>> {
    let input = read_input()?;
    let options = match input.as_slice() {
        [] => None,
        bytes => Some(
            Any::parse_from_bytes(bytes)
                .map_err(Error::invalid_argument_from)
                .with_context(|| "cannot understand the options on standard input")?,
        ),
    };
    let info = S::Level::info(options.as_ref())?;
    let version = RuntimeVersion {
        version: S::CONFIG.version.to_owned(),
        revision: info.revision,
        ..RuntimeVersion::default()
    };
    let answer = RuntimeInfo {
        name: S::CONFIG.runtime.to_owned(),
        version: Some(version).into(),
        options: options.into(),
        features: info.features.into(),
        annotations: info.annotations,
        ..RuntimeInfo::default()
    };
    answer.write_to_bytes().map_err(|error| Error::internal(error.to_string()))
}

/// All of standard input, unless a human sits there.
pub(super) fn read_input() -> Result<Vec<u8>> {
    let (mut input, mut bytes) = (std::io::stdin(), Vec::new());
    if input.is_terminal() {
        return Ok(bytes);
    }
    (&mut input)
        .take(INPUT_LIMIT + 1)
        .read_to_end(&mut bytes)
        .with_context(|| "cannot read standard input")?;
    if bytes.len() as u64 > INPUT_LIMIT {
        let message = format!("standard input holds more than {INPUT_LIMIT} bytes");
        return Err(Error::invalid_argument(message));
    }
    Ok(bytes)
}

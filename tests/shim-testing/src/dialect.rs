//! The generations of containerd as a shim meets them: flags, environment and what `start` is told.
//! One value for each behaviour, not for each release.

use std::fmt;
use std::str::FromStr;

use super::failure::Failure;

/// Which containerd the stand-in speaks like: which answers of `start` it understands, and what it gives to `start`
/// ([contract 0.1](shim_runtime::contract#s0-1), [contract 2.2](shim_runtime::contract#s2-2), [contract 2.4](shim_runtime::contract#s2-4)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dialect {
    /// containerd 1.6: the answer is an address and nothing else.
    V1_6,
    /// containerd 1.7: an address, or JSON with version 2.
    V1_7,
    /// containerd 2.0 to 2.2: an address, or JSON with version 2 or 3.
    V2_0,
    /// containerd 2.3 and later: `BootstrapParams` on stdin, any form as answer.
    V2_3,
}

impl Dialect {
    /// Every dialect, oldest first.
    pub const ALL: [Self; 4] = [Self::V1_6, Self::V1_7, Self::V2_0, Self::V2_3];
    /// The newest dialect that says everything by flags and environment.
    pub const LEGACY: Self = Self::V2_0;
    /// The dialect that tells `start` what it must know by `BootstrapParams` on stdin.
    pub const PARAMS: Self = Self::V2_3;

    /// What is added to the daemon's own environment for `start` and `delete` (contract 2.2).
    pub(crate) fn environment(self, grpc: &str, ttrpc: &str, namespace: &str) -> Vec<(&'static str, String)> {
        let mut environment = vec![("GOMAXPROCS", "2".to_owned()), ("TTRPC_ADDRESS", ttrpc.to_owned())];
        if self >= Self::V1_7 {
            // Always 2, even where version 3 is accepted.
            let newer = [("GRPC_ADDRESS", grpc), ("NAMESPACE", namespace), ("MAX_SHIM_VERSION", "2")];
            environment.extend(newer.map(|(name, value)| (name, value.to_owned())));
        }
        environment
    }

    /// Whether a binary of this base name is sent `BootstrapParams` (contract 2.4).
    pub(crate) fn sends_params(self, base_name: &str) -> bool {
        let old = ["shim-runc-v1", "shim-runhcs-v1"].iter().any(|name| base_name.contains(name));
        self >= Self::V2_3 && !old
    }

    /// Whether `-debug` is given to `delete` too (contract 2.1).
    pub(crate) fn debugs_delete(self) -> bool {
        self >= Self::V1_7
    }

    /// Whether calls that clients start carry the namespace (contract 0.8).
    pub(crate) fn sends_metadata(self) -> bool {
        self >= Self::V2_0
    }

    /// Whether the daemon writes `bootstrap.json`, or leaves it to the shim to write `address` (contract 2.5).
    pub(crate) fn writes_bootstrap_json(self) -> bool {
        self >= Self::V2_0
    }

    /// The version that this containerd calls itself.
    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::V1_6 => "v1.6.39",
            Self::V1_7 => "v1.7.34",
            Self::V2_0 => "v2.2.7",
            Self::V2_3 => "v2.3.4",
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V1_6 => "1.6",
            Self::V1_7 => "1.7",
            Self::V2_0 => "2.0",
            Self::V2_3 => "2.3",
        })
    }
}

impl FromStr for Dialect {
    type Err = Failure;

    /// `1.6`, `1.7`, `2.0`, `2.3`, or `legacy` and `params` for the newest of either bootstrap.
    fn from_str(text: &str) -> Result<Self, Failure> {
        match text {
            "1.6" => Ok(Self::V1_6),
            "1.7" => Ok(Self::V1_7),
            "2.0" | "2.1" | "2.2" | "legacy" => Ok(Self::V2_0),
            "2.3" | "2.4" | "params" => Ok(Self::V2_3),
            _ => Err(Failure::setup(format!(
                "no dialect `{text}`; write `legacy`, `params`, `1.6`, `1.7`, `2.0` or `2.3`"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dialect_is_read_as_it_is_written() {
        for dialect in Dialect::ALL {
            assert_eq!(dialect.to_string().parse::<Dialect>().unwrap(), dialect);
        }
        assert!("3.0".parse::<Dialect>().unwrap_err().to_string().contains("`3.0`"));
    }

    #[test]
    fn only_the_newest_sends_params_and_not_to_the_oldest_shims() {
        let [old, new] = [Dialect::V2_0, Dialect::V2_3];
        assert!(new.sends_params("containerd-shim-host-v1") && !old.sends_params("containerd-shim-host-v1"));
        assert!(new.sends_params("containerd-shim-runc-v2") && !new.sends_params("containerd-shim-runc-v1"));
    }

    #[test]
    fn the_environment_grew_with_1_7() {
        let names = |dialect: Dialect| {
            dialect.environment("g", "t", "n").into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(names(Dialect::V1_6), ["GOMAXPROCS", "TTRPC_ADDRESS"]);
        assert_eq!(names(Dialect::V2_3).len(), 5);
    }
}

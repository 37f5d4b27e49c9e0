//! What a shim is given by each generation of containerd, as a shim sees it: a script that writes down its
//! flags, environment, directory and stdin (contract 2).

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use shim_testing::bootstrap::Form;
use shim_testing::{Dialect, FakeContainerd, Result};

type Done = Result<(), Box<dyn Error>>;

/// What the script wrote down.
struct Seen {
    ctrd: FakeContainerd,
    args: Vec<String>,
    env: HashMap<String, String>,
    cwd: String,
    stdin: Vec<u8>,
}

/// Runs an action of the script in a bundle with options.
fn seen(dialect: Dialect, action: &str) -> Result<Seen> {
    let ctrd = FakeContainerd::builder(dialect).debug().env("EXTRA", "1").build()?;
    let script = ctrd.root().join("containerd-shim-script-v1");
    let notes = ctrd.root().display().to_string();
    fs::write(
        &script,
        format!(
            "#!/bin/sh\nfor arg; do echo \"$arg\"; done > {notes}/args; env > {notes}/env; pwd > {notes}/cwd; cat > {notes}/stdin\n"
        ),
    )?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let bundle = ctrd.bundle("c1").options("runtimeoptions.v1.Options", b"\n\x01x".to_vec()).build()?;
    let output = ctrd.launch(&script, &bundle, action).run()?;
    assert!(output.success() && output.stdout.is_empty(), "{output}");
    let read = |name: &str| fs::read_to_string(ctrd.root().join(name)).unwrap_or_default();
    let lines = |name: &str| read(name).lines().map(str::to_owned).collect::<Vec<_>>();
    let pairs = lines("env")
        .into_iter()
        .filter_map(|line| line.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())));
    let (args, cwd, stdin) = (lines("args"), lines("cwd").concat(), fs::read(ctrd.root().join("stdin"))?);
    assert_eq!(cwd, bundle.path().display().to_string());
    Ok(Seen { env: pairs.collect(), ctrd, args, cwd, stdin })
}

#[test]
fn flags_come_in_the_daemon_s_order() -> Done {
    for dialect in Dialect::ALL {
        let start = seen(dialect, "start")?;
        let root = start.ctrd.root().display().to_string();
        let (address, binary) = (format!("{root}/c.sock"), format!("{root}/containerd"));
        let namespace = start.ctrd.namespace();
        let common = ["-namespace", namespace, "-address", &address, "-publish-binary", &binary, "-id", "c1"];
        assert_eq!(start.args, [&common[..], &["-debug", "start"]].concat());

        let delete = seen(dialect, "delete")?;
        // The directories of the two differ, so only the names of the flags are compared.
        let names: Vec<_> =
            delete.args.iter().filter(|arg| arg.starts_with('-') || *arg == "delete").collect();
        let mut expected =
            vec!["-namespace", "-address", "-publish-binary", "-id", "-bundle", "-debug", "delete"];
        if dialect == Dialect::V1_6 {
            expected.retain(|name| *name != "-debug");
        }
        assert_eq!(names, expected, "{dialect}");
        assert!(delete.args.contains(&delete.cwd) && delete.stdin.is_empty());
    }
    Ok(())
}

#[test]
fn the_environment_and_stdin_are_those_of_the_generation() -> Done {
    for dialect in Dialect::ALL {
        let seen = seen(dialect, "start")?;
        let root = seen.ctrd.root().display().to_string();
        let get = |name: &str| seen.env.get(name).map(String::as_str);
        assert_eq!(get("TTRPC_ADDRESS"), Some(format!("{root}/c.sock.ttrpc").as_str()));
        assert_eq!((get("GOMAXPROCS"), get("EXTRA")), (Some("2"), Some("1")));
        let newer = dialect >= Dialect::V1_7;
        assert_eq!(get("NAMESPACE").is_some(), newer);
        assert_eq!(get("MAX_SHIM_VERSION"), newer.then_some("2"));
        assert_eq!(get("GRPC_ADDRESS"), newer.then_some(format!("{root}/c.sock").as_str()));
        if dialect == Dialect::V2_3 {
            let params = BootstrapParams::parse_from_bytes(&seen.stdin)?;
            assert_eq!(
                (params.instance_id.as_str(), params.namespace.as_str()),
                ("c1", seen.ctrd.namespace())
            );
            assert_eq!(params.socket_dir, Some(format!("{root}/s")));
            assert_eq!(params.log_level.value(), -4);
            assert_eq!(params.extensions[0].value.type_url, "runtimeoptions.v1.Options");
        } else {
            let options = Any::parse_from_bytes(&seen.stdin)?;
            assert_eq!(
                (options.type_url.as_str(), options.value.as_slice()),
                ("runtimeoptions.v1.Options", &b"\n\x01x"[..])
            );
        }
    }
    Ok(())
}

#[test]
fn an_answer_of_version_3_is_taken_and_a_pod_s_further_containers_need_no_start() -> Done {
    let ctrd = FakeContainerd::new(Dialect::V2_3)?;
    let socket = ctrd.root().join("s/socket");
    let _listener = UnixListener::bind(&socket)?;
    let (address, protocol) = (format!("unix://{}", socket.display()), "ttrpc".to_owned());
    let result = BootstrapResult { version: 3, address, protocol, ..BootstrapResult::default() };
    fs::write(ctrd.root().join("answer"), result.write_to_bytes()?)?;
    let script = ctrd.root().join("containerd-shim-script-v1");
    fs::write(&script, format!("#!/bin/sh\ncat {}/answer\n", ctrd.root().display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let [first, second] = ["c1", "c2"].map(|id| ctrd.bundle(id).group("pod").build());
    let first = ctrd.start(&script, &first?)?;
    assert_eq!((first.answer().version, first.answer().form), (3, Form::Protobuf));
    assert_eq!(first.task().service(), "containerd.task.v3.Task");
    let second = ctrd.attach(&first, &second?)?;
    assert_eq!((second.task().id(), second.socket()), ("c2", socket));
    Ok(())
}

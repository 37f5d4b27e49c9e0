//! A `start` for a group against the end of the shim that serves it: whichever comes first, the answer is the
//! address of a shim that lives (contract 4, 6.5).

use protobuf::Message;
use shim_testing::bootstrap::Answer;
use shim_testing::{Bundle, Dialect, FakeContainerd, Launch, RawConnection, Result, api};

use super::{FIXTURE, LIMIT, TASK, bundle};

/// How often, in all.
const ROUNDS: usize = 1000;
/// How many groups at once: more than there are processors, so that they get into each other's way.
const GROUPS: usize = 4;

/// What the daemon does with the answer: it connects once, and creates.
fn serve(bundle: &Bundle, launch: &Launch) -> Result<RawConnection> {
    let output = launch.run()?;
    assert!(output.success(), "{output}");
    let answer = Answer::parse(Dialect::PARAMS, &output.stdout).unwrap();
    let mut connection = RawConnection::connect(answer.path().unwrap())
        .unwrap_or_else(|error| panic!("a dead address was answered: {error}"));
    connection.set_timeout(Some(LIMIT))?;
    let create = api::CreateTaskRequest {
        id: bundle.id().into(),
        bundle: bundle.path().display().to_string(),
        ..Default::default()
    };
    let _: api::CreateTaskResponse = connection.ask(TASK, "Create", &create)?;
    Ok(connection)
}

/// The end of a container, and of its shim if no other comes: Delete, Shutdown, hang-up.
fn leave(mut connection: RawConnection, id: &str) -> Result<()> {
    let delete = api::DeleteRequest { id: id.into(), ..Default::default() };
    let _: api::DeleteResponse = connection.ask(TASK, "Delete", &delete)?;
    let shutdown = api::ShutdownRequest { id: id.into(), ..Default::default() };
    // With the last task gone, an earlier Shutdown may have ended the shim: the daemon takes that for an answer.
    if let Ok(answer) = connection.call(TASK, "Shutdown", shutdown.write_to_bytes().unwrap()) {
        assert_eq!(answer.status.code.value(), 0);
    }
    Ok(())
}

fn race(ctrd: &FakeContainerd, group: usize) -> Result<()> {
    let build = |name: &str| {
        let id = format!("{name}{group}");
        bundle(ctrd, &id, "thread").group(&format!("g{group}")).args(["waits"]).build()
    };
    let mut bundles = [build("a")?, build("b")?];
    let launch = |bundle: &Bundle| ctrd.launch(FIXTURE, bundle, "start");
    let mut living = serve(&bundles[0], &launch(&bundles[0]))?;
    for _ in 0..ROUNDS / GROUPS {
        let [old, new] = &bundles;
        let start = launch(new);
        living = std::thread::scope(|scope| {
            let starting = scope.spawn(|| serve(new, &start));
            leave(living, old.id())?;
            starting.join().unwrap()
        })?;
        bundles.reverse();
    }
    leave(living, bundles[0].id())
}

#[test]
fn of_a_thousand_starts_against_ends_none_is_answered_with_a_dead_address() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    std::thread::scope(|scope| {
        let ctrd = &ctrd;
        let groups: Vec<_> = (0..GROUPS).map(|group| scope.spawn(move || race(ctrd, group))).collect();
        groups.into_iter().try_for_each(|group| group.join().unwrap())
    })?;
    super::until("the end of all sockets", || super::only_socket(&ctrd).is_none());
    Ok(())
}

//! The control socket and clients of every kind: none costs the owner more than its own calls.

#![cfg(feature = "control")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{Read, Write},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream,
        process::CommandExt,
    },
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use batchyard::{
    Claim, ControlAccess, ControlServer, ControlStore, Dispatcher, ErrorKind, HandlerError, Lease,
    List, Member, MemoryStore, NewRequest, Outcome, OwnerGone, Page, Pushed, Queue, QueueExt,
    QueueName, QueueOptions, Report, Result, Retries, State, Stats, Store, Then, Timestamp, Update,
    Verified, VerifyProgress, serve_control, serve_control_for_now,
};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// A store in memory, served in a folder.
struct Owner {
    folder: TempDir,
    store: Arc<dyn Store>,
    control: ControlServer,
}

impl Owner {
    fn new(options: QueueOptions) -> Self {
        let folder = TempDir::new().unwrap();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(options));
        let control =
            serve_control(folder.path(), Arc::clone(&store), None, ControlAccess::All).unwrap();
        Self {
            folder,
            store,
            control,
        }
    }

    fn dial(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("control.sock")).unwrap()
    }

    async fn client(&self) -> ControlStore {
        ControlStore::connect(self.folder.path()).await.unwrap()
    }

    /// A push by a client, and what the owner then has.
    async fn is_well(&self) {
        let name = QueueName::default();
        let queue = self.client().await.queue(&name).await.unwrap();
        let id = queue.push_one(NewRequest::new("a")).await.unwrap().id;
        let own = self.store.queue(&name).await.unwrap();
        let entry = own.admin().unwrap().status(own.now(), id).await.unwrap();
        assert_eq!(entry.unwrap().state, State::Ready);
    }
}

/// Waits until the owner has ended this connection.
fn is_left(mut stream: UnixStream) -> Vec<u8> {
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut told = Vec::new();
    // Whether by an end or by a reset.
    match stream.read_to_end(&mut told) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("it is still there"),
        _ => told,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_say_nothing_make_room_for_those_that_do() {
    let owner = Owner::new(QueueOptions::default());
    // More than may be connected; some have greeted, and ask for nothing.
    let silent: Vec<UnixStream> = (0..300).map(|_| owner.dial()).collect();
    let mut greeted = Vec::new();
    for _ in 0..20 {
        greeted.push(owner.client().await);
    }
    owner.is_well().await;
    drop(silent);
    for client in greeted {
        assert!(client.queues("").await.is_ok(), "it is let in again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_call_ends_the_connection_and_nothing_else() {
    let owner = Owner::new(QueueOptions::default());
    let hello = [2, 0, 0, 0, 0, 1];
    let mut dice = fastrand::Rng::with_seed(7);
    let mut tries: Vec<Vec<u8>> = vec![
        // A frame that claims four gigabytes.
        u32::MAX.to_le_bytes().into(),
        [&hello[..], &u32::MAX.to_le_bytes()].concat(),
        // A second greeting is answered with an error, an empty frame is no call.
        [&hello[..], &hello].concat(),
        [&hello[..], &[0, 0, 0, 0]].concat(),
    ];
    tries.extend((0..50).map(|_| {
        let junk: Vec<u8> = (0..dice.usize(1..60)).map(|_| dice.u8(..)).collect();
        let length = u32::try_from(junk.len()).unwrap();
        [&hello[..], &length.to_le_bytes(), &junk].concat()
    }));
    for bytes in tries {
        let mut stream = owner.dial();
        // It may be gone before all is written.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        tokio::task::spawn_blocking(move || is_left(stream))
            .await
            .unwrap();
    }
    owner.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_another_version_is_told() {
    let owner = Owner::new(QueueOptions::default());
    let mut stream = owner.dial();
    stream.write_all(&[2, 0, 0, 0, 0, 99]).unwrap();
    let told = tokio::task::spawn_blocking(move || is_left(stream))
        .await
        .unwrap();
    let version = env!("CARGO_PKG_VERSION").as_bytes();
    assert!(
        told.windows(version.len()).any(|part| part == version),
        "{told:?}"
    );
    owner.is_well().await;
}

/// A queue whose pushes wait for ever, and tell when they begin and when they are given up.
#[derive(Clone, Debug)]
struct Stuck(mpsc::UnboundedSender<&'static str>);

struct Leaving(mpsc::UnboundedSender<&'static str>);

impl Drop for Leaving {
    fn drop(&mut self) {
        let _ = self.0.send("given up");
    }
}

#[async_trait]
impl Queue for Stuck {
    async fn push(&self, _: Timestamp, _: Vec<NewRequest>) -> Result<Vec<Pushed>> {
        let _leaving = Leaving(self.0.clone());
        let _ = self.0.send("begun");
        std::future::pending().await
    }

    async fn stats(&self, _: Timestamp) -> Result<Stats> {
        Ok(Stats::default())
    }

    async fn claim(&self, _: Timestamp, _: &Claim) -> Result<Option<Lease>> {
        Ok(None)
    }

    async fn read(&self, _: &Lease, _: Page) -> Result<Vec<Member>> {
        Ok(Vec::new())
    }

    async fn update(&self, _: Timestamp, _: &Lease, _: Update) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Store for Stuck {
    async fn queue(&self, _: &QueueName) -> Result<Arc<dyn Queue>> {
        Ok(Arc::new(self.clone()))
    }

    async fn queues(&self, _: &str) -> Result<Vec<QueueName>> {
        Ok(Vec::new())
    }

    async fn verify(&self, _: &mut (dyn FnMut(VerifyProgress) + Send)) -> Result<Verified> {
        let _leaving = Leaving(self.0.clone());
        let _ = self.0.send("begun");
        std::future::pending().await
    }
}

/// Waits for what is told next.
async fn next_is(tells: &mut mpsc::UnboundedReceiver<&'static str>, what: &str) {
    let told = tokio::time::timeout(Duration::from_secs(60), tells.recv()).await;
    assert_eq!(told.expect("it is told"), Some(what));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_is_given_up_by_the_owner() {
    let (told, mut tells) = mpsc::unbounded_channel();
    let folder = TempDir::new().unwrap();
    let control = serve_control(
        folder.path(),
        Arc::new(Stuck(told)),
        None,
        ControlAccess::All,
    )
    .unwrap();
    let client = ControlStore::connect(folder.path()).await.unwrap();
    let queue = client.queue(&QueueName::default()).await.unwrap();
    let calling = Arc::clone(&queue);
    let call = tokio::spawn(async move { calling.push_one(NewRequest::new("a")).await });
    next_is(&mut tells, "begun").await;
    call.abort();
    next_is(&mut tells, "given up").await;
    // As is a verification.
    let client = Arc::new(client);
    let verifying = Arc::clone(&client);
    let call = tokio::spawn(async move { verifying.verify(&mut |_| {}).await });
    next_is(&mut tells, "begun").await;
    call.abort();
    next_is(&mut tells, "given up").await;
    // One that waits when the socket is closed is given up as well.
    let call = tokio::spawn(async move { queue.push_one(NewRequest::new("a")).await });
    next_is(&mut tells, "begun").await;
    drop(control);
    next_is(&mut tells, "given up").await;
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(OwnerGone::of(&error), Some(OwnerGone::Unknown), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_closes_or_is_gone_is_told_of_and_replaced() {
    let owner = Owner::new(QueueOptions::default());
    let client = owner.client().await;
    let queue = client.queue(&QueueName::default()).await.unwrap();
    let mut changes = queue.pushed().unwrap();
    let Owner {
        folder,
        store,
        control,
    } = owner;
    control.close().await;
    assert!(!folder.path().join("control.sock").exists());
    let error = queue.stats(queue.now()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    while changes.changed().await.is_ok() {}

    // A socket that a killed owner left is in nobody's way.
    let stale = std::os::unix::net::UnixListener::bind(folder.path().join("control.sock"));
    drop(stale.unwrap());
    let error = ControlStore::connect(folder.path()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let control =
        serve_control(folder.path(), Arc::clone(&store), None, ControlAccess::All).unwrap();
    let socket = folder.path().join("control.sock").metadata().unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    // The same handle works with the next owner.
    assert_eq!(queue.stats(queue.now()).await.unwrap().pushed, 0);
    drop(control);
    assert!(!folder.path().join("control.sock").exists());
}

/// Connects as soon as it is let in; time goes on by itself meanwhile.
async fn let_in(folder: &Path) -> ControlStore {
    loop {
        match ControlStore::connect(folder).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            client => return client.unwrap(),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_is_removed_or_replaced_is_there_again() {
    let owner = Owner::new(QueueOptions::default());
    let socket = owner.folder.path().join("control.sock");
    let before = let_in(owner.folder.path()).await;
    std::fs::remove_file(&socket).unwrap();
    let after = let_in(owner.folder.path()).await;
    assert_eq!(
        after.queues("").await.unwrap(),
        before.queues("").await.unwrap()
    );
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "a file").unwrap();
    let again = let_in(owner.folder.path()).await;
    again.queues("").await.unwrap();
    assert_eq!(
        socket.metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );
    // What is there when it ends is its own, or stays.
    let Owner {
        folder, control, ..
    } = owner;
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "a file").unwrap();
    control.close().await;
    assert_eq!(std::fs::read(&socket).unwrap(), b"a file");
    // A folder that was moved away is not followed, and who has its name now is left alone.
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(QueueOptions::default()));
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    std::fs::create_dir(&here).unwrap();
    let control = serve_control(&here, store, None, ControlAccess::All).unwrap();
    std::fs::rename(&here, &there).unwrap();
    std::fs::create_dir(&here).unwrap();
    for _ in 0..10 {
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
    }
    assert!(!here.join("control.sock").exists());
    control.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_store_for_now_lets_another_have_it_and_who_stays_does_not() {
    let owner = Owner::new(QueueOptions::default());
    let client = owner.client().await;
    assert!(client.stays());
    assert!(!client.hand_over().await.unwrap());
    owner.is_well().await;
    let Owner {
        folder,
        store,
        control,
    } = owner;
    control.close().await;

    let control = serve_control_for_now(folder.path(), Arc::clone(&store), ControlAccess::All);
    let control = control.unwrap();
    let client = ControlStore::connect(folder.path()).await.unwrap();
    assert!(!client.stays());
    let name: QueueName = "new".parse().unwrap();
    let queue = client.queue(&name).await.unwrap();
    // Not in the middle of a dump that is taken in.
    let restore = queue.transfer().unwrap().restore().await.unwrap();
    let wanted = control.wanted();
    let asking = tokio::spawn(async move { (client.hand_over().await, client) });
    let mut wanted = std::pin::pin!(wanted);
    assert!(futures_util::poll!(&mut wanted).is_pending());
    drop(restore);
    wanted.await;
    control.close().await;
    let (lets_go, client) = asking.await.unwrap();
    assert!(lets_go.unwrap());
    let error = client.queues("").await.unwrap_err();
    assert_eq!(OwnerGone::of(&error), Some(OwnerGone::Undone), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_with_a_long_name_is_served_too() {
    if !cfg!(target_os = "linux") {
        println!("skipped: an address is short here");
        return;
    }
    let folder = TempDir::new().unwrap();
    let long = folder.path().join("x".repeat(120)).join("y".repeat(120));
    std::fs::create_dir_all(&long).unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(QueueOptions::default()));
    let control = serve_control(&long, store, None, ControlAccess::All).unwrap();
    let client = ControlStore::connect(&long).await.unwrap();
    assert_eq!(client.pid(), std::process::id());
    control.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_payloads_and_pages_go_through_whole() {
    let owner = Owner::new(QueueOptions::default());
    let queue = owner
        .client()
        .await
        .queue(&QueueName::default())
        .await
        .unwrap();
    let large = vec![7; batchyard::MAX_PAYLOAD_BYTES];
    queue
        .push_one(NewRequest::new(large.clone()))
        .await
        .unwrap();
    let few = (0..10_000)
        .map(|n| NewRequest::new(vec![1; n % 100]))
        .collect();
    queue.push(queue.now(), few).await.unwrap();
    let list = List::new(State::Ready).with_payloads();
    let page = queue
        .admin()
        .unwrap()
        .list(queue.now(), &list)
        .await
        .unwrap();
    assert_eq!(page[0].payload.as_ref().unwrap(), &large);
    // What no frame can carry is refused before it is sent.
    let many = (0..3).map(|_| NewRequest::new(large.clone())).collect();
    let error = queue.push(queue.now(), many).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert_eq!(queue.stats(queue.now()).await.unwrap().pushed, 10_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_any_size_are_what_the_owner_answers() {
    let owner = Owner::new(QueueOptions::default());
    let name = QueueName::default();
    let own = owner.store.queue(&name).await.unwrap();
    let (now, most) = (own.now(), std::num::NonZeroU32::new(2_300).unwrap());
    let requests = vec![NewRequest::new("a"); 5_000];
    own.push(now, requests).await.unwrap();
    let claim = Claim {
        max_requests: std::num::NonZeroU32::MIN,
        ..Claim::new()
    };
    let mut leases = Vec::new();
    for _ in 0..2_500 {
        leases.push(own.claim(now, &claim).await.unwrap().unwrap());
    }
    let finish = Then::Finish {
        rest: Outcome::done(),
        retries: Retries {
            at: now,
            max_attempts: std::num::NonZeroU32::MIN,
        },
    };
    let queue = owner.client().await.queue(&name).await.unwrap();
    let (own, queue) = (own.admin().unwrap(), queue.admin().unwrap());
    let list = List::new(State::Ready).max_requests(most);
    for list in [list, list.with_payloads()] {
        let page = queue.list(now, &list).await.unwrap();
        assert_eq!(page.len(), 2_300);
        assert_eq!(page, own.list(now, &list).await.unwrap());
    }
    let page = queue.batches(now, None, most).await.unwrap();
    assert_eq!(page.len(), 2_300);
    assert_eq!(page, own.batches(now, None, most).await.unwrap());
    let settling = owner.store.queue(&name).await.unwrap();
    for lease in leases {
        let update = Update::then(finish.clone());
        settling.update(now, &lease, update).await.unwrap();
    }
    let page = queue.results(now, None, most).await.unwrap();
    assert_eq!(page.entries.len(), 2_300);
    assert_eq!(page, own.results(now, None, most).await.unwrap());
    let page = queue.results(now, page.next, most).await.unwrap();
    assert_eq!(page.entries.len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatcher_explains_what_it_serves_and_nothing_else() {
    let owner = Owner::new(QueueOptions::default());
    let name = QueueName::default();
    let error = owner.client().await.explain(&name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let Owner {
        folder,
        store,
        control,
    } = owner;
    control.close().await;
    let queue = store.queue(&name).await.unwrap();
    let running = Dispatcher::builder(queue)
        .handler(|_: batchyard::Batch| async { Ok::<_, HandlerError>(Report::done()) })
        .build()
        .unwrap()
        .start();
    let control = serve_control(
        folder.path(),
        store,
        Some(running.handle()),
        ControlAccess::All,
    )
    .unwrap();
    let client = ControlStore::connect(folder.path()).await.unwrap();
    assert_eq!(
        client.explain(&name).await.unwrap().summary,
        "nothing waits"
    );
    let other = "other".parse().unwrap();
    let error = client.explain(&other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    running.shut_down().await.unwrap();
    let error = client.explain(&name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    control.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_served_to_be_looked_at_is_not_changed() {
    let folder = TempDir::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(QueueOptions::default()));
    let name = QueueName::default();
    let own = store.queue(&name).await.unwrap();
    let id = own.push_one(NewRequest::new("a")).await.unwrap().id;
    let control =
        serve_control(folder.path(), Arc::clone(&store), None, ControlAccess::Look).unwrap();
    let client = ControlStore::connect(folder.path()).await.unwrap();
    let queue = client.queue(&name).await.unwrap();
    let (admin, now) = (queue.admin().unwrap(), queue.now());
    own.push_one(NewRequest::new("held")).await.unwrap();
    let claim = Claim {
        max_requests: std::num::NonZeroU32::MIN,
        ..Claim::new()
    };
    let batch = own.claim(now, &claim).await.unwrap().unwrap().batch;
    let shown = admin.batch(now, batch).await.unwrap();
    assert_eq!(shown, own.admin().unwrap().batch(now, batch).await.unwrap());
    assert_eq!(shown.unwrap().id, batch);
    let bookmark = |source: &str| batchyard::Bookmark {
        source: source.into(),
        value: "7".into(),
    };
    let refused = [
        queue.push_one(NewRequest::new("b")).await.map(drop),
        queue
            .push_from(now, Vec::new(), bookmark("mine"))
            .await
            .map(drop),
        queue
            .push_from(
                now,
                vec![NewRequest::new("b")],
                bookmark("batchyard:paused"),
            )
            .await
            .map(drop),
        queue.claim(now, &Claim::new()).await.map(drop),
        admin.cancel(now, &[id]).await.map(drop),
        admin.purge(now, &[id]).await.map(drop),
        admin.redrive(now, &[id]).await.map(drop),
        admin.release(now, &[batch]).await.map(drop),
        queue.transfer().unwrap().restore().await.map(drop),
    ];
    for refused in refused {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    queue.pause().await.unwrap();
    let stats = queue.stats(now).await.unwrap();
    assert_eq!((stats.pushed, stats.ready), (2, 1), "{stats:?}");
    assert!(own.stats(now).await.unwrap().paused_at.is_some());
    assert!(admin.status(now, id).await.unwrap().is_some());
    control.close().await;
}

const AS_ANOTHER: &str = "BATCHYARD_TEST_FOLDER";

/// Run by the test below, as another user.
#[tokio::test]
async fn another_user_asks() {
    let Some(folder) = std::env::var_os(AS_ANOTHER) else {
        return;
    };
    let error = ControlStore::connect(Path::new(&folder)).await.unwrap_err();
    println!("told: {:?}", error.kind());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_its_own_user_and_root_are_answered() {
    let owner = Owner::new(QueueOptions::default());
    let folder = owner.folder.path().to_owned();
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(&folder, 0o755);
    // By its mode alone, and then without that.
    for (mode, told) in [(0o600, "told: Unavailable"), (0o666, "told: NotFound")] {
        open(&folder.join("control.sock"), mode);
        let mut asking = Command::new(std::env::current_exe().unwrap());
        asking
            .args(["--exact", "another_user_asks", "--nocapture"])
            .env(AS_ANOTHER, &folder)
            .uid(65534);
        let asked = tokio::task::spawn_blocking(move || asking.output())
            .await
            .unwrap();
        match asked {
            Ok(asked) => {
                let printed = String::from_utf8_lossy(&asked.stdout);
                assert!(printed.contains(told), "{mode:o}: {asked:?}");
            }
            Err(error) => {
                println!("skipped: no program can be run as another user here: {error}");
                return;
            }
        }
    }
    owner.is_well().await;
}

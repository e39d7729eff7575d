//! Random traffic through both backends at once, for as long as `SOAK` says (seconds): every byte is checked, and at the end everything is as
//! it was at the start.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::ends::{Far, Script, answer, first_message, judge, seen_by_server, user, visit};
use super::lab::*;
use super::process::{descriptors, engines, is_alone, resident};
use crate::listener::tests::random::{Random, seeds};
use crate::sessions::{Session, Sessions};

/// Of each kind, for each backend.
const SCRIPTED: usize = 12;
const CHATTING: usize = 6;
const IDLE: usize = 60;

/// Pipes that the cores may keep, in descriptors: two engines of two cores with sixteen each.
const SPARE_PIPES: usize = 2 * 2 * 16 * 2;

/// The memory of a process at rest may differ by this much from what it was after the warm-up.
const SLACK: usize = 24 << 20;

fn how_long() -> Duration {
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "1");
    let secs = std::env::var("SOAK").ok().and_then(|secs| secs.parse().ok());
    Duration::from_secs(secs.unwrap_or(if ci { 120 } else { 10 }))
}

/// What the clients of one backend share.
struct World {
    name: &'static str,
    address: std::net::SocketAddr,
    sessions: Arc<Sessions>,
    far: Far,
    /// Changes of leader begun and ended, so odd while one is under way: a session that lived through one may have been cut.
    changes: AtomicU64,
    /// Sessions that were killed, perhaps before they began.
    kills: AtomicU64,
    stop: AtomicBool,
    done: AtomicU64,
    cut: AtomicU64,
    bytes: AtomicU64,
}

impl World {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// The changes so far, at a moment when none is under way: who begins in the middle of one may still be sent to the old
    /// leader, and is cut with it.
    async fn at_rest(&self) -> u64 {
        loop {
            let changes = self.changes();
            if changes.is_multiple_of(2) {
                return changes;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Changes with everything that may keep a session from beginning.
    fn disturbances(&self) -> u64 {
        self.changes() + self.kills.load(Ordering::SeqCst)
    }

    fn ended(&self, cut: bool, bytes: usize) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.cut.fetch_add(u64::from(cut), Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A server: scripted sessions have a number for a user, all others get an echo, `CancelRequest`s nothing.
async fn serve(server: TcpListener, far: Far) {
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            accepted = server.accept() => {
                let (mut stream, far) = (accepted.unwrap().0, Arc::clone(&far));
                serving.spawn(async move {
                    let Ok(message) = first_message(&mut stream).await else { return };
                    if message.len() == 16 {
                        return;
                    }
                    match user(&message).parse() {
                        Ok(id) => answer(stream, id, far).await,
                        Err(_) => echo(stream).await,
                    }
                });
            }
            Some(done) = serving.join_next() => done.unwrap(),
        }
    }
}

async fn echo(mut stream: TcpStream) {
    let _ = stream.write_all(AUTH_OK).await;
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// One after the other, of every kind that [`Script`] has: bulk, half-closes, resets, kills.
async fn scripted(world: Arc<World>, mut random: Random) {
    while world.goes_on() {
        let (script, calm) = (Script::new(random.next()), world.disturbances());
        let before = world.at_rest().await;
        let visit = visit(world.address, script, Arc::clone(&world.sessions));
        let outcome = tokio::time::timeout(Duration::from_secs(60), visit).await.expect("a session hangs");
        let Some((script, client, session)) = outcome else {
            assert_ne!(world.disturbances(), calm, "no session though nothing has happened");
            continue;
        };
        let server = seen_by_server(&world.far, script, client).await;
        // Who was killed before we had found it in the register is not in there any more.
        let gone = || world.disturbances() != calm;
        let cut =
            world.changes() != before || session.as_ref().map_or_else(gone, |session| session.is_killed());
        judge(script, client, server, session.as_deref(), cut);
        world.far.lock().unwrap().remove(&script.id);
        world.ended(cut, client.heard + server.heard);
    }
}

/// A session with an echo. `None`: revoked or killed before it was of any use.
async fn with_echo(world: &World) -> Option<(TcpStream, Arc<Session>)> {
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut hello = [0; 9];
    stream.write_all(&startup("echo")).await.ok()?;
    stream.read_exact(&mut hello).await.ok()?;
    if hello[0] == b'E' {
        return None; // killed by now
    }
    assert_eq!(hello, AUTH_OK);
    let ours = stream.local_addr().unwrap();
    let session = world.sessions.list().into_iter().find(|session| session.client() == ours)?;
    Some((stream, session))
}

async fn round_trip(stream: &mut TcpStream, random: &mut Random, most: u64) -> std::io::Result<usize> {
    let (size, mut content) = (1 + random.below(most), random.clone());
    let message = content.bytes(size);
    let mut back = vec![0; message.len()];
    stream.write_all(&message).await?;
    stream.read_exact(&mut back).await?;
    assert!(back == message, "other bytes came back");
    Ok(2 * message.len())
}

/// Small messages as of pgbench, a few hundred for each connection; some connections carry one only.
async fn chatting(world: Arc<World>, mut random: Random) {
    while world.goes_on() {
        let calm = world.disturbances();
        let before = world.at_rest().await;
        let Some((mut stream, session)) = with_echo(&world).await else {
            assert_ne!(world.disturbances(), calm, "no session though nothing has happened");
            continue;
        };
        let messages = if random.below(3) == 0 { 1 } else { random.below(500) };
        let (mut cut, mut bytes) = (false, 0);
        for _ in 0..messages {
            let trip = round_trip(&mut stream, &mut random, 2000);
            match tokio::time::timeout(LONG, trip).await.expect("a message hangs") {
                Ok(count) => bytes += count,
                Err(error) => {
                    cut = world.changes() != before || session.is_killed();
                    assert!(cut, "ended though nothing has happened: {error}");
                    break;
                }
            }
            random.next();
        }
        if random.below(4) == 0 {
            reset(stream);
        }
        world.ended(cut, bytes);
    }
}

/// Says something once in a while.
async fn idle(world: Arc<World>, mut random: Random) {
    while world.goes_on() {
        let before = world.at_rest().await;
        let Some((mut stream, session)) = with_echo(&world).await else { continue };
        while world.goes_on() {
            tokio::time::sleep(Duration::from_millis(300 + random.next() % 1000)).await;
            let trip = round_trip(&mut stream, &mut random, 100);
            if tokio::time::timeout(LONG, trip).await.expect("a message hangs").is_err() {
                assert!(world.changes() != before || session.is_killed(), "an idle session has ended");
                break;
            }
        }
    }
}

/// `CancelRequest`s, kills by an operator, clients that speak another protocol.
async fn disturbing(world: Arc<World>, mut random: Random) {
    let cancel = [0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e, 0, 0, 1, 2, 9, 8, 7, 6];
    while world.goes_on() {
        tokio::time::sleep(Duration::from_millis(random.next() % 200)).await;
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        match random.below(4) {
            0 => {
                stream.write_all(&cancel).await.unwrap();
                let (got, _) = read_all(&mut stream).await;
                assert_eq!(got, b"");
            }
            1 => {
                let all = world.sessions.list();
                if let Some(session) = all.get(random.below(all.len() as u64 + 1)) {
                    world.kills.fetch_add(1, Ordering::SeqCst);
                    session.kill(pointsman_core::close::CloseReason::Killed);
                }
            }
            2 => drop(stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await),
            _ => reset(stream),
        }
    }
}

/// A backend with its clients and its server.
struct Running {
    lab: Lab,
    world: Arc<World>,
    clients: JoinSet<()>,
    server: std::net::SocketAddr,
    serving: JoinSet<()>,
}

impl Running {
    async fn new(name: &'static str, engine: crate::engine::Engine) -> Self {
        let mut lab = Lab::on(engine, |_| {});
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (server, far) = (listener.local_addr().unwrap(), Far::default());
        let serving = JoinSet::from_iter([serve(listener, Arc::clone(&far))]);
        lab.route(&[("n1", server, 1)]);
        let world = Arc::new(World {
            name,
            address: lab.address(),
            sessions: Arc::clone(&lab.sessions),
            far,
            changes: AtomicU64::new(0),
            kills: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            done: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        Self { lab, world, clients: JoinSet::new(), server, serving }
    }

    fn start(&mut self, mut random: Random) {
        self.world.stop.store(false, Ordering::Relaxed);
        let (clients, world) = (&mut self.clients, &self.world);
        for _ in 0..SCRIPTED {
            clients.spawn(scripted(Arc::clone(world), Random(random.next())));
        }
        for _ in 0..CHATTING {
            clients.spawn(chatting(Arc::clone(world), Random(random.next())));
        }
        for _ in 0..IDLE {
            clients.spawn(idle(Arc::clone(world), Random(random.next())));
        }
        clients.spawn(disturbing(Arc::clone(world), Random(random.next())));
    }

    /// The same server becomes the leader of another term: its sessions of the old one are cut.
    fn change_leader(&mut self) {
        let old = self.world.changes.fetch_add(1, Ordering::SeqCst) / 2 + 1;
        self.lab.route(&[("n1", self.server, old + 1)]);
        self.lab.revoke(old);
        self.world.changes.fetch_add(1, Ordering::SeqCst);
        self.lab.reported();
    }

    /// Lets everybody finish, and sees that nothing is left.
    async fn rest(&mut self) {
        self.world.stop.store(true, Ordering::Relaxed);
        while let Some(client) = self.clients.join_next().await {
            client.unwrap();
        }
        assert!(self.serving.try_join_next().is_none(), "a server has found something wrong");
        self.lab.at_rest().await;
        let lab = &self.lab;
        eventually("the cores have given everything back", || {
            lab.engine.cores().states().all(|core| core.sessions == 0 && core.pipes == 0)
        })
        .await;
        eventually("every task has ended", || lab.listener.tasks() == 2).await;
        self.world.far.lock().unwrap().clear(); // dials that were revoked
    }
}

async fn traffic(running: &mut [Running; 2], random: &mut Random, since: Instant, until: Instant) {
    let mut last = Instant::now();
    for one in running.iter_mut() {
        one.start(Random(random.next()));
    }
    while Instant::now() < until {
        let left = until.saturating_duration_since(Instant::now());
        tokio::time::sleep(Duration::from_millis(1000 + random.next() % 3000).min(left)).await;
        for one in running.iter_mut() {
            one.change_leader();
            while let Some(client) = one.clients.try_join_next() {
                client.unwrap();
            }
        }
        if last.elapsed() >= Duration::from_secs(10) || Instant::now() >= until {
            last = Instant::now();
            let worlds = running.iter().map(|one| {
                let world = &one.world;
                let [done, cut, bytes] =
                    [&world.done, &world.cut, &world.bytes].map(|n| n.load(Ordering::Relaxed));
                format!("{}: {done} sessions, {cut} of them cut, {} MB", world.name, bytes / 1_000_000)
            });
            let worlds = worlds.collect::<Vec<_>>().join("; ");
            println!("soak {} s: {worlds}; resident {} MB", since.elapsed().as_secs(), resident() >> 20);
        }
    }
    for one in running.iter_mut() {
        one.rest().await;
    }
}

async fn soaked() {
    let [epoll, io_uring] = engines();
    let mut running = [Running::new(epoll.0, epoll.1).await, Running::new(io_uring.0, io_uring.1).await];
    let seed = seeds(1).next().unwrap();
    let (mut random, since, long) = (Random(seed), Instant::now(), how_long());
    traffic(&mut running, &mut random, since, since + long / 5).await;
    let warm = (descriptors("socket:"), descriptors("") - descriptors("pipe:"), resident());
    traffic(&mut running, &mut random, since, since + long).await;
    eventually("every socket is closed", || descriptors("socket:") == warm.0).await;
    assert_eq!(descriptors("") - descriptors("pipe:"), warm.1, "descriptors that are no pipes");
    assert!(descriptors("pipe:") <= SPARE_PIPES, "{} descriptors of pipes", descriptors("pipe:"));
    let after = resident();
    println!("soak: at rest, resident {} kB after the warm-up and {} kB now", warm.2 >> 10, after >> 10);
    assert!(
        after <= warm.2 + warm.2 / 4 + SLACK,
        "{} bytes of memory were {} after the warm-up",
        after,
        warm.2
    );
    for one in &running {
        let world = &one.world;
        let [done, cut] = [&world.done, &world.cut].map(|n| n.load(Ordering::Relaxed));
        assert!(done > 100 && cut > 0, "{}: {done} sessions and {cut} cut: nothing was tried", world.name);
    }
}

#[test]
fn soak() {
    if is_alone("soak::soak") {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(soaked());
    }
}

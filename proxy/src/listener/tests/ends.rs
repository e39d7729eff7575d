//! Random sessions with ends of every kind: what arrives is what was sent or the beginning of it, in both directions at once, and an end
//! that looks orderly is one.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pointsman_core::close::CloseReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::task::JoinSet;

use super::lab::*;
use crate::engine::faulty::INJECTED;
use crate::listener::tests::random::{Random, seeds};
use crate::sessions::Session;

/// How a session is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Each side sends everything and a FIN.
    Whole,
    /// After so many bytes of its own.
    ClientResets(usize),
    ServerResets(usize),
    /// After so many bytes of both.
    Killed(usize),
}

/// What a session is going to do; made from its number, on both of its ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Script {
    pub(super) id: u64,
    up: usize,
    down: usize,
    fate: Fate,
}

impl Script {
    pub(super) fn new(id: u64) -> Self {
        let mut random = Random(id);
        let (up, down) = (total(&mut random), total(&mut random));
        let fate = match random.below(8) {
            0 | 1 => Fate::ClientResets(random.below(up as u64 + 1)),
            2 | 3 => Fate::ServerResets(random.below(down as u64 + 1)),
            4 => Fate::Killed(random.below((up + down) as u64 + 1)),
            _ => Fate::Whole,
        };
        Self { id, up, down, fate }
    }

    fn client(self) -> Part {
        let reset = if let Fate::ClientResets(at) = self.fate { Some(at) } else { None };
        Part { says: self.id, total: self.up, hears: !self.id, reset }
    }

    fn server(self) -> Part {
        let reset = if let Fate::ServerResets(at) = self.fate { Some(at) } else { None };
        Part { says: !self.id, total: self.down, hears: self.id, reset }
    }
}

/// Nothing, little, much.
fn total(random: &mut Random) -> usize {
    match random.below(4) {
        0 => 0,
        1 => random.below(2_000),
        2 => random.below(300_000),
        _ => random.below(3_000_000),
    }
}

/// What one side does.
#[derive(Clone, Copy, Debug)]
struct Part {
    says: u64,
    total: usize,
    hears: u64,
    reset: Option<usize>,
}

/// What one side has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Bytes that its kernel took, and whether it sent a FIN after them.
    pub(super) said: usize,
    finished: bool,
    pub(super) heard: usize,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Fin,
    Reset,
    Own,
}

/// How a writer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    All,
    Failed,
    ToBeReset,
}

async fn say(to: &mut WriteHalf<'_>, part: Part, mut random: Random, said: &mut usize) -> Written {
    let (mut content, until) = (Random(part.says), part.reset.unwrap_or(part.total));
    let mut pending: Vec<u8> = Vec::new();
    loop {
        if pending.is_empty() {
            if *said == until {
                break;
            }
            pending = content.bytes(random.size().div_ceil(8) * 8);
            pending.truncate(until - *said);
        }
        match to.write(&pending).await {
            Ok(count) => {
                *said += count;
                pending.drain(..count);
            }
            Err(_) => return Written::Failed,
        }
        random.pause().await;
    }
    if part.reset.is_some() {
        return Written::ToBeReset;
    }
    if to.shutdown().await.is_ok() { Written::All } else { Written::Failed }
}

/// Compares every byte. `Ok`: a FIN.
async fn hear(
    from: &mut ReadHalf<'_>,
    content: u64,
    mut random: Random,
    heard: &mut usize,
) -> io::Result<()> {
    if random.below(3) == 0 {
        tokio::time::sleep(Duration::from_millis(random.next() % 100)).await;
    }
    let mut content = Random(content);
    let mut expected: Vec<u8> = Vec::new();
    loop {
        let mut buffer = vec![0; random.size()];
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        if expected.len() < count {
            expected.extend(content.bytes((count - expected.len()).div_ceil(8) * 8));
        }
        assert!(buffer[..count] == expected[..count], "wrong bytes after {heard}");
        expected.drain(..count);
        *heard += count;
        random.pause().await;
    }
}

async fn play(mut stream: TcpStream, part: Part, mut random: Random) -> Seen {
    if random.below(2) == 0 {
        socket2::SockRef::from(&stream).set_recv_buffer_size(100_000).unwrap();
    }
    let (mut said, mut heard) = (0, 0);
    let (mut written, mut end) = (None, None);
    {
        let (mut reader, mut writer) = stream.split();
        let saying = say(&mut writer, part, Random(random.next()), &mut said);
        let hearing = hear(&mut reader, part.hears, Random(random.next()), &mut heard);
        let (mut saying, mut hearing) = (std::pin::pin!(saying), std::pin::pin!(hearing));
        while written.is_none() || end.is_none() {
            tokio::select! {
                biased;
                outcome = &mut saying, if written.is_none() => {
                    written = Some(outcome);
                    if outcome == Written::ToBeReset {
                        end = Some(End::Own);
                    }
                }
                outcome = &mut hearing, if end.is_none() => {
                    // The kernel tells of an RST once: after a failed write a read shows an end that is none.
                    let fin = outcome.is_ok() && written != Some(Written::Failed);
                    end = Some(if fin { End::Fin } else { End::Reset });
                    if !fin && part.reset.is_some() && written.is_none() {
                        written = Some(Written::Failed);
                    }
                }
            }
        }
    }
    if end == Some(End::Own) {
        reset(stream);
    }
    Seen { said, finished: written == Some(Written::All), heard, end: end.unwrap() }
}

/// What the servers have seen of each session; a dial that came to nothing leaves an entry, too.
pub(super) type Far = Arc<Mutex<HashMap<u64, Vec<Seen>>>>;

/// A start-up message, or a CancelRequest (16 bytes).
pub(super) async fn first_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; 4];
    stream.read_exact(&mut message).await?;
    let length = u32::from_be_bytes([message[0], message[1], message[2], message[3]]);
    message.resize(length as usize, 0);
    stream.read_exact(&mut message[4..]).await?;
    Ok(message)
}

/// The user of a start-up message.
pub(super) fn user(message: &[u8]) -> &str {
    let user = message[8..].split(|byte| *byte == 0).nth(1).unwrap();
    std::str::from_utf8(user).unwrap()
}

/// Takes the start-up message, whose user is the number of the session, and plays the server's part.
async fn serve(mut stream: TcpStream, far: Far) {
    if let Ok(message) = first_message(&mut stream).await {
        answer(stream, user(&message).parse().unwrap(), far).await;
    }
}

pub(super) async fn answer(mut stream: TcpStream, id: u64, far: Far) {
    if stream.write_all(AUTH_OK).await.is_err() {
        return;
    }
    let seen = play(stream, Script::new(id).server(), Random(id ^ 0xfa5)).await;
    far.lock().unwrap().entry(id).or_default().push(seen);
}

/// A client. `None`: no session came about.
pub(super) async fn visit(
    address: SocketAddr,
    script: Script,
    sessions: Arc<crate::sessions::Sessions>,
) -> Option<(Script, Seen, Option<Arc<Session>>)> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let ours = stream.local_addr().unwrap();
    let mut answer = [0; 9];
    let hello = async {
        stream.write_all(&startup(&script.id.to_string())).await?;
        stream.read_exact(&mut answer).await
    };
    if hello.await.is_err() || answer != AUTH_OK {
        return None;
    }
    let session = sessions.list().into_iter().find(|session| session.client() == ours);
    let playing = play(stream, script.client(), Random(script.id ^ 0xc11e));
    let seen = match (script.fate, &session) {
        (Fate::Killed(at), Some(session)) => {
            let killer = async {
                while session.bytes_in() + session.bytes_out() < at as u64 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                session.kill(CloseReason::Killed);
            };
            let mut playing = std::pin::pin!(playing);
            tokio::select! {
                seen = &mut playing => seen,
                () = killer => playing.await,
            }
        }
        _ => playing.await,
    };
    Some((script, seen, session))
}

/// `cut`: sessions were revoked meanwhile.
pub(super) fn judge(script: Script, client: Seen, server: Seen, session: Option<&Session>, cut: bool) {
    let about = format!("{script:?}\nclient {client:?}\nserver {server:?}\ncut {cut}");
    assert!(server.heard <= client.said && client.heard <= server.said, "more than was sent: {about}");
    if super::ROUGH {
        return;
    }
    let cut = cut || matches!(script.fate, Fate::Killed(_));
    // A FIN stands for the end of what was said; only a client of a session that we end gets one early.
    // A dial that was revoked before anything was said is closed in peace.
    if server.end == End::Fin && !(cut && server.heard == 0) {
        assert!(client.finished && server.heard == client.said, "a server takes this for all: {about}");
    }
    if client.end == End::Fin && !cut {
        assert!(server.finished && client.heard == server.said, "a client takes this for all: {about}");
    }
    match script.fate {
        _ if cut => {}
        Fate::Whole => {
            assert_eq!((client.end, server.end), (End::Fin, End::Fin), "{about}");
            assert_eq!((client.heard, server.heard), (script.down, script.up), "{about}");
            let session = session.expect("it was in the register");
            let counted = (session.bytes_in(), session.bytes_out());
            let overhead = (startup(&script.id.to_string()).len(), AUTH_OK.len());
            assert_eq!(
                counted,
                ((script.up + overhead.0) as u64, (script.down + overhead.1) as u64),
                "{about}"
            );
        }
        Fate::ClientResets(_) => assert_ne!(server.end, End::Fin, "{about}"),
        Fate::ServerResets(_) => assert_ne!(client.end, End::Fin, "{about}"),
        Fate::Killed(_) => {}
    }
}

async fn accept_all(server: FakeServer, far: Far) {
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            stream = server.accept_any() => drop(serving.spawn(serve(stream, Arc::clone(&far)))),
            Some(done) = serving.join_next() => done.unwrap(),
        }
    }
}

async fn run(lab: &mut Lab, seed: u64, count: u64) {
    let server = FakeServer::new().await;
    lab.route(&[("n1", server.address, 1)]);
    let mut random = Random(seed);
    let far = Far::default();
    let accepting = accept_all(server, Arc::clone(&far));
    let mut accepting = JoinSet::from_iter([accepting]);
    let mut clients = JoinSet::new();
    for _ in 0..count {
        clients.spawn(visit(lab.address(), Script::new(random.next()), Arc::clone(&lab.sessions)));
    }
    let cut = random.below(3) == 0;
    if cut {
        let begun = || lab.stats.servers().iter().any(|(_, server)| server.sessions_total.get() >= count / 2);
        eventually("sessions have begun", begun).await;
        tokio::time::sleep(Duration::from_millis(random.next() % 200)).await;
        let elsewhere = FakeServer::new().await;
        lab.route(&[("n1", elsewhere.address, 2)]);
        lab.revoke(1);
        lab.no_route_ever();
    }
    let clients =
        tokio::time::timeout(Duration::from_secs(100), clients.join_all()).await.expect("a client hangs");
    lab.at_rest().await;
    assert!(cut || super::ROUGH || clients.iter().all(Option::is_some), "there were sessions for all");
    for (script, client, session) in clients.into_iter().flatten() {
        let of_server = || far.lock().unwrap().get(&script.id).map(|all| all.last().copied());
        eventually("the server has seen the end", || of_server().is_some()).await;
        judge(script, client, of_server().flatten().unwrap(), session.as_deref(), cut);
    }
    assert!(accepting.try_join_next().is_none(), "a server has found something wrong");
    eventually("the cores have given everything back", || {
        lab.engine.cores().states().all(|core| core.sessions == 0 && core.pipes == 0)
    })
    .await;
    // The accept loop and the keeper of the queue.
    eventually("every task has ended", || lab.listener.tasks() == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_end_what_arrives_is_what_was_sent_or_its_beginning() {
    let before = INJECTED.load(Ordering::Relaxed);
    for seed in seeds(4) {
        let mut lab = Lab::new();
        run(&mut lab, seed, 20).await;
    }
    assert!(
        !super::FAULTY || INJECTED.load(Ordering::Relaxed) > before + 100,
        "no faults: nothing was tried"
    );
}

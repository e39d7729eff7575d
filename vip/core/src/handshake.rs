//! How two hosts meet on a TCP connection: each proves to the other that it knows the shared key, and says which life of its
//! process this is. After that the connection carries nothing but a [`Stream::farewell`]; what counts is its end.
//!
//! Both send a hello at once. The caller proves first, so that a stranger who calls learns nothing that it could try keys on.
//!
//! | message | bytes |
//! |---|---|
//! | hello: `PVIP`, version, name with its length in one byte, incarnation, nonce | 4, 1, 1 + name, 8, 32 |
//! | proof: a seal over the role of its sender and both hellos, the caller's first | 32 |
//! | farewell: the same with another key | 32 |
//!
//! Each proof holds a nonce that the other side has just drawn, so a recorded one is worth nothing; it holds the role of its
//! sender, so one that is sent back is not either. A host does not talk to itself, whoever relays its words.

use std::num::NonZeroUsize;

use pointsman_config::NodeName;

use crate::bytes::{MAX_NAME, Reader, write_name};
use crate::key::{SEAL, Use};
use crate::report::{Incarnation, Key};

#[cfg(test)]
mod tests;

/// The random bytes of a hello.
pub const NONCE: usize = 32;
/// The longest message. Whoever has not finished the handshake can make us keep no more.
pub const MAX_MESSAGE: usize = MAGIC.len() + 2 + MAX_NAME + 8 + NONCE;

const MAGIC: &[u8; 4] = b"PVIP";
const VERSION: u8 = 1;

/// What a host says of itself when it meets another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its name.
    pub node: NodeName,
    /// Its process.
    pub incarnation: Incarnation,
    /// Random and never used before.
    pub nonce: [u8; NONCE],
}

/// Who is who on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It has opened the connection.
    Caller,
    /// It has accepted it.
    Callee,
}

impl Role {
    const fn other(self) -> Self {
        match self {
            Self::Caller => Self::Callee,
            Self::Callee => Self::Caller,
        }
    }
}

/// Who is at the other end: it has proved it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The host.
    pub node: NodeName,
    /// Its process: its reports are to carry this.
    pub incarnation: Incarnation,
}

/// How far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Send what [`Handshake::outgoing`] has, and read on.
    NeedMore,
    /// Send what [`Handshake::outgoing`] has, and go on with [`Handshake::into_stream`].
    Done(Peer),
    /// Close the connection.
    Failed(Failure),
}

/// Why two hosts did not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Failure {
    /// Something else talks to us.
    #[error("the other side is no pointsman-vip")]
    Stranger,
    /// Another version of pointsman-vip.
    #[error(
        "the other side speaks version {theirs} of the peers' protocol and we {VERSION}: update all hosts"
    )]
    Version {
        /// Its version.
        theirs: u8,
    },
    /// What it calls itself is no name.
    #[error("the other side has no proper name")]
    Name,
    /// It has our name.
    #[error(
        "the other side has our own name: is `node` the same on two hosts, or does `peers` give our address to another?"
    )]
    Ourselves,
    /// It does not know the key.
    #[error("the other side does not know our key: is the content of `key_file` the same on all hosts?")]
    Proof,
}

impl Failure {
    /// The label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::Version { .. } => "version",
            Self::Name => "name",
            Self::Ourselves => "ourselves",
            Self::Proof => "proof",
        }
    }

    /// Every label, for counters that begin at zero.
    pub const LABELS: [&'static str; 5] = ["stranger", "version", "name", "ourselves", "proof"];
}

/// One side of the handshake. Fed in any pieces it does the same.
#[derive(Debug)]
pub struct Handshake {
    key: Key,
    node: NodeName,
    role: Role,
    /// Our hello as it is sent.
    ours: Vec<u8>,
    outgoing: Vec<u8>,
    received: Vec<u8>,
    stage: Stage,
}

#[derive(Clone, Debug)]
enum Stage {
    /// We wait for its hello.
    Hello,
    /// We wait for its proof.
    Proof(Peer, Transcript),
    Done(Peer, Transcript),
    Failed(Failure),
}

/// Both hellos, the caller's first. Each says itself how long it is, so there is one way to divide it.
#[derive(Clone, Debug)]
struct Transcript(Vec<u8>);

impl Transcript {
    /// What a seal of this side covers.
    fn by(&self, role: Role) -> Vec<u8> {
        let role = match role {
            Role::Caller => b'>',
            Role::Callee => b'<',
        };
        [&[role][..], &self.0].concat()
    }
}

impl Handshake {
    /// `hello` is ours; its nonce has to be new and random for each connection.
    pub fn new(key: Key, hello: Hello, role: Role) -> Self {
        let ours = write_hello(&hello);
        let outgoing = ours.clone();
        Self { key, node: hello.node, role, ours, outgoing, received: Vec::new(), stage: Stage::Hello }
    }

    /// Takes what is to be sent now. To be called at the start and after each [`Handshake::feed`].
    pub fn outgoing(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.outgoing)
    }

    /// The next bytes of the other side.
    pub fn feed(&mut self, bytes: &[u8]) -> Progress {
        self.received.extend_from_slice(bytes);
        while let Some(consumed) = self.step() {
            self.received.drain(..consumed.get().min(self.received.len()));
        }
        match &self.stage {
            Stage::Hello | Stage::Proof(..) => Progress::NeedMore,
            Stage::Done(peer, _) => {
                // More than a farewell will not be looked at.
                self.received.truncate(SEAL);
                Progress::Done(peer.clone())
            }
            Stage::Failed(failure) => {
                self.received.clear();
                Progress::Failed(*failure)
            }
        }
    }

    /// What the connection carries afterwards. `None` unless the handshake is done.
    pub fn into_stream(self) -> Option<Stream> {
        let Stage::Done(_, transcript) = self.stage else { return None };
        let (key, role, received) = (self.key, self.role, self.received);
        Some(Stream { key, role, transcript, received })
    }

    /// Reads one message, if it is there as a whole. The length of what was read.
    fn step(&mut self) -> Option<NonZeroUsize> {
        match &self.stage {
            Stage::Hello => self.step_hello(),
            Stage::Proof(peer, transcript) => {
                let (peer, transcript) = (peer.clone(), transcript.clone());
                self.step_proof(peer, transcript)
            }
            Stage::Done(..) | Stage::Failed(_) => None,
        }
    }

    fn step_hello(&mut self) -> Option<NonZeroUsize> {
        let (hello, length) = match read_hello(&self.received)? {
            Ok((hello, _)) if hello.node == self.node => return self.fail(Failure::Ourselves),
            Ok(read) => read,
            Err(failure) => return self.fail(failure),
        };
        let theirs = self.received.get(..length)?;
        let transcript = Transcript(match self.role {
            Role::Caller => [&self.ours, theirs].concat(),
            Role::Callee => [theirs, &self.ours].concat(),
        });
        if self.role == Role::Caller {
            self.prove(&transcript);
        }
        self.stage = Stage::Proof(Peer { node: hello.node, incarnation: hello.incarnation }, transcript);
        NonZeroUsize::new(length)
    }

    fn step_proof(&mut self, peer: Peer, transcript: Transcript) -> Option<NonZeroUsize> {
        let proof = self.received.first_chunk::<SEAL>()?;
        if !self.key.is_sealed(Use::Proof, &transcript.by(self.role.other()), proof) {
            return self.fail(Failure::Proof);
        }
        if self.role == Role::Callee {
            self.prove(&transcript);
        }
        self.stage = Stage::Done(peer, transcript);
        NonZeroUsize::new(SEAL)
    }

    fn prove(&mut self, transcript: &Transcript) {
        self.outgoing.extend(self.key.seal(Use::Proof, &transcript.by(self.role)));
    }

    fn fail(&mut self, failure: Failure) -> Option<NonZeroUsize> {
        self.stage = Stage::Failed(failure);
        None
    }
}

/// What a connection carries after the handshake.
#[derive(Debug)]
pub struct Stream {
    key: Key,
    role: Role,
    transcript: Transcript,
    received: Vec<u8>,
}

/// What came over a [`Stream`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing yet that would mean anything.
    Nothing,
    /// The other side says good-bye: that the connection ends then says nothing else.
    Farewell,
    /// Something that the other side of this connection would not say.
    Nonsense,
}

impl Stream {
    /// The good-bye of this side, for this connection only.
    pub fn farewell(&self) -> Vec<u8> {
        self.key.seal(Use::Farewell, &self.transcript.by(self.role)).to_vec()
    }

    /// The next bytes of the other side. Asked with none, it says what came together with the end of the handshake. Once
    /// it has heard something, it says so for ever.
    pub fn feed(&mut self, bytes: &[u8]) -> Heard {
        let missing = SEAL.saturating_sub(self.received.len());
        self.received.extend(bytes.iter().take(missing));
        let Some(seal) = self.received.first_chunk::<SEAL>() else { return Heard::Nothing };
        if self.key.is_sealed(Use::Farewell, &self.transcript.by(self.role.other()), seal) {
            Heard::Farewell
        } else {
            Heard::Nonsense
        }
    }
}

fn write_hello(hello: &Hello) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    write_name(&mut out, hello.node.as_str());
    out.extend(hello.incarnation.0.to_be_bytes());
    out.extend(hello.nonce);
    out
}

/// A hello and its length. `None`: it is not there as a whole yet. What is wrong is said as soon as it is seen.
fn read_hello(bytes: &[u8]) -> Option<Result<(Hello, usize), Failure>> {
    let mut reader = Reader(bytes);
    if !bytes.iter().zip(MAGIC).all(|(byte, expected)| byte == expected) {
        return Some(Err(Failure::Stranger));
    }
    reader.take(MAGIC.len())?;
    let theirs = reader.byte()?;
    if theirs != VERSION {
        return Some(Err(Failure::Version { theirs }));
    }
    let length = usize::from(reader.byte()?);
    if length > MAX_NAME {
        return Some(Err(Failure::Name));
    }
    let name = reader.take(length)?;
    let Some(node) = std::str::from_utf8(name).ok().and_then(|name| NodeName::new(name).ok()) else {
        return Some(Err(Failure::Name));
    };
    let (incarnation, nonce) = (Incarnation(reader.number()?), reader.array()?);
    Some(Ok((Hello { node, incarnation, nonce }, bytes.len() - reader.0.len())))
}

//! Listening sockets: the addresses that everybody may use, and the UNIX socket of operators.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use crate::Program;

/// Connections that the kernel keeps ready for accept(2); `net.core.somaxconn` caps it.
pub const BACKLOG: i32 = 4096;

/// The group that may use the UNIX socket, where the system has it.
const GROUP: &str = "pointsman";

/// A peer that does not take our bytes for so long is gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a program cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// An address is in use, or not ours to use.
    #[error("{}.bind: cannot listen on {address}: {error}", program.section)]
    Tcp {
        /// Whose.
        program: Program,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// Another process answers on the socket.
    #[error(
        "{}.socket: another process listens on {}: is {} running already?",
        program.section,
        path.display(),
        program.name
    )]
    InUse {
        /// Whose.
        program: Program,
        /// The socket.
        path: PathBuf,
    },
    /// The path is taken by something that is not a socket.
    #[error("{}.socket: {} exists and is not a socket", program.section, path.display())]
    NotASocket {
        /// Whose.
        program: Program,
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("{}.socket: cannot create {}: {error}", program.section, path.display())]
    Unix {
        /// Whose.
        program: Program,
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Binds one address. It may be one that this host does not have yet (a virtual IP).
pub fn tcp(program: Program, address: SocketAddr) -> Result<TcpListener, BindError> {
    let listening = listen(address).and_then(TcpListener::from_std);
    listening.map_err(|error| BindError::Tcp { program, address, error })
}

/// A listening socket. The address may be one that this host does not have yet (a virtual IP elsewhere).
pub fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A peer that vanished, or that never reads, must not keep its place.
pub fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(PATIENCE).with_interval(Duration::from_secs(10));
    // Each of these is a precaution; the connection works without it.
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(PATIENCE));
    let _ = socket.set_tcp_nodelay(true);
}

/// Makes the UNIX socket: 0660, group `pointsman` where it exists, in place of a stale one.
///
/// It is made under another name and moved into place, so that it is never there with wider permissions.
pub fn unix(program: Program, path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    let failed = |error| BindError::Unix { program, path: path.to_owned(), error };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    check_free(program, path)?;
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", std::process::id()));
    let draft = PathBuf::from(draft);
    let _ = fs::remove_file(&draft); // of a process that had our number and died here
    let listener = UnixListener::bind(&draft).map_err(failed)?;
    let mut socket = SocketFile::new(&draft).map_err(failed)?;
    if let Some(group) = group_id(GROUP) {
        let _ = chown(&draft, None, Some(group)); // only root and members of the group may: else it stays ours
    }
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    fs::rename(&draft, path).map_err(failed)?;
    path.clone_into(&mut socket.path);
    Ok((listener, socket))
}

/// A socket that nobody listens on is left over from a crash and may be replaced; nothing else may.
fn check_free(program: Program, path: &Path) -> Result<(), BindError> {
    let failed = |error| BindError::Unix { program, path: path.to_owned(), error };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket { program, path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse { program, path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Removes the socket's file at the end, if it is still ours.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: Self::identity(path)? })
    }

    fn identity(path: &Path) -> io::Result<(u64, u64)> {
        let metadata = fs::symlink_metadata(path)?;
        Ok((metadata.dev(), metadata.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A successor may have put its own socket here already.
        if Self::identity(&self.path).is_ok_and(|found| found == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The number of a group in `/etc/group` (`name:password:number:members`).
fn group_id(name: &str) -> Option<u32> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1))??.parse().ok()
    })
}

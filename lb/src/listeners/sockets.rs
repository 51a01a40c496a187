//! The sockets that are listened on, kept beside the threads that serve them: for a successor, and from a predecessor.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;

use super::bind::{BindError, Bound};
use crate::handover::Listening;
use crate::snapshot::routes::HostPort;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// Copies of those in use.
    open: Mutex<BTreeMap<HostPort, Vec<OwnedFd>>>,
    /// Of a predecessor, until somebody wants them.
    adopted: Mutex<BTreeMap<HostPort, Vec<OwnedFd>>>,
    handed_over: AtomicBool,
}

impl Sockets {
    /// Copies of all sockets in use.
    pub fn listening(&self) -> io::Result<Vec<Listening>> {
        let open = self.open.lock();
        let copies = |sockets: &Vec<OwnedFd>| sockets.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>();
        open.iter().map(|(port, sockets)| Ok(Listening { port: *port, sockets: copies(sockets)? })).collect()
    }

    /// Keeps a predecessor's sockets until they are wanted.
    pub fn adopt(&self, sockets: Vec<Listening>) {
        self.adopted.lock().extend(sockets.into_iter().map(|listening| (listening.port, listening.sockets)));
    }

    /// A predecessor's sockets for `port`.
    pub fn take_adopted(&self, port: HostPort) -> Option<Vec<OwnedFd>> {
        self.adopted.lock().remove(&port)
    }

    /// Closes what is left of a predecessor's: nobody wants it.
    pub fn drop_adopted(&self) {
        self.adopted.lock().clear();
    }

    /// Keeps copies of the sockets that `port` is served on; hands them back.
    pub fn opened(&self, port: HostPort, sockets: Vec<Bound>) -> Result<Vec<Bound>, BindError> {
        let copy = |socket: &Bound| match socket {
            Bound::Tcp(socket) => socket.as_fd().try_clone_to_owned(),
            Bound::Udp(socket) => socket.as_fd().try_clone_to_owned(),
        };
        let copies = sockets.iter().map(copy).collect::<io::Result<_>>()?;
        self.open.lock().insert(port, copies);
        Ok(sockets)
    }

    /// Closes the copies of a port that is served no more: before its threads close theirs, or clients would wait for nobody.
    pub fn closed(&self, port: HostPort) {
        self.open.lock().remove(&port);
    }

    /// Notes that a successor serves these listeners now.
    pub fn hand_over(&self) {
        self.handed_over.store(true, Relaxed);
    }

    /// Whether it does.
    pub fn are_handed_over(&self) -> bool {
        self.handed_over.load(Relaxed)
    }

    /// Closes all copies.
    pub fn close_all(&self) {
        self.open.lock().clear();
    }
}

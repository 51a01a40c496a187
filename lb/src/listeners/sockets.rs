//! The sockets that are listened on, kept beside the threads that serve them: for a successor, and from a predecessor.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use parking_lot::Mutex;

use crate::handover::Listening;
use crate::snapshot::routes::HostPort;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// Copies of those in use.
    open: Mutex<BTreeMap<HostPort, Vec<OwnedFd>>>,
    /// Of a predecessor, until somebody wants them.
    adopted: Mutex<BTreeMap<HostPort, Vec<OwnedFd>>>,
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

    /// Notes that `port` is served on `sockets`.
    pub fn opened(&self, port: HostPort, sockets: Vec<OwnedFd>) {
        self.open.lock().insert(port, sockets);
    }

    /// Notes that `port` is served no more: the last copies are closed here.
    pub fn closed(&self, port: HostPort) {
        self.open.lock().remove(&port);
    }
}

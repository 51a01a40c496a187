//! The sockets that are listened on, as the threads of the proxy have them and as they are handed over.

use std::io;
use std::os::fd::AsFd;

use super::bind::{BindError, Bound};
use crate::handover::Listening;
use crate::snapshot::routes::HostPort;

/// By port of the host.
pub(crate) type Sockets = crate::sockets::Sockets<HostPort>;

impl Sockets {
    /// Copies of all sockets in use.
    pub fn listening(&self) -> io::Result<Vec<Listening>> {
        let copies = self.copies()?;
        Ok(copies.into_iter().map(|(port, sockets)| Listening { port, sockets }).collect())
    }

    /// Keeps copies of the sockets that `port` is served on; hands them back.
    pub fn opened_all(&self, port: HostPort, sockets: Vec<Bound>) -> Result<Vec<Bound>, BindError> {
        self.opened(
            port,
            sockets.iter().map(|socket| match socket {
                Bound::Tcp(socket) => socket.as_fd(),
                Bound::Udp(socket) => socket.as_fd(),
            }),
        )?;
        Ok(sockets)
    }
}

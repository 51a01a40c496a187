//! Copies of the sockets that are served, by what they are for: kept for a successor, and taken from a predecessor. Whoever serves them
//! has them open, too; both processes hold the same queues meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;

/// See the module.
#[derive(Debug)]
pub(crate) struct Sockets<K> {
    /// Copies of those in use.
    open: Mutex<BTreeMap<K, Vec<OwnedFd>>>,
    /// Of a predecessor, until somebody wants them.
    adopted: Mutex<BTreeMap<K, Vec<OwnedFd>>>,
    handed_over: AtomicBool,
}

impl<K> Default for Sockets<K> {
    fn default() -> Self {
        Self { open: Mutex::default(), adopted: Mutex::default(), handed_over: AtomicBool::new(false) }
    }
}

impl<K: Ord + Copy> Sockets<K> {
    /// Copies of all sockets in use.
    pub fn copies(&self) -> io::Result<Vec<(K, Vec<OwnedFd>)>> {
        let open = self.open.lock();
        let copies = |sockets: &Vec<OwnedFd>| sockets.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>();
        open.iter().map(|(key, sockets)| Ok((*key, copies(sockets)?))).collect()
    }

    /// Keeps a predecessor's sockets until they are wanted.
    pub fn adopt(&self, sockets: impl IntoIterator<Item = (K, Vec<OwnedFd>)>) {
        let mut adopted = self.adopted.lock();
        for (key, sockets) in sockets {
            adopted.entry(key).or_default().extend(sockets);
        }
    }

    /// A predecessor's sockets for `key`.
    pub fn take_adopted(&self, key: K) -> Option<Vec<OwnedFd>> {
        self.adopted.lock().remove(&key)
    }

    /// Whether there is anything of a predecessor that nobody has wanted yet.
    pub fn has_adopted(&self) -> bool {
        !self.adopted.lock().is_empty()
    }

    /// Closes what is left of a predecessor's: nobody wants it.
    pub fn drop_adopted(&self) {
        self.adopted.lock().clear();
    }

    /// Keeps copies of the sockets that `key` is served on.
    pub fn opened<'a>(&self, key: K, sockets: impl IntoIterator<Item = BorrowedFd<'a>>) -> io::Result<()> {
        let copies = sockets.into_iter().map(|socket| socket.try_clone_to_owned()).collect::<io::Result<_>>()?;
        self.open.lock().insert(key, copies);
        Ok(())
    }

    /// Closes the copies of what is served no more: before those who serve it close theirs, or clients would wait for nobody.
    pub fn closed(&self, key: K) {
        self.open.lock().remove(&key);
    }

    /// Closes all copies.
    pub fn close_all(&self) {
        self.open.lock().clear();
    }

    /// Notes that a successor serves these sockets now.
    pub fn hand_over(&self) {
        self.handed_over.store(true, Relaxed);
    }

    /// Whether it does.
    pub fn are_handed_over(&self) -> bool {
        self.handed_over.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn copies_pass_from_one_to_the_next() {
        let (old, new) = (Sockets::default(), Sockets::default());
        let listener = TcpListener::bind("127.53.0.2:0").expect("a socket");
        let addr = listener.local_addr().expect("an address");
        old.opened(7, [listener.as_fd(), listener.as_fd()]).expect("copies");
        let _waiting = TcpStream::connect(addr).expect("a connection");
        new.adopt(old.copies().expect("copies"));
        old.hand_over();
        assert!(old.are_handed_over() && !new.are_handed_over() && new.has_adopted());
        drop(listener);
        old.closed(7);
        assert!(old.copies().expect("none").is_empty());
        assert!(new.take_adopted(8).is_none());
        let taken = new.take_adopted(7).expect("the sockets");
        assert!((taken.len(), new.has_adopted()) == (2, false));
        let first = taken.into_iter().next().expect("a socket");
        TcpListener::from(first).accept().expect("the connection that waited");
        new.adopt([(1, Vec::new())]);
        new.drop_adopted();
        assert!(!new.has_adopted());
        assert!(TcpStream::connect(addr).is_err(), "nobody holds it any more");
    }
}

//! What a client's connection has for itself: connections to endpoints that were told for whom they are (PROXY protocol).
//!
//! Nobody else's requests go over them, and they are closed with their client's connection. Made when first needed: a client whose
//! requests go to other endpoints costs two addresses.

use std::cell::{OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use super::h2::upstream;
use super::pool::Pool;
use super::worker::Worker;

/// Both ends of a client's connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    /// Whom the connection is for: who opened it, or who a trusted PROXY header says.
    pub client: SocketAddr,
    /// Our address.
    pub server: SocketAddr,
}

/// Where a client's connection keeps its [`Own`].
pub(crate) struct OwnCell {
    ends: Ends,
    own: OnceCell<Rc<Own>>,
}

impl OwnCell {
    pub fn new(ends: Ends) -> Self {
        Self { ends, own: OnceCell::new() }
    }

    /// What is there, made if need be.
    pub fn get(&self, worker: &Worker) -> Rc<Own> {
        let make = || {
            let own =
                Rc::new(Own { ends: self.ends, http1: RefCell::new(worker.new_pool()), http2: Default::default() });
            worker.owned.borrow_mut().push(Rc::downgrade(&own));
            own
        };
        self.own.get_or_init(make).clone()
    }
}

/// See the module.
pub(crate) struct Own {
    /// What endpoints are told.
    pub ends: Ends,
    pub http1: RefCell<Pool>,
    pub http2: upstream::Pool,
}

impl Own {
    /// Closes what is idle for too long.
    pub fn sweep(&self) {
        self.http1.borrow_mut().sweep();
        self.http2.sweep();
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // Their tasks and the pool would keep each other.
        self.http2.clear();
    }
}

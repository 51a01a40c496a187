//! A whole server for one test.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use scaleup_store::Store;

use crate::server::{ApiServer, Server, ServerConfig};

/// A server with a directory of its own, both gone when it is dropped.
pub(crate) struct TestServer {
    pub(crate) server: Arc<Server>,
    dir: PathBuf,
}

impl TestServer {
    /// Ready to serve, without an audit log; `config` says the rest, but for the directory.
    pub(crate) async fn start(config: ServerConfig, store: Arc<dyn Store>) -> Self {
        let dir = std::env::temp_dir().join(format!("scaleup-test-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&dir).expect("a temporary directory");
        let config = ServerConfig { data_dir: dir.clone(), audit: false, ..config };
        let server = ApiServer::build(config, store).expect("the server builds");
        tokio::time::timeout(Duration::from_secs(20), server.ready()).await.expect("the server gets ready");
        Self { server, dir }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.server.stop();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

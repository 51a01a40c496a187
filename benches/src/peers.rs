//! The peers: etcd, nginx and HAProxy as Debian ships them, started here in a directory of their own and stopped on drop.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use scaleup_tests::cluster::free_port;

/// How long a peer may take to answer.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// A running peer.
pub struct Peer {
    /// Where it listens on loopback.
    pub port: u16,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // nginx's and HAProxy's workers end with their master, which therefore gets a chance to stop them.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    /// Starts it and waits until it listens on the port.
    pub async fn start(command: &mut Command, port: u16, dir: tempfile::TempDir) -> Result<Self> {
        let log = std::fs::File::create(dir.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}; scripts/setup bench installs the peers"))?;
        let mut peer = Self { port, child, _dir: dir };
        let start = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if start.elapsed() > START_PATIENCE || peer.child.try_wait()?.is_some() {
                bail!("{command:?} did not start: {}", std::fs::read_to_string(peer._dir.path().join("log"))?);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(peer)
    }

    /// Process ids of the peer and its workers.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let master = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{master}/task/{master}/children"))?;
        let mut pids = vec![master];
        pids.extend(children.split_whitespace().filter_map(|p| p.parse::<u32>().ok()));
        Ok(pids)
    }

    /// etcd with its data on the same disk as ours.
    pub async fn etcd() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("scaleup-bench-").tempdir()?;
        let (client, peer) = (free_port()?, free_port()?);
        let urls = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(dir.path().join("data"));
        command.args([
            "--listen-client-urls",
            &urls.0,
            "--advertise-client-urls",
            &urls.0,
            "--listen-peer-urls",
            &urls.1,
        ]);
        command.args(["--initial-advertise-peer-urls", &urls.1, "--initial-cluster", &format!("default={}", urls.1)]);
        Self::start(&mut command, client, dir).await
    }

    /// nginx that answers every request with `body` (a file, as nginx takes no long texts in its configuration).
    pub async fn nginx_backend(body: &[u8]) -> Result<Self> {
        Self::nginx_backends(body, body).await
    }

    /// Likewise, with another body for paths that end with `/big`.
    pub async fn nginx_backends(body: &[u8], big: &[u8]) -> Result<Self> {
        let (dir, port) = (peer_dir()?, free_port()?);
        std::fs::write(dir.path().join("body"), body)?;
        std::fs::write(dir.path().join("big"), big)?;
        let server = format!(
            "open_file_cache max=10; sendfile on; server {{ listen 0.0.0.0:{port} reuseport; root {}; \
             location / {{ rewrite ^ /body break; }} location ~ /big$ {{ rewrite ^ /big break; }} }}",
            dir.path().display()
        );
        Self::nginx(dir, port, &format!("http {{ {HTTP} {server} }}")).await
    }

    /// nginx as a reverse proxy with keep-alive to its upstreams.
    pub async fn nginx_proxy(upstreams: &[String]) -> Result<Self> {
        let (dir, port) = (peer_dir()?, free_port()?);
        let servers: String = upstreams.iter().map(|u| format!("server {u};")).collect();
        let server = format!(
            "upstream b {{ {servers} keepalive 256; keepalive_requests 1000000; }} server {{ listen 127.0.0.1:{port} reuseport; \
             {FORWARDED} proxy_set_header X-Forwarded-Proto http; location / {{ proxy_pass http://b; }} }}"
        );
        Self::nginx(dir, port, &format!("http {{ {HTTP} {server} }}")).await
    }

    /// nginx as [`Self::nginx_proxy`] with so many locations `/rN/`, in clear text at `clear` and with TLS, for HTTP/1.1 and HTTP/2, at
    /// its port.
    pub async fn nginx_edge(upstreams: &[String], routes: usize, clear: u16, pair: (&str, &str)) -> Result<Self> {
        let (dir, port) = (certificate_dir(pair)?, free_port()?);
        let servers: String = upstreams.iter().map(|u| format!("server {u};")).collect();
        let locations: String = (0..routes).map(|i| format!("location /r{i}/ {{ proxy_pass http://b; }} ")).collect();
        let server = format!(
            "upstream b {{ {servers} keepalive 256; keepalive_requests 1000000; }} server {{ \
             listen 127.0.0.1:{clear} reuseport; listen 127.0.0.1:{port} ssl http2 reuseport; \
             ssl_certificate DIR/cert.pem; ssl_certificate_key DIR/key.pem; {FORWARDED} proxy_set_header X-Forwarded-Proto $scheme; {locations} }}"
        );
        Self::nginx(dir, port, &format!("http {{ {HTTP} {server} }}")).await
    }

    /// nginx as a proxy of TCP connections.
    pub async fn nginx_stream(upstreams: &[String]) -> Result<Self> {
        let (dir, port) = (peer_dir()?, free_port()?);
        let servers: String = upstreams.iter().map(|u| format!("server {u};")).collect();
        let stream = format!(
            "stream {{ tcp_nodelay on; upstream b {{ {servers} }} server {{ listen 127.0.0.1:{port} reuseport; proxy_pass b; }} }}"
        );
        Self::nginx(dir, port, &stream).await
    }

    /// Likewise, to a backend that the server name of the client's TLS chooses, one of so many: `NAME` with its number in place of `*`.
    pub async fn nginx_names(upstreams: &[String], names: usize, name: &str) -> Result<Self> {
        let (dir, port) = (peer_dir()?, free_port()?);
        let servers: String = upstreams.iter().map(|u| format!("server {u};")).collect();
        let map: String = (0..names).map(|i| format!("{} b; ", name.replace('*', &i.to_string()))).collect();
        let stream = format!(
            "stream {{ tcp_nodelay on; map_hash_max_size 65536; map_hash_bucket_size 128; map $ssl_preread_server_name $to {{ {map} }} \
             upstream b {{ {servers} }} server {{ listen 127.0.0.1:{port} reuseport; ssl_preread on; proxy_pass $to; }} }}"
        );
        Self::nginx(dir, port, &stream).await
    }

    /// nginx with one worker per core and without access logs.
    async fn nginx(dir: tempfile::TempDir, port: u16, block: &str) -> Result<Self> {
        let path = dir.path().display().to_string();
        let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
        let load = if block.starts_with("stream") { format!("load_module {module};") } else { String::new() };
        let config = format!(
            "{load} daemon off; worker_processes auto; pid {path}/pid; error_log {path}/error.log; worker_rlimit_nofile 16384; \
             events {{ worker_connections 8192; }} {block}"
        );
        std::fs::write(dir.path().join("nginx.conf"), config.replace("DIR", &path))?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(dir.path().join("nginx.conf")).arg("-p").arg(dir.path()).args(["-e", "stderr"]);
        Self::start(&mut command, port, dir).await
    }

    /// HAProxy as a reverse proxy with connection reuse, setting the headers that ours sets.
    pub async fn haproxy(upstreams: &[String]) -> Result<Self> {
        let rules = "  http-request set-header X-Forwarded-Proto http\n  http-request set-header X-Forwarded-Host %[req.hdr(host)]\n";
        let (dir, port) = (peer_dir()?, free_port()?);
        let front = format!("  bind 127.0.0.1:{port}\n{rules}  default_backend b\n");
        Self::haproxy_with(dir, port, HAPROXY_HTTP, &front, upstreams).await
    }

    /// Likewise, with so many paths `/rN/` in a map, as [`Self::nginx_edge`].
    pub async fn haproxy_edge(upstreams: &[String], routes: usize, clear: u16, pair: (&str, &str)) -> Result<Self> {
        let (dir, port) = (certificate_dir(pair)?, free_port()?);
        let map: String = (0..routes).map(|i| format!("/r{i}/ b\n")).collect();
        std::fs::write(dir.path().join("routes.map"), map)?;
        let path = dir.path().display();
        let front = format!(
            "  bind 127.0.0.1:{clear}\n  bind 127.0.0.1:{port} ssl crt {path}/both.pem alpn h2,http/1.1\n  \
             http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]\n  http-request set-header X-Forwarded-Host %[req.hdr(host)]\n  use_backend %[path,map_beg({path}/routes.map)]\n"
        );
        Self::haproxy_with(dir, port, HAPROXY_HTTP, &front, upstreams).await
    }

    /// HAProxy as a proxy of TCP connections.
    pub async fn haproxy_tcp(upstreams: &[String]) -> Result<Self> {
        let (dir, port) = (peer_dir()?, free_port()?);
        let front = format!("  bind 127.0.0.1:{port}\n  default_backend b\n");
        Self::haproxy_with(dir, port, "  mode tcp\n", &front, upstreams).await
    }

    /// Likewise by the server name of the client's TLS, as [`Self::nginx_names`].
    pub async fn haproxy_names(upstreams: &[String], names: usize, name: &str) -> Result<Self> {
        let (dir, port) = (peer_dir()?, free_port()?);
        let map: String = (0..names).map(|i| format!("{} b\n", name.replace('*', &i.to_string()))).collect();
        std::fs::write(dir.path().join("names.map"), map)?;
        let front = format!(
            "  bind 127.0.0.1:{port}\n  tcp-request inspect-delay 5s\n  tcp-request content accept if {{ req_ssl_hello_type 1 }}\n  \
             use_backend %[req.ssl_sni,map({}/names.map)]\n",
            dir.path().display()
        );
        Self::haproxy_with(dir, port, "  mode tcp\n", &front, upstreams).await
    }

    async fn haproxy_with(
        dir: tempfile::TempDir,
        port: u16,
        defaults: &str,
        front: &str,
        upstreams: &[String],
    ) -> Result<Self> {
        let servers: String = upstreams.iter().enumerate().map(|(i, u)| format!("  server s{i} {u}\n")).collect();
        let config = format!(
            "global\n  maxconn 4096\n  nbthread {}\ndefaults\n{defaults}  timeout client 60s\n  timeout server 60s\n  timeout connect 5s\n\
             frontend f\n{front}backend b\n{servers}",
            std::thread::available_parallelism().map_or(2, usize::from)
        );
        std::fs::write(dir.path().join("haproxy.cfg"), config)?;
        let mut command = Command::new("haproxy");
        command.arg("-f").arg(dir.path().join("haproxy.cfg"));
        Self::start(&mut command, port, dir).await
    }
}

/// How HAProxy proxies HTTP here.
const HAPROXY_HTTP: &str = "  mode http\n  http-reuse always\n  option forwardfor\n";

/// What every nginx here has in its `http` block; `DIR` is its directory.
const HTTP: &str = "access_log off; tcp_nodelay on; keepalive_requests 1000000; client_body_temp_path DIR/b; \
                    proxy_temp_path DIR/p; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;";

/// How nginx proxies here. The headers are those that ours sets; the buffers hold the largest answer, so that none goes through a file.
const FORWARDED: &str = "proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host; \
                         proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Host $host; proxy_buffers 8 16k;";

/// A directory with a certificate, its key, and both in one file.
fn certificate_dir((chain, key): (&str, &str)) -> Result<tempfile::TempDir> {
    let dir = peer_dir()?;
    for (name, text) in [("cert.pem", chain), ("key.pem", key), ("both.pem", &format!("{chain}{key}"))] {
        std::fs::write(dir.path().join(name), text)?;
    }
    Ok(dir)
}

/// A directory that a peer's workers may read, too.
pub fn peer_dir() -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix("scaleup-bench-").tempdir()?;
    // nginx's workers are another user.
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(dir)
}

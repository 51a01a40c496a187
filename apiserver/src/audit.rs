//! The audit log: who did what, one `audit.k8s.io/v1` Event per line, at level Metadata.
//!
//! Bodies are never logged, so neither are Secrets. A bounded queue and one writer thread keep the disk off the request
//! path: when the disk is slower than the requests, events are dropped and counted. Reads by the platform's own roles,
//! health checks and discovery are left out, as in upstream's recommended policy.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

use crate::request::ResourcePath;
use crate::user::UserInfo;

/// Events waiting for the disk.
const QUEUE_EVENTS: usize = 8_192;
/// Size at which the file is rotated.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Rotated files kept: `audit.log.1` is the newest.
const KEPT_FILES: usize = 3;
/// How long an event may wait in the writer's buffer.
const FLUSH_PERIOD: Duration = Duration::from_millis(500);
/// After an event the writer waits this long for more: one wake-up for many requests. The queue holds what may come.
const GATHER_PERIOD: Duration = Duration::from_millis(10);
/// Bytes gathered before the file is written.
const BUFFER_BYTES: usize = 32 << 10;
/// Longest user agent and URI that are logged.
const MAX_TEXT_BYTES: usize = 2_048;

/// One answered request.
#[derive(Clone, Debug)]
pub struct Record {
    /// Who.
    pub user: Arc<UserInfo>,
    /// RBAC verb, or the lower-case method.
    pub verb: &'static str,
    /// Path and query.
    pub uri: String,
    /// The resource, if it is one.
    pub target: Option<ResourcePath>,
    /// Client address, if it came over the network.
    pub source: Option<std::net::SocketAddr>,
    /// `User-Agent`
    pub user_agent: String,
    /// HTTP status of the answer.
    pub code: u16,
    /// What steps of the answer had to say, by key.
    pub annotations: BTreeMap<String, String>,
    /// Whether the answer goes on (a watch).
    pub started: bool,
    /// When the request came in.
    pub received: Timestamp,
    /// When it was answered.
    pub answered: Timestamp,
}

/// The queue's end that requests write to.
pub struct Audit {
    queue: SyncSender<Box<Record>>,
    lost: Counter,
}

impl Audit {
    /// Opens (or makes) `path` and starts the writer.
    pub fn open(path: &Path, lost: Counter) -> io::Result<Self> {
        let log = Log::open(path)?;
        let (queue, records) = sync_channel(QUEUE_EVENTS);
        let errors = lost.clone();
        std::thread::Builder::new().name("audit".into()).spawn(move || write_all(log, &records, &errors))?;
        Ok(Self { queue, lost })
    }

    /// Logs a request; never waits.
    pub fn log(&self, record: Record) {
        if self.queue.try_send(Box::new(record)).is_err() {
            self.lost.inc();
        }
    }
}

/// Whether a request is worth a line.
pub fn is_logged(user: &UserInfo, in_process: bool, read_only: bool, is_resource: bool) -> bool {
    let own_role = in_process || user.name.starts_with("system:node:") || user.name.starts_with("system:kube-");
    is_resource && !(read_only && own_role)
}

fn write_all(mut log: Log, records: &Receiver<Box<Record>>, errors: &Counter) {
    loop {
        let result = match records.recv_timeout(FLUSH_PERIOD) {
            Ok(record) => {
                std::thread::sleep(GATHER_PERIOD);
                std::iter::once(record).chain(records.try_iter()).try_for_each(|record| log.append(&line(&record)))
            }
            Err(RecvTimeoutError::Timeout) => log.flush(),
            Err(RecvTimeoutError::Disconnected) => {
                // The server is gone: nobody is left to tell.
                let _ = log.flush();
                return;
            }
        };
        if let Err(cause) = result {
            errors.inc();
            tracing::warn!(%cause, "the audit log cannot be written");
        }
    }
}

fn clip(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// One line of the log, in upstream's spelling.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    kind: &'static str,
    api_version: &'static str,
    level: &'static str,
    #[serde(rename = "auditID")]
    audit_id: String,
    stage: &'static str,
    #[serde(rename = "requestURI")]
    request_uri: &'a str,
    verb: &'static str,
    user: LineUser<'a>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "Option::is_none")]
    source_ips: Option<[IpAddr; 1]>,
    user_agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_ref: Option<ObjectRef<'a>>,
    response_status: ResponseStatus,
    request_received_timestamp: String,
    stage_timestamp: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct LineUser<'a> {
    username: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
    groups: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ObjectRef<'a> {
    resource: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    api_group: &'a str,
    api_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    subresource: &'a str,
}

#[derive(Serialize)]
struct ResponseStatus {
    metadata: BTreeMap<String, String>,
    code: u16,
}

fn line(record: &Record) -> Vec<u8> {
    let micros = |t: Timestamp| format!("{t:.6}");
    let line = Line {
        kind: "Event",
        api_version: "audit.k8s.io/v1",
        level: "Metadata",
        audit_id: uuid::Uuid::now_v7().to_string(),
        stage: if record.started { "ResponseStarted" } else { "ResponseComplete" },
        request_uri: clip(&record.uri),
        verb: record.verb,
        user: LineUser { username: &record.user.name, uid: &record.user.uid, groups: &record.user.groups },
        source_ips: record.source.map(|source| [source.ip()]),
        user_agent: clip(&record.user_agent),
        object_ref: record.target.as_ref().map(object_ref),
        response_status: ResponseStatus { metadata: BTreeMap::new(), code: record.code },
        request_received_timestamp: micros(record.received),
        stage_timestamp: micros(record.answered),
        annotations: &record.annotations,
    };
    // Writing strings and numbers to memory cannot fail.
    let mut out = serde_json::to_vec(&line).unwrap_or_default();
    out.push(b'\n');
    out
}

fn object_ref(target: &ResourcePath) -> ObjectRef<'_> {
    ObjectRef {
        resource: &target.resource,
        namespace: &target.namespace,
        name: &target.name,
        api_group: &target.group,
        api_version: &target.version,
        subresource: target.subresource.as_deref().unwrap_or_default(),
    }
}

/// A file that rotates by size.
struct Log {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file: BufWriter::with_capacity(BUFFER_BYTES, file), bytes })
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes >= MAX_FILE_BYTES {
            self.rotate()?;
        }
        self.bytes += line.len() as u64;
        self.file.write_all(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.flush()?;
        let numbered = |n: usize| PathBuf::from(format!("{}.{n}", self.path.display()));
        for n in (1..KEPT_FILES).rev() {
            match std::fs::rename(numbered(n), numbered(n + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        std::fs::rename(&self.path, numbered(1))?;
        *self = Self::open(&self.path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn record() -> Record {
        Record {
            user: Arc::new(UserInfo::system("alice", &["devs"])),
            verb: "create",
            uri: "/api/v1/namespaces/ns/secrets?dryRun=All".into(),
            target: Some(ResourcePath {
                version: "v1".into(),
                resource: "secrets".into(),
                namespace: "ns".into(),
                ..ResourcePath::default()
            }),
            source: Some(([10, 0, 0, 1], 99).into()),
            user_agent: "kubectl".into(),
            code: 201,
            annotations: BTreeMap::from([("a/b".into(), "c".into())]),
            started: false,
            received: Timestamp::UNIX_EPOCH,
            answered: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_line_is_an_audit_event() {
        let event: Value = serde_json::from_slice(&line(&record())).unwrap();
        assert_eq!(event["objectRef"], json!({"resource": "secrets", "apiVersion": "v1", "namespace": "ns"}));
        assert_eq!(event["user"]["username"], "alice");
        assert_eq!(event["annotations"], json!({"a/b": "c"}));
        assert_eq!(event["sourceIPs"], json!(["10.0.0.1"]));
        assert_eq!(event["requestReceivedTimestamp"], "1970-01-01T00:00:00.000000Z");
    }

    #[test]
    fn files_rotate_and_old_ones_go() {
        let dir = std::env::temp_dir().join(format!("scaleup-audit-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("audit.log");
        let mut log = Log::open(&path).unwrap();
        for i in 0..KEPT_FILES + 2 {
            log.append(format!("{i}\n").as_bytes()).unwrap();
            log.rotate().unwrap();
        }
        let names = std::fs::read_dir(&dir).unwrap().count();
        assert_eq!(names, KEPT_FILES + 1);
        assert_eq!(std::fs::read_to_string(dir.join("audit.log.1")).unwrap(), format!("{}\n", KEPT_FILES + 1));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn own_reads_are_not_logged() {
        let role = UserInfo::system("system:kube-scheduler", &[]);
        let alice = UserInfo::system("alice", &[]);
        assert!(!is_logged(&role, true, true, true));
        assert!(is_logged(&role, true, false, true));
        assert!(is_logged(&alice, false, true, true));
        assert!(!is_logged(&alice, false, true, false));
    }
}

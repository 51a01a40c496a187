//! Admission by real components, through the router of a whole server. What loads plugins is not part of the crate: tests publish them.
//!
//! The compiler's process is this program again, as the platform's is the platform.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Method, Request};
use http_body_util::BodyExt;
use libtest_mimic::{Failed, Trial};
use scaleup_apiserver::server::{ApiServer, Server, ServerConfig};
use scaleup_apiserver::user::UserInfo;
use scaleup_plugins::testing::{Guest, by_name};
use scaleup_plugins::{
    Class, Compiler, FailurePolicy, Generation, Host, HostOptions, Limits, OnFailure, Outcome, PluginKey, Pool, Record,
    Recording, Setup, World,
};
use scaleup_store::memory::MemoryStore;
use serde_json::{Value, json};
use tower::ServiceExt;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const PLUGINS: &str = "/apis/policy.scaleup.dev/v1/clusterwasmplugins";

/// A server and a host of its own for one test.
struct Lab {
    server: Arc<Server>,
    host: Host,
    dir: tempfile::TempDir,
}

struct Answer {
    code: u16,
    warnings: Vec<String>,
    body: Value,
}

impl Answer {
    #[track_caller]
    fn is(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.body);
        self.body
    }
    #[track_caller]
    fn says(self, code: u16, message: &str) -> Value {
        let body = self.is(code);
        let said = body["message"].as_str().unwrap_or_default();
        assert!(said.contains(message), "{said:?} does not say {message:?}");
        body
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.server.stop();
    }
}

impl Lab {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = ServerConfig { data_dir: dir.path().into(), ..ServerConfig::default() };
        let server = ApiServer::build(config, Arc::new(MemoryStore::new())).unwrap();
        tokio::time::timeout(Duration::from_secs(20), server.ready()).await.unwrap();
        let options = HostOptions {
            cache: dir.path().join("code"),
            compiler: Compiler::this_program().unwrap(),
            threads: 2,
            pool: Pool { components: 64, core_instances: 512, memories: 64, tables: 256 },
        };
        Self { server, host: Host::start(options).unwrap(), dir }
    }

    async fn send(&self, method: Method, path: &str, body: &Value) -> Answer {
        let admin = self.server.in_process(UserInfo::system("admin", &["system:masters"]));
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let response = admin.oneshot(request.body(Body::from(body.to_string())).unwrap()).await.unwrap();
        let code = response.status().as_u16();
        let warnings = response.headers().get_all("warning").iter();
        let warnings = warnings.map(|value| value.to_str().unwrap().to_owned()).collect();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        Answer { code, warnings, body: serde_json::from_slice(&bytes).unwrap_or_default() }
    }

    async fn text(&self, path: &str) -> String {
        let admin = self.server.in_process(UserInfo::system("admin", &["system:masters"]));
        let response = admin.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, body).await
    }

    /// Binds a plugin of the cluster to these resources, those without the label `free`.
    async fn bind(&self, name: &str, group: &str, resources: &[&str]) {
        let rule = json!({"operations": ["*"], "apiGroups": [group], "resources": resources});
        let bound = json!({"matchExpressions": [{"key": "free", "operator": "DoesNotExist"}]});
        let admission = json!({"rules": [rule], "objectSelector": bound});
        let plugin = json!({"apiVersion": "policy.scaleup.dev/v1", "kind": "ClusterWasmPlugin", "metadata": {"name": name},
            "spec": {"world": "admission", "source": {"inline": "AAAA"}, "admission": admission}});
        self.post(PLUGINS, &plugin).await.is(201);
    }

    async fn load(&self, name: &str, number: u64, guest: &Guest, failure: FailurePolicy) {
        let limits = Limits { time: Duration::from_secs(10), ..Limits::of(World::Admission) };
        let module = self.host.compile(World::Admission, &guest.component(), &limits).await.unwrap();
        let setup = Setup { plugin: name.into(), number, config: "{}".into(), limits, state: None };
        let slot = self.server.config.plugins.slot(&PluginKey::cluster(name), World::Admission);
        slot.set_failure(failure);
        slot.policy.publish(Generation::new(&self.host, module, setup).unwrap()).unwrap();
    }

    /// With a plugin `guard` for ConfigMaps.
    async fn guarded() -> Self {
        let lab = Self::start().await;
        lab.bind("guard", "", &["configmaps"]).await;
        lab.load("guard", 1, &by_name::admission(), FailurePolicy::always(OnFailure::Refuse)).await;
        lab
    }

    fn audited(&self, text: &str) -> bool {
        let log = std::fs::read_to_string(self.dir.path().join("audit.log")).unwrap_or_default();
        log.lines().any(|line| line.contains(text))
    }
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

async fn verdicts() {
    let lab = Lab::guarded().await;
    let denied = lab.post(MAPS, &map("denied")).await;
    let body = denied.says(403, "admission plugin \"guard\" denied the request: no thanks");
    let cause = json!({"reason": "FieldValueForbidden", "field": "data.k", "message": "not like this"});
    assert_eq!((&body["reason"], &body["details"]["causes"][0]), (&json!("Forbidden"), &cause));
    lab.send(Method::GET, &format!("{MAPS}/denied"), &Value::Null).await.is(404);
    let patched = lab.post(MAPS, &map("patched")).await.is(201);
    assert_eq!(patched["metadata"]["labels"], json!({"tier": "gold"}));
    let warned = lab.post(MAPS, &map("warned")).await;
    assert_eq!((warned.code, warned.warnings.len()), (201, 1), "once, although it was asked twice");
    assert!(warned.warnings[0].contains("mind the gap"));
    let both = lab.post(MAPS, &map("both")).await;
    assert_eq!((both.code, both.warnings.len()), (403, 1), "warnings come with denials, too");
    // What it is told.
    lab.post(MAPS, &map("old")).await.is(201);
    let mut changed = map("old");
    changed["data"]["k"] = "w".into();
    lab.send(Method::PUT, &format!("{MAPS}/old"), &changed).await.says(403, "denied");
    lab.post(MAPS, &map("kept")).await.is(201);
    lab.send(Method::DELETE, &format!("{MAPS}/kept"), &json!({})).await.says(403, "denied");
    lab.send(Method::DELETE, MAPS, &json!({})).await.says(403, "denied");
    lab.post(&format!("{MAPS}?dryRun=All"), &map("yes")).await.says(403, "denied");
    lab.post(MAPS, &map("yes")).await.is(201);
    // The audit log, once it is written.
    let wanted = r#"{\"decision\":\"deny\",\"generation\":1,\"plugin\":\"guard\"}"#;
    for _ in 0..200 {
        if lab.audited(wanted) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{wanted} is not in the audit log");
}

async fn reinvocation() {
    let lab = Lab::start().await;
    let label = by_name::patching(r#"[{"op":"add","path":"/metadata/labels","value":{"tier":"gold"}}]"#);
    for (name, guest) in [("a", by_name::admission()), ("b", label)] {
        lab.bind(name, "", &["configmaps"]).await;
        lab.load(name, 1, &guest, FailurePolicy::always(OnFailure::Refuse)).await;
    }
    let stored = lab.post(MAPS, &map("zebra")).await.is(201);
    assert_eq!(stored["metadata"]["labels"], json!({"tier": "gold"}));
    assert_eq!(stored["metadata"]["annotations"], json!({"seen": "gold"}), "the first is asked again");
    // So are the built-in steps: what a plugin changed is theirs to check.
    lab.bind("c", "", &["pods"]).await;
    let account = by_name::patching(r#"[{"op":"add","path":"/spec/serviceAccountName","value":"missing"}]"#);
    lab.load("c", 1, &account, FailurePolicy::always(OnFailure::Refuse)).await;
    let own = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    lab.post("/api/v1/namespaces/default/serviceaccounts", &own).await.is(201);
    let spec = json!({"containers": [{"name": "c", "image": "i"}]});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec});
    lab.post(PODS, &pod).await.says(403, "serviceaccount \"missing\" not found");
}

async fn failures() {
    let lab = Lab::guarded().await;
    for (name, why) in [
        ("trap", "trap: deciding: "),
        ("identity", "invalid_output: its patch changes metadata.uid, which it may not"),
        ("spec", "invalid_output: the object after its patch: "),
        ("huge", "invalid_output: deciding: "),
    ] {
        let message = format!("failed calling admission plugin \"guard\": {why}");
        lab.post(MAPS, &map(name)).await.says(500, &message);
        lab.post(MAPS, &map(&format!("a-{name}"))).await.is(201);
    }
    lab.post(MAPS, &map("utf")).await.says(500, "invalid_output: deciding: ");
    // Five in a row were too many.
    lab.post(MAPS, &map("a-last")).await.says(500, "it failed too often and is given a rest");
    lab.load("guard", 2, &by_name::admission(), FailurePolicy::always(OnFailure::BuiltIn)).await;
    lab.post(MAPS, &map("loop")).await.is(201);
    let lenient = lab.post(MAPS, &map("identity")).await.is(201);
    assert!(lenient["metadata"]["uid"].as_str().is_some_and(|uid| uid.len() > 1), "{lenient}");
    let slot = lab.server.config.plugins.slot(&PluginKey::cluster("guard"), World::Admission);
    let active = slot.policy.generations().active.clone().unwrap();
    // The loop twice, once for each phase; and the patch, which was of no use.
    assert_eq!((active.number(), active.statistics().failed()), (2, 3));
}

async fn absent_plugins() {
    let lab = Lab::start().await;
    lab.bind("absent", "*", &["*"]).await;
    lab.post(MAPS, &map("a")).await.says(500, "failed calling admission plugin \"absent\": fetch: ");
    let slot = lab.server.config.plugins.slot(&PluginKey::cluster("absent"), World::Admission);
    slot.policy.set_absent(Class::Compile, "it does not compile");
    slot.set_failure(FailurePolicy::always(OnFailure::Refuse));
    lab.post(MAPS, &map("a")).await.says(500, "compile: it does not compile");
    let mut free = map("b");
    free["metadata"]["labels"] = json!({"free": "yes"});
    lab.post(MAPS, &free).await.is(201);
    // It cannot keep itself from being deleted, and then nobody is asked.
    lab.send(Method::DELETE, &format!("{PLUGINS}/absent"), &json!({})).await.is(200);
    lab.post(MAPS, &map("a")).await.is(201);
}

async fn records() {
    let lab = Lab::guarded().await;
    let path = "/plugins/records?plugin=guard";
    assert_eq!(lab.text(path).await, "", "nothing is recorded unless it is asked for");
    let slot = lab.server.config.plugins.slot(&PluginKey::cluster("guard"), World::Admission);
    slot.set_recording(Some(Recording { percent: 100, records: 10, plain_headers: Box::default() }));
    lab.post(MAPS, &map("denied")).await.is(403);
    lab.post(MAPS, &map("allowed")).await.is(201);
    let lines = lab.text(path).await;
    let records: Vec<Record> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = records.iter().map(|record| record.input["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["denied", "allowed", "allowed"], "each phase is a decision");
    assert!(matches!(&records[0].outcome, Outcome::Answer(answer) if answer["verdict"]["deny"].is_object()));
    lab.send(Method::GET, "/plugins/records?plugin=other", &Value::Null).await.is(404);
    lab.send(Method::GET, "/plugins/records", &Value::Null).await.is(400);
    let nobody = lab.server.in_process(UserInfo::system("nobody", &[]));
    let refused = nobody.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(refused.status(), 403);
}

async fn versions_of_a_kind() {
    let lab = Lab::start().await;
    lab.bind("guard", "", &["events"]).await;
    lab.load("guard", 1, &by_name::admission(), FailurePolicy::always(OnFailure::Refuse)).await;
    let regarding = json!({"kind": "Pod", "name": "p", "namespace": "default"});
    let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "denied"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reason": "R", "action": "A", "type": "Normal",
        "reportingController": "c", "reportingInstance": "i", "regarding": regarding});
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    lab.post(path, &event).await.says(403, "denied the request");
}

fn trial<F: Future<Output = ()> + 'static>(name: &'static str, test: fn() -> F) -> Trial {
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("tokio").block_on(test());
        Ok::<(), Failed>(())
    })
}

fn main() -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == scaleup_plugins::SUBCOMMAND) {
        return scaleup_plugins::compile_child(&arguments[1..]);
    }
    let trials = vec![
        trial("plugins_allow_deny_patch_and_warn", verdicts),
        trial("who_saw_an_older_state_is_asked_again", reinvocation),
        trial("failure_policies_decide_about_failures", failures),
        trial("a_plugin_that_is_not_there_refuses_until_it_is_deleted", absent_plugins),
        trial("recorded_decisions_are_handed_out_to_those_who_may", records),
        trial("a_rule_holds_for_every_version_of_a_kind", versions_of_a_kind),
    ];
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}

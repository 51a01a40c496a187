//! Plans by value: observed ReplicaSets in, operations and conditions out.

use super::plan::{Observed, Op, Plan, plan};
use super::{revision, status, strategy, template};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

const NOW: i64 = 1_700_000_000;

fn at(seconds_ago: i64) -> Time {
    Time(Timestamp::from_second(NOW - seconds_ago).unwrap())
}

/// A Deployment of 10 replicas at image `v2`, surge 3, unavailable 2.
fn deployment(spec: Value) -> Deployment {
    let mut value = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "d", "generation": 2, "resourceVersion": "9",
                     "annotations": {revision::REVISION: "2"}},
        "spec": {
            "replicas": 10,
            "selector": {"matchLabels": {"app": "web"}},
            "template": pod_template("v2"),
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 10,
        },
    });
    for (k, v) in spec.as_object().unwrap() {
        value["spec"][k] = v.clone();
    }
    serde_json::from_value(value).unwrap()
}

fn pod_template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

/// A ReplicaSet at `image` with `size` pods of which `available` are, made for a Deployment of `desired` pods.
fn set(image: &str, size: i32, available: i32, desired: i32, revision: i64) -> ReplicaSet {
    let value = json!({
        "metadata": {"name": format!("web-{image}"), "namespace": "shop", "uid": image, "generation": 1,
            "resourceVersion": "5", "creationTimestamp": at(1000 - revision),
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d", "controller": true}
            ],
            "annotations": {
                revision::REVISION: revision.to_string(),
                revision::DESIRED_REPLICAS: desired.to_string(),
                revision::MAX_REPLICAS: (desired + (desired + 3) / 4).to_string(),
            }},
        "spec": {"replicas": size, "selector": {"matchLabels": {"app": "web"}}, "template": pod_template(image)},
        "status": {
            "replicas": size, "readyReplicas": available, "availableReplicas": available, "observedGeneration": 1,
        },
    });
    serde_json::from_value(value).unwrap()
}

fn run(deployment: Deployment, sets: Vec<ReplicaSet>) -> Plan {
    run_with_pods(deployment, sets, BTreeMap::new())
}

fn run_with_pods(deployment: Deployment, sets: Vec<ReplicaSet>, pods: BTreeMap<String, Vec<Arc<Pod>>>) -> Plan {
    let now = Timestamp::from_second(NOW).unwrap();
    plan(Observed { deployment, sets: sets.into_iter().map(Arc::new).collect(), pods, now })
}

/// `web-v2=3` for a scale, `+web-…=3` for a creation, `-web-v1` for a deletion; order kept.
fn sizes(plan: &Plan) -> Vec<String> {
    let text = |op: &Op| match op {
        Op::Create(set) => Some(format!("+{}={}", set.annotations()[revision::REVISION], strategy::size(set))),
        Op::Update { set, replicas: Some(n), .. } => Some(format!("{}={n}", set.name_any())),
        Op::Delete(set) => Some(format!("-{}", set.name_any())),
        _ => None,
    };
    plan.ops.iter().filter_map(text).collect()
}

fn status_of(plan: &Plan) -> DeploymentStatus {
    let found = plan.ops.iter().find_map(|op| if let Op::Status(s) = op { Some((**s).clone()) } else { None });
    found.expect("a status is written")
}

fn check_sizes(spec: Value, sets: Vec<ReplicaSet>, want: &[&str]) {
    let plan = run(deployment(spec), sets);
    assert_eq!(sizes(&plan), want);
}

#[test]
fn a_new_template_makes_a_set_within_surge() {
    check_sizes(json!({}), vec![], &["+1=10"]);
    check_sizes(json!({}), vec![set("v1", 10, 10, 10, 1)], &["+2=3", "web-v1=8"]);
    check_sizes(json!({"strategy": {"type": "Recreate"}}), vec![], &["+1=10"]);
    check_sizes(json!({"replicas": 0}), vec![], &["+1=0"]);
}

#[test]
fn the_creation_is_complete() {
    let d = deployment(json!({}));
    let plan = run(d.clone(), vec![set("v1", 10, 10, 10, 7)]);
    let Op::Create(created) = &plan.ops[0] else { panic!("{:?}", plan.ops) };
    let annotations = created.annotations();
    assert_eq!(annotations[revision::REVISION], "8");
    assert_eq!(annotations[revision::DESIRED_REPLICAS], "10");
    assert_eq!(annotations[revision::MAX_REPLICAS], "13");
    assert_eq!(created.metadata.name, Some(format!("web-{}", template::hash(&d.spec.unwrap().template, None))));
    assert!(plan.ops.contains(&Op::SetRevision("8".into())));
    let status = status_of(&plan);
    let progressing = status::get(&status, status::PROGRESSING).unwrap();
    assert_eq!((progressing.status.as_str(), progressing.reason.as_deref()), ("True", Some("ReplicaSetUpdated")));
    assert_eq!(status.observed_generation, Some(2));
}

#[test]
fn a_rollout_goes_step_by_step() {
    // Surge is used up and 2 may be missing: with 3 new ones unavailable, 8 old ones must stay.
    check_sizes(json!({}), vec![set("v1", 8, 8, 10, 1), set("v2", 5, 0, 10, 2)], &[]);
    // Two became available: two old ones may go.
    check_sizes(json!({}), vec![set("v1", 8, 8, 10, 1), set("v2", 5, 2, 10, 2)], &["web-v1=6"]);
    // Room for new ones comes first.
    check_sizes(json!({}), vec![set("v1", 6, 6, 10, 1), set("v2", 5, 2, 10, 2)], &["web-v2=7"]);
    check_sizes(json!({}), vec![set("v1", 1, 1, 10, 1), set("v2", 10, 10, 10, 2)], &["web-v1=0"]);
    check_sizes(json!({}), vec![set("v1", 0, 0, 10, 1), set("v2", 10, 10, 10, 2)], &[]);
    // The newest is too large.
    check_sizes(json!({}), vec![set("v2", 12, 12, 10, 2)], &["web-v2=10"]);
}

#[test]
fn unhealthy_old_pods_go_first() {
    // 13 pods, 8 must be available: 5 may go; v0 has 2 broken ones, then v1 has to spare what is above 8.
    let sets = vec![set("v0", 4, 2, 10, 1), set("v1", 6, 6, 10, 2), set("v2", 3, 3, 10, 3)];
    check_sizes(json!({}), sets, &["web-v0=0", "web-v1=5"]);
    // All old ones are broken, the new ones not ready: broken ones may go as far as the bound lets them.
    let sets = vec![set("v1", 10, 0, 10, 1), set("v2", 3, 0, 10, 2)];
    check_sizes(json!({}), sets, &["web-v1=8"]);
}

#[test]
fn rolling_back_reuses_the_old_set() {
    let plan = run(deployment(json!({})), vec![set("v2", 0, 0, 10, 1), set("v3", 10, 10, 10, 2)]);
    assert_eq!(sizes(&plan), ["web-v2=3",]);
    let Op::Update { annotations, .. } = &plan.ops[0] else { panic!("{:?}", plan.ops) };
    assert_eq!(annotations[revision::REVISION], "3");
    assert_eq!(annotations[revision::REVISION_HISTORY], "1");
    assert!(plan.ops.contains(&Op::SetRevision("3".into())));
}

#[test]
fn scaling_is_not_a_rollout() {
    let mut d = deployment(json!({"replicas": 5}));
    d.status = Some(run_status(&d));
    let plan = run(d, vec![set("v2", 10, 10, 10, 2)]);
    assert_eq!(sizes(&plan), ["web-v2=5"]);
    let Op::Update { annotations, .. } = &plan.ops[0] else { panic!("{:?}", plan.ops) };
    assert_eq!(annotations[revision::DESIRED_REPLICAS], "5");
    assert_eq!(annotations[revision::MAX_REPLICAS], "7");
    // A saturated newest set empties the old ones.
    check_sizes(json!({}), vec![set("v1", 2, 2, 9, 1), set("v2", 10, 10, 10, 2)], &["web-v1=0"]);
}

#[test]
fn scaling_in_mid_rollout_is_proportional() {
    // Upstream's example: 10 → 30 in a rollout of 8 + 5 (max 13): 30 + 8 = 38 in all.
    check_sizes(
        json!({"replicas": 30}),
        vec![set("v1", 8, 8, 10, 1), set("v2", 5, 0, 10, 2)],
        &["web-v1=23", "web-v2=15"],
    );
    check_sizes(
        json!({"replicas": 0}),
        vec![set("v1", 8, 8, 10, 1), set("v2", 5, 0, 10, 2)],
        &["web-v1=0", "web-v2=0"],
    );
    check_sizes(
        json!({"replicas": 5}),
        vec![set("v1", 8, 8, 10, 1), set("v2", 5, 0, 10, 2)],
        &["web-v1=4", "web-v2=3"],
    );
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let sets = vec![set("v1", 10, 10, 10, 1)];
    let plan = run(deployment(json!({"paused": true})), sets.clone());
    assert_eq!(sizes(&plan), Vec::<String>::new());
    assert_eq!(status::progress_reason(&status_of(&plan)), Some("DeploymentPaused"));
    check_sizes(json!({"paused": true, "replicas": 12}), sets.clone(), &["web-v1=12"]);
    let mut d = deployment(json!({}));
    d.status = Some(status_of(&plan));
    let resumed = run(d, sets);
    assert_eq!(sizes(&resumed)[0], "+2=3");
}

#[test]
fn recreate_stops_everything_first() {
    let recreate = json!({"strategy": {"type": "Recreate"}});
    check_sizes(recreate.clone(), vec![set("v1", 10, 10, 10, 1)], &["web-v1=0"]);
    let mut stopping = set("v1", 0, 0, 10, 1);
    stopping.status.as_mut().unwrap().replicas = 2;
    check_sizes(recreate.clone(), vec![stopping], &[]);
    // The set counts no pods any more, but one is still terminating.
    let pods = |phase: &str| {
        let pod: Pod = serde_json::from_value(json!({"status": {"phase": phase}})).unwrap();
        [("v1".to_owned(), vec![Arc::new(pod)])].into()
    };
    let stopped = set("v1", 0, 0, 10, 1);
    let waiting = run_with_pods(deployment(recreate.clone()), vec![stopped.clone()], pods("Running"));
    assert_eq!(sizes(&waiting), Vec::<String>::new());
    let over = run_with_pods(deployment(recreate), vec![stopped], pods("Succeeded"));
    assert_eq!(sizes(&over), ["+2=10"]);
}

/// The status of the Deployment once everything is rolled out.
fn run_status(d: &Deployment) -> DeploymentStatus {
    let n = strategy::desired(d);
    let done = set("v2", n, n, n, 2);
    let mut with_progress = d.clone();
    let created = status::condition(status::PROGRESSING, "True", status::NEW_REPLICA_SET_CREATED, "x".into(), at(30).0);
    let status = with_progress.status.get_or_insert_default();
    status::set(status, created);
    status_of(&run(with_progress, vec![done]))
}

#[test]
fn a_finished_rollout_is_said_to_be() {
    let d = deployment(json!({}));
    let s = run_status(&d);
    assert!(status::complete(&d, &s));
    assert_eq!(status::progress_reason(&s), Some("NewReplicaSetAvailable"));
    let message = status::get(&s, status::PROGRESSING).unwrap().message.clone().unwrap();
    assert_eq!(message, "ReplicaSet \"web-v2\" has successfully progressed.");
    assert_eq!(status::get(&s, status::AVAILABLE).unwrap().reason.as_deref(), Some("MinimumReplicasAvailable"));
    let counts = (s.replicas, s.updated_replicas, s.ready_replicas, s.available_replicas, s.unavailable_replicas);
    assert_eq!(counts, (Some(10), Some(10), Some(10), Some(10), Some(0)));
    // Nothing more to do then.
    let mut settled = d;
    settled.status = Some(s);
    let plan = run(settled, vec![set("v2", 10, 10, 10, 2)]);
    assert_eq!((plan.ops, plan.again), (vec![], None));
}

fn stuck(updated_seconds_ago: i64) -> Plan {
    let mut d = deployment(json!({}));
    let sets = || vec![set("v1", 8, 8, 10, 1), set("v2", 5, 0, 10, 2)];
    let mut s = status_of(&run(d.clone(), sets()));
    status::remove(&mut s, status::PROGRESSING);
    let ago = at(updated_seconds_ago).0;
    status::set(&mut s, status::condition(status::PROGRESSING, "True", status::REPLICA_SET_UPDATED, "x".into(), ago));
    d.status = Some(s);
    run(d, sets())
}

#[test]
fn lack_of_progress_is_noticed() {
    let early = stuck(100);
    assert_eq!(early.ops, []);
    assert_eq!(early.again.unwrap().as_secs(), 501);
    let late = stuck(600);
    let s = status_of(&late);
    let progressing = status::get(&s, status::PROGRESSING).unwrap();
    assert_eq!(
        (progressing.status.as_str(), progressing.reason.as_deref()),
        ("False", Some("ProgressDeadlineExceeded"))
    );
    assert_eq!(late.again, None);
}

#[test]
fn no_deadline_no_progressing_condition() {
    let plan = run(deployment(json!({"progressDeadlineSeconds": i32::MAX})), vec![]);
    assert!(status::get(&status_of(&plan), status::PROGRESSING).is_none());
}

#[test]
fn failures_of_sets_show() {
    let mut failing = set("v2", 10, 0, 10, 2);
    failing.status.as_mut().unwrap().conditions = serde_json::from_value(json!([
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota"}
    ]))
    .unwrap();
    let s = status_of(&run(deployment(json!({})), vec![failing]));
    let condition = status::get(&s, status::REPLICA_FAILURE).unwrap();
    assert_eq!((condition.reason.as_deref(), condition.message.as_deref()), (Some("FailedCreate"), Some("quota")));
    assert_eq!(status::get(&s, status::AVAILABLE).unwrap().reason.as_deref(), Some("MinimumReplicasUnavailable"));
}

#[test]
fn history_is_cleaned_up_when_done() {
    let mut d = deployment(json!({"revisionHistoryLimit": 1}));
    d.status = Some(run_status(&d));
    let old = |image, revision| set(image, 0, 0, 10, revision);
    let sets = vec![old("a", 3), old("b", 1), old("c", 2), set("v2", 10, 10, 10, 4)];
    assert_eq!(sizes(&run(d.clone(), sets.clone())), ["-web-b", "-web-c"]);
    // Not while a rollout is under way, and not what still has pods.
    d.status = None;
    assert_eq!(sizes(&run(d.clone(), sets)), Vec::<String>::new());
}

#[test]
fn a_deployment_being_deleted_only_reports() {
    let mut d = deployment(json!({}));
    d.metadata.deletion_timestamp = Some(at(1));
    let plan = run(d, vec![set("v1", 10, 10, 10, 1)]);
    assert!(matches!(plan.ops.as_slice(), [Op::Status(_)]), "{:?}", plan.ops);
}

#[test]
fn inherited_annotations_and_min_ready_seconds_reach_the_set() {
    let mut d = deployment(json!({"minReadySeconds": 7}));
    d.status = Some(run_status(&d));
    d.metadata.annotations.as_mut().unwrap().insert("kubernetes.io/change-cause".into(), "why".into());
    let plan = run(d, vec![set("v2", 10, 10, 10, 2)]);
    let Op::Update { replicas, min_ready_seconds, annotations, .. } = &plan.ops[0] else { panic!("{:?}", plan.ops) };
    assert_eq!((replicas, min_ready_seconds), (&None, &Some(7)));
    assert_eq!(annotations["kubernetes.io/change-cause"], "why");
}

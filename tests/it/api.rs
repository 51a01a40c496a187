//! The API through kubectl and raw HTTPS: verbs, watches, selectors, paging, patches, discovery, explain, tables.

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use libtest_mimic::Trial;
use reqwest::Method;
use scaleup_tests::http::Api;
use scaleup_tests::{cluster::Cluster, eventually};
use serde_json::{Value, json};

use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![
        cx,
        "api",
        health_and_version,
        create_update_delete,
        dry_run_writes_nothing,
        selectors_and_paging,
        watch_semantics,
        watch_expires_with_410,
        patches,
        delete_options,
        field_validation,
        discovery_and_explain,
        tables_and_accept,
        yaml_and_generate_name,
        events_in_both_groups,
        concurrent_updates_lose_nothing,
        kubectl_validates_and_edits,
    ]
}

const MAPS: &str = "/api/v1/namespaces";

fn map(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": {"a": "b"}})
}

/// A namespace of the test's own; its ConfigMaps' path.
async fn own(cluster: &Cluster, name: &str) -> Result<(Api, String)> {
    let api = cluster.api()?;
    api.post(MAPS, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).await?.ok()?;
    let maps = format!("{MAPS}/{name}/configmaps");
    // Controllers write here once; what follows counts on quiet.
    eventually("kube-root-ca.crt", || async {
        Ok(api.get(&format!("{maps}/kube-root-ca.crt")).await?.status.is_success().then_some(()))
    })
    .await?;
    Ok((api, maps))
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or_default()
}

async fn health_and_version(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let anonymous = cluster.anonymous()?;
    for path in ["/livez", "/readyz", "/healthz"] {
        let answer = anonymous.get(path).await?;
        ensure!(answer.text == "ok", "{path}: {}", answer.text);
    }
    let verbose = anonymous.get("/readyz?verbose").await?.text;
    ensure!(verbose.contains("[+]") && verbose.contains("check passed"), "{verbose}");
    let version = anonymous.get("/version").await?.ok()?;
    ensure!(
        version["major"] == "1" && version["gitVersion"].as_str().is_some_and(|v| v.starts_with("v1.33")),
        "{version}"
    );
    for kubectl in [cluster.kubectl(), cluster.old_kubectl()] {
        ensure!(kubectl.ok("version").await?.contains("v1.33"), "kubectl version");
    }
    Ok(())
}

async fn create_update_delete(cx: Cx) -> Result<()> {
    let (api, maps) = own(cx.fake().await?, "api-crud").await?;
    let answer = api.post(&maps, &map("x", json!({}))).await?;
    ensure!(answer.status == 201, "{}", answer.status);
    let created = answer.ok()?;
    let meta = &created["metadata"];
    ensure!(
        meta["uid"].as_str().is_some_and(|u| u.len() == 36)
            && meta["creationTimestamp"].is_string()
            && meta["namespace"] == "api-crud",
        "{created}"
    );
    ensure!(api.post(&maps, &map("x", json!({}))).await?.reason() == "AlreadyExists", "twice");
    let at = format!("{maps}/x");
    // A write that changes nothing does not bump the revision.
    let same = api.put(&at, &created).await?.ok()?;
    ensure!(version(&same) == version(&created), "a no-op bumped the revision");
    let mut changed = created.clone();
    changed["data"]["a"] = "c".into();
    let updated = api.put(&at, &changed).await?.ok()?;
    ensure!(version(&updated) > version(&created), "{updated}");
    let stale = api.put(&at, &changed).await?;
    ensure!(
        stale.status == 409 && stale.reason() == "Conflict" && stale.message().contains("the object has been modified"),
        "{}",
        stale.text
    );
    ensure!(api.get(&at).await?.ok()? == updated, "read your write");
    let deleted = api.delete(&at, &Value::Null).await?.ok()?;
    ensure!(deleted["status"] == "Success" || deleted["metadata"]["name"] == "x", "{deleted}");
    ensure!(api.get(&at).await?.status == 404, "gone");
    ensure!(api.put(&at, &map("x", json!({}))).await?.status == 404, "update does not create");
    Ok(())
}

async fn dry_run_writes_nothing(cx: Cx) -> Result<()> {
    let (api, maps) = own(cx.fake().await?, "api-dry").await?;
    let created = api.post(&format!("{maps}?dryRun=All"), &map("dry", json!({}))).await?.ok()?;
    ensure!(created["metadata"]["uid"].is_string(), "{created}");
    ensure!(api.get(&format!("{maps}/dry")).await?.status == 404, "created by a dry run");
    let real = api.post(&maps, &map("real", json!({}))).await?.ok()?;
    let patched = api.patch(&format!("{maps}/real?dryRun=All"), "merge", &json!({"data": {"a": "z"}})).await?.ok()?;
    ensure!(patched["data"]["a"] == "z", "{patched}");
    api.delete(&format!("{maps}/real?dryRun=All"), &Value::Null).await?.ok()?;
    ensure!(api.get(&format!("{maps}/real")).await?.ok()? == real, "changed by a dry run");
    let service =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    let dry = api.post("/api/v1/namespaces/api-dry/services?dryRun=All", &service).await?.ok()?;
    ensure!(dry["spec"]["clusterIP"].as_str().is_some_and(|ip| !ip.is_empty()), "{dry}");
    Ok(())
}

async fn selectors_and_paging(cx: Cx) -> Result<()> {
    let (api, maps) = own(cx.fake().await?, "api-list").await?;
    for i in 0..25 {
        api.post(
            &maps,
            &map(&format!("m{i:02}"), json!({"parity": if i % 2 == 0 { "even" } else { "odd" }, "n": i.to_string()})),
        )
        .await?
        .ok()?;
    }
    let count = |query: &str| {
        let path = format!("{maps}?{query}");
        let api = api.clone();
        async move { anyhow::Ok(api.get(&path).await?.ok()?["items"].as_array().map_or(0, Vec::len)) }
    };
    for (query, expected) in [
        ("labelSelector=parity%3Deven", 13),
        ("labelSelector=parity+in+(even,odd),n!%3D3", 24),
        ("labelSelector=!parity", 1),
        ("fieldSelector=metadata.name%3Dm03", 1),
        ("fieldSelector=metadata.name!%3Dm03&labelSelector=parity", 24),
        ("resourceVersion=0", 26),
    ] {
        ensure!(count(query).await? == expected, "{query}: {}", count(query).await?);
    }
    let (mut next, mut seen, mut revisions, mut pages) = (String::new(), Vec::new(), Vec::new(), 0);
    loop {
        let page = api.get(&format!("{maps}?limit=10&continue={next}")).await?.ok()?;
        seen.extend(
            page["items"]
                .as_array()
                .context("items")?
                .iter()
                .map(|i| i["metadata"]["name"].as_str().unwrap_or_default().to_owned()),
        );
        revisions.push(version(&page));
        if pages == 0 {
            ensure!(page["metadata"]["remainingItemCount"] == 16, "{}", page["metadata"]);
            // What changes between pages does not change the pages.
            api.delete(&format!("{maps}/m20"), &Value::Null).await?.ok()?;
            api.post(&maps, &map("m10a", json!({}))).await?.ok()?;
        }
        pages += 1;
        next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        if next.is_empty() {
            break;
        }
    }
    ensure!(
        pages == 3 && seen.len() == 26 && seen.contains(&"m20".to_owned()) && !seen.contains(&"m10a".to_owned()),
        "{pages} pages: {seen:?}"
    );
    ensure!(revisions.windows(2).all(|w| w[0] == w[1]), "one snapshot: {revisions:?}");
    let all = api.delete(&format!("{maps}?labelSelector=parity%3Dodd"), &Value::Null).await?;
    ensure!(all.status.is_success(), "{}", all.text);
    ensure!(
        count("labelSelector=parity%3Dodd").await? == 0 && count("labelSelector=parity%3Deven").await? == 12,
        "deletecollection"
    );
    Ok(())
}

/// Reads watch events line by line.
struct Events {
    stream: futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    buffer: Vec<u8>,
}

impl Events {
    async fn open(api: &Api, path: &str) -> Result<Self> {
        let answer = api.request(Method::GET, path).send().await?;
        ensure!(answer.status().is_success(), "{path}: {}", answer.status());
        Ok(Self { stream: answer.bytes_stream().boxed(), buffer: Vec::new() })
    }
    /// The next event; `None` when the watch has ended.
    async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            let next = tokio::time::timeout(std::time::Duration::from_secs(20), self.stream.next())
                .await
                .context("no event within 20 s")?;
            match next {
                Some(bytes) => self.buffer.extend_from_slice(&bytes?),
                None => return Ok(None),
            }
        }
    }
    async fn expect(&mut self, kind: &str, name: &str) -> Result<Value> {
        let event = self.next().await?.context("the watch ended")?;
        ensure!(
            event["type"] == kind && (name.is_empty() || event["object"]["metadata"]["name"] == name),
            "expected {kind} {name}, got {event}"
        );
        Ok(event["object"].clone())
    }
}

async fn watch_semantics(cx: Cx) -> Result<()> {
    let (api, maps) = own(cx.fake().await?, "api-watch").await?;
    api.post(&maps, &map("old", json!({"on": "yes"}))).await?.ok()?;
    let from = version(&api.get(&maps).await?.ok()?);
    let mut all = Events::open(&api, &format!("{maps}?watch=1&resourceVersion={from}")).await?;
    let mut selected =
        Events::open(&api, &format!("{maps}?watch=1&resourceVersion={from}&labelSelector=on%3Dyes")).await?;
    // Without a revision the watch begins with what is there.
    let mut initial = Events::open(&api, &format!("{maps}?watch=1&labelSelector=on%3Dyes")).await?;
    initial.expect("ADDED", "old").await?;
    let at = format!("{maps}/x");
    api.post(&maps, &map("x", json!({"on": "no"}))).await?.ok()?;
    all.expect("ADDED", "x").await?;
    api.patch(&at, "merge", &json!({"metadata": {"labels": {"on": "yes"}}})).await?.ok()?;
    all.expect("MODIFIED", "x").await?;
    selected.expect("ADDED", "x").await?;
    initial.expect("ADDED", "x").await?;
    api.patch(&at, "merge", &json!({"data": {"n": "1"}})).await?.ok()?;
    ensure!(selected.expect("MODIFIED", "x").await?["data"]["n"] == "1", "the new state");
    api.patch(&at, "merge", &json!({"metadata": {"labels": {"on": "no"}}})).await?.ok()?;
    selected.expect("DELETED", "x").await?;
    let last = api.delete(&at, &Value::Null).await?;
    ensure!(last.status.is_success(), "{}", last.text);
    for kind in ["MODIFIED", "MODIFIED"] {
        all.expect(kind, "x").await?;
    }
    let deleted = all.expect("DELETED", "x").await?;
    ensure!(version(&deleted) > from, "{deleted}");
    // Replayed from the past, in order.
    let mut again =
        Events::open(&api, &format!("{maps}?watch=1&resourceVersion={from}&timeoutSeconds=2&allowWatchBookmarks=true"))
            .await?;
    for kind in ["ADDED", "MODIFIED", "MODIFIED", "MODIFIED", "DELETED"] {
        again.expect(kind, "x").await?;
    }
    // It ends in time, cleanly, with a bookmark since they were asked for.
    let mut bookmark = None;
    while let Some(event) = again.next().await? {
        ensure!(event["type"] == "BOOKMARK", "{event}");
        bookmark = Some(event);
    }
    ensure!(bookmark.is_some_and(|b| version(&b["object"]) >= version(&deleted)), "a bookmark before the end");
    let path =
        format!("{maps}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true");
    let mut list = Events::open(&api, &path).await?;
    loop {
        let event = list.next().await?.context("ended")?;
        if event["type"] == "BOOKMARK" {
            ensure!(event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true", "{event}");
            break;
        }
        ensure!(event["type"] == "ADDED", "{event}");
    }
    let name = Events::open(&api, &format!("{maps}?watch=1&fieldSelector=metadata.name%3Dold"))
        .await?
        .expect("ADDED", "old")
        .await?;
    ensure!(name["kind"] == "ConfigMap", "{name}");
    Ok(())
}

async fn watch_expires_with_410(cx: Cx) -> Result<()> {
    let (api, maps) = own(cx.fake().await?, "api-expire").await?;
    let answer = api.get(&format!("{maps}?watch=1&resourceVersion=1&timeoutSeconds=2")).await?;
    // Revision 1 may still be in the history; if so the watch is good. If not, the client is told to list again.
    ensure!(answer.status.is_success() || answer.status == 410, "{}", answer.text);
    let future = api.get(&format!("{maps}?resourceVersion=99999999999")).await?;
    ensure!(
        future.status == 504 && future.message().contains("Too large resource version"),
        "{} {}",
        future.status,
        future.text
    );
    ensure!(future.text.contains("ResourceVersionTooLarge"), "{}", future.text);
    let exact = api.get(&format!("{maps}?resourceVersion=99999999999&resourceVersionMatch=Exact")).await?;
    ensure!(exact.status.is_client_error() || exact.status == 504, "{} {}", exact.status, exact.text);
    Ok(())
}

async fn patches(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let (api, maps) = own(cluster, "api-patch").await?;
    api.post(&maps, &map("x", json!({}))).await?.ok()?;
    let at = format!("{maps}/x");
    let data = |v: Value| v["data"].clone();
    ensure!(
        data(api.patch(&at, "merge", &json!({"data": {"a": null, "c": "d"}})).await?.ok()?) == json!({"c": "d"}),
        "merge"
    );
    let ops = json!([{"op": "test", "path": "/data/c", "value": "d"}, {"op": "add", "path": "/data/e~1f", "value": "g"}, {"op": "remove", "path": "/data/c"}]);
    let bad_key = api.patch(&at, "json", &ops).await?;
    ensure!(bad_key.status == 422, "a key with a slash: {}", bad_key.text);
    let ops =
        json!([{"op": "add", "path": "/data/e", "value": "g"}, {"op": "move", "from": "/data/c", "path": "/data/h"}]);
    ensure!(data(api.patch(&at, "json", &ops).await?.ok()?) == json!({"e": "g", "h": "d"}), "json");
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "one", "image": "i:1", "env": [{"name": "X", "value": "1"}]}, {"name": "two", "image": "j:1"}]}}}});
    api.post("/apis/apps/v1/namespaces/api-patch/deployments", &deployment).await?.ok()?;
    let at = "/apis/apps/v1/namespaces/api-patch/deployments/d";
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "one", "image": "i:2", "env": [{"name": "Y", "value": "2"}]}]}}}});
    let patched = api.patch(at, "strategic-merge", &patch).await?.ok()?;
    let containers = &patched["spec"]["template"]["spec"]["containers"];
    ensure!(
        containers.as_array().is_some_and(|c| c.len() == 2)
            && containers[0]["image"] == "i:2"
            && containers[0]["env"].as_array().is_some_and(|e| e.len() == 2),
        "{containers}"
    );
    ensure!(patched["metadata"]["generation"] == 2, "{}", patched["metadata"]);
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "two", "$patch": "delete"}]}}}});
    let patched = api.patch(at, "strategic-merge", &patch).await?.ok()?;
    ensure!(patched["spec"]["template"]["spec"]["containers"].as_array().is_some_and(|c| c.len() == 1), "{patched}");
    let status = api
        .patch(&format!("{at}/status"), "merge", &json!({"spec": {"replicas": 7}, "status": {"observedGeneration": 1}}))
        .await?
        .ok()?;
    ensure!(status["spec"]["replicas"] == 0, "status writes only status: {status}");
    let scale = api.get(&format!("{at}/scale")).await?.ok()?;
    ensure!(
        scale["kind"] == "Scale"
            && scale["apiVersion"] == "autoscaling/v1"
            && scale["spec"]["replicas"].as_u64().unwrap_or(0) == 0,
        "{scale}"
    );
    Ok(())
}

async fn delete_options(cx: Cx) -> Result<()> {
    let (api, maps) = own(cx.fake().await?, "api-delete").await?;
    let created = api.post(&maps, &map("x", json!({}))).await?.ok()?;
    let at = format!("{maps}/x");
    let wrong = api.delete(&at, &json!({"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}})).await?;
    ensure!(wrong.status == 409, "{}", wrong.text);
    let wrong = api.delete(&at, &json!({"preconditions": {"resourceVersion": "1"}})).await?;
    ensure!(wrong.status == 409, "{}", wrong.text);
    api.patch(&at, "merge", &json!({"metadata": {"finalizers": ["example.com/hold"]}})).await?.ok()?;
    api.delete(&at, &json!({"preconditions": {"uid": created["metadata"]["uid"]}})).await?.ok()?;
    let held = api.get(&at).await?.ok()?;
    ensure!(held["metadata"]["deletionTimestamp"].is_string(), "{held}");
    let more =
        api.patch(&at, "merge", &json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}})).await?;
    ensure!(more.status == 422 || more.status == 403, "no finalizers are added while deleting: {}", more.text);
    api.patch(&at, "merge", &json!({"metadata": {"finalizers": null}})).await?.ok()?;
    ensure!(api.get(&at).await?.status == 404, "gone with its last finalizer");
    let both = api.delete(&at, &json!({"propagationPolicy": "Background", "orphanDependents": true})).await?;
    ensure!(both.status == 422 || both.status == 404, "{}", both.text);
    Ok(())
}

async fn field_validation(cx: Cx) -> Result<()> {
    let (api, maps) = own(cx.fake().await?, "api-fields").await?;
    let mut object = map("warned", json!({}));
    object["nonsense"] = json!(1);
    let answer = api.post(&maps, &object).await?;
    let warning = answer.headers.get("warning").and_then(|w| w.to_str().ok()).unwrap_or_default().to_owned();
    ensure!(answer.status == 201 && warning.contains("unknown field \\\"nonsense\\\""), "{} {warning}", answer.status);
    ensure!(answer.json()["nonsense"].is_null(), "dropped");
    object["metadata"]["name"] = "ignored".into();
    let answer = api.post(&format!("{maps}?fieldValidation=Ignore"), &object).await?;
    ensure!(answer.status == 201 && answer.headers.get("warning").is_none(), "{}", answer.text);
    object["metadata"]["name"] = "strict".into();
    let answer = api.post(&format!("{maps}?fieldValidation=Strict"), &object).await?;
    ensure!(
        answer.status == 400 && answer.message().contains("strict decoding error: unknown field \"nonsense\""),
        "{}",
        answer.text
    );
    Ok(())
}

async fn discovery_and_explain(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    for kubectl in [cluster.kubectl(), cluster.old_kubectl()] {
        let resources = kubectl.ok("api-resources").await?;
        for kind in [
            "ConfigMap",
            "Deployment",
            "EndpointSlice",
            "ClusterRoleBinding",
            "Lease",
            "PriorityClass",
            "Event",
            "ReplicaSet",
        ] {
            ensure!(
                resources.lines().any(|l| l.ends_with(kind) || l.contains(&format!(" {kind} "))),
                "{kind} in\n{resources}"
            );
        }
        ensure!(kubectl.ok("api-versions").await?.contains("apps/v1"), "api-versions");
        let explained = kubectl.ok("explain deployment.spec.template.spec.containers").await?;
        ensure!(explained.contains("image") && explained.contains("Container image name"), "{explained}");
        ensure!(
            kubectl.ok("explain pods --recursive").await?.contains("terminationGracePeriodSeconds"),
            "explain --recursive"
        );
        ensure!(
            kubectl.fails("explain pods.spec.nonsense").await?.contains("nonsense"),
            "explain of what is not there"
        );
    }
    let api = cluster.api()?;
    let request = api
        .request(Method::GET, "/apis")
        .header("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    let answer = api.send(request).await?;
    let kind = answer.headers.get("content-type").and_then(|c| c.to_str().ok()).unwrap_or_default().to_owned();
    ensure!(kind.contains("apidiscovery.k8s.io") && answer.json()["kind"] == "APIGroupDiscoveryList", "{kind}");
    Ok(())
}

async fn tables_and_accept(cx: Cx) -> Result<()> {
    let (api, maps) = own(cx.fake().await?, "api-table").await?;
    api.post(&maps, &map("x", json!({}))).await?.ok()?;
    let accept = |path: String, accept: &'static str| {
        let api = api.clone();
        async move { api.send(api.request(Method::GET, &path).header("accept", accept)).await }
    };
    let table = accept(maps.clone(), "application/json;as=Table;v=v1;g=meta.k8s.io,application/json").await?.ok()?;
    ensure!(
        table["kind"] == "Table"
            && table["columnDefinitions"][0]["name"] == "Name"
            && table["rows"].as_array().is_some_and(|r| r.len() == 2),
        "{table}"
    );
    let partial =
        accept(format!("{maps}/x"), "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io").await?.ok()?;
    ensure!(
        partial["kind"] == "PartialObjectMetadata" && partial["data"].is_null() && partial["metadata"]["name"] == "x",
        "{partial}"
    );
    let yaml = accept(format!("{maps}/x"), "application/yaml").await?;
    ensure!(yaml.text.contains("kind: ConfigMap"), "{}", yaml.text);
    let protobuf = accept(format!("{maps}/x"), "application/vnd.kubernetes.protobuf").await?;
    ensure!(protobuf.status == 406 && protobuf.reason() == "NotAcceptable", "{} {}", protobuf.status, protobuf.text);
    let either = accept(format!("{maps}/x"), "application/vnd.kubernetes.protobuf, application/json").await?;
    ensure!(either.status == 200 && either.json()["kind"] == "ConfigMap", "{}", either.status);
    Ok(())
}

async fn yaml_and_generate_name(cx: Cx) -> Result<()> {
    let (api, maps) = own(cx.fake().await?, "api-yaml").await?;
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  generateName: made-\ndata:\n  a: \"1\"\n";
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let request = api.request(Method::POST, &maps).header("content-type", "application/yaml").body(text);
        let created = api.send(request).await?.ok()?;
        let name = created["metadata"]["name"].as_str().context("name")?.to_owned();
        ensure!(name.len() == 10 && name.starts_with("made-"), "{name}");
        names.insert(name);
    }
    ensure!(names.len() == 3, "{names:?}");
    Ok(())
}

async fn events_in_both_groups(cx: Cx) -> Result<()> {
    let (api, _) = own(cx.fake().await?, "api-events").await?;
    let now = "2026-01-01T00:00:00.000000Z";
    let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "eventTime": now, "reportingController": "it",
        "reportingInstance": "it-1", "action": "Testing", "reason": "Tested", "type": "Normal", "note": "a note",
        "regarding": {"apiVersion": "v1", "kind": "Pod", "name": "p", "namespace": "api-events"}});
    api.post("/apis/events.k8s.io/v1/namespaces/api-events/events", &event).await?.ok()?;
    let core = api.get("/api/v1/namespaces/api-events/events/e").await?.ok()?;
    ensure!(
        core["message"] == "a note" && core["involvedObject"]["name"] == "p" && core["apiVersion"] == "v1",
        "{core}"
    );
    let selected = api
        .get("/api/v1/namespaces/api-events/events?fieldSelector=involvedObject.name%3Dp,reason%3DTested")
        .await?
        .ok()?;
    ensure!(selected["items"].as_array().is_some_and(|i| i.len() == 1), "{selected}");
    let back = api.get("/apis/events.k8s.io/v1/namespaces/api-events/events/e").await?.ok()?;
    ensure!(back["note"] == "a note" && back["regarding"]["name"] == "p", "{back}");
    Ok(())
}

async fn concurrent_updates_lose_nothing(cx: Cx) -> Result<()> {
    let (api, maps) = own(cx.fake().await?, "api-cas").await?;
    let mut object = map("counter", json!({}));
    object["data"] = json!({"n": "0"});
    api.post(&maps, &object).await?.ok()?;
    let at = format!("{maps}/counter");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (api, at) = (api.clone(), at.clone());
        tasks.spawn(async move {
            for _ in 0..10 {
                loop {
                    let mut object = api.get(&at).await?.ok()?;
                    let n: u32 = object["data"]["n"].as_str().context("n")?.parse()?;
                    object["data"]["n"] = (n + 1).to_string().into();
                    let answer = api.put(&at, &object).await?;
                    if answer.status.is_success() {
                        break;
                    }
                    ensure!(answer.status == 409, "{}", answer.text);
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    ensure!(api.get(&at).await?.ok()?["data"]["n"] == "80", "updates were lost");
    Ok(())
}

async fn kubectl_validates_and_edits(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    own(cluster, "api-kubectl").await?;
    let typo = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: typo, namespace: api-kubectl}\ndta: {a: b}\n";
    for kubectl in [cluster.kubectl(), cluster.old_kubectl()] {
        let outcome = kubectl.run_with(&["apply", "-f", "-"], typo).await?;
        ensure!(outcome.code != 0 && outcome.stderr.contains("dta"), "{outcome:?}");
        let good = typo.replace("dta", "data");
        ensure!(kubectl.ok_args(&["apply", "-f", "-"], &good).await?.contains("configmap/typo"), "applied");
        ensure!(kubectl.ok_args(&["apply", "-f", "-"], &good).await?.contains("unchanged"), "unchanged");
        ensure!(
            kubectl.ok_args(&["apply", "-f", "-"], &good.replace("a: b", "c: d")).await?.contains("configured"),
            "configured"
        );
        let data = kubectl.ok("-n api-kubectl get configmap typo -o jsonpath={.data}").await?;
        ensure!(data.contains("\"c\"") && !data.contains("\"a\""), "three-way merge: {data}");
        kubectl.ok("-n api-kubectl label configmap typo x=y").await?;
        kubectl.ok("-n api-kubectl annotate configmap typo x=y").await?;
        ensure!(
            kubectl.ok("-n api-kubectl get configmap -l x=y -o name").await?.trim() == "configmap/typo",
            "by label"
        );
        kubectl.ok("-n api-kubectl delete configmap typo").await?;
    }
    let refused =
        cluster.kubectl().run_with(&["apply", "--server-side", "-f", "-"], &typo.replace("dta", "data")).await?;
    ensure!(refused.code != 0 && refused.stderr.contains("server-side"), "{refused:?}");
    Ok(())
}

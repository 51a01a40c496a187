//! Lists, resource versions, watches.

use super::*;

#[tokio::test]
async fn lists_select_and_continue() {
    let api = Api::start().await;
    for (i, name) in ["a", "b", "c", "d", "e"].iter().enumerate() {
        api.post(CONFIGMAPS, &config_map(name, if i % 2 == 0 { "even" } else { "odd" })).await.is(201);
    }
    let names = |answer: &Answer| -> Vec<String> {
        let items = answer.body["items"].as_array().unwrap().iter();
        items.map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).filter(|n| n.len() == 1).collect()
    };
    let odd = api.get(&format!("{CONFIGMAPS}?labelSelector=l%3Dodd")).await.is(200);
    assert_eq!(names(&odd), ["b", "d"]);
    let one = api.get(&format!("{CONFIGMAPS}?fieldSelector=metadata.name%3Dc")).await.is(200);
    assert_eq!(names(&one), ["c"]);
    api.get(&format!("{CONFIGMAPS}?fieldSelector=spec.x%3Dc")).await.says(400, "field label not supported: spec.x");

    // Pages show the state of the first page, even after changes.
    let selector = "labelSelector=l";
    let first = api.get(&format!("{CONFIGMAPS}?{selector}&limit=2")).await.is(200);
    assert_eq!(names(&first), ["a", "b"]);
    assert!(first.body["metadata"]["remainingItemCount"].is_null());
    api.delete(&format!("{CONFIGMAPS}/c"), &Value::Null).await.is(200);
    api.post(CONFIGMAPS, &config_map("f", "odd")).await.is(201);
    let token = first.body["metadata"]["continue"].as_str().unwrap();
    let second = api.get(&format!("{CONFIGMAPS}?{selector}&limit=2&continue={token}")).await.is(200);
    assert_eq!((names(&second), second.version()), (vec!["c".to_owned(), "d".to_owned()], first.version()));
    let token = second.body["metadata"]["continue"].as_str().unwrap().to_owned();
    let third = api.get(&format!("{CONFIGMAPS}?{selector}&limit=2&continue={token}")).await.is(200);
    assert_eq!(names(&third), ["e"]);
    assert!(third.body["metadata"]["continue"].is_null());

    let now = api.get(CONFIGMAPS).await.version();
    api.server.store.compact(now).await.unwrap();
    api.get(&format!("{CONFIGMAPS}?{selector}&limit=2&continue={token}")).await.says(410, "must start a new list");
    api.get(&format!("{CONFIGMAPS}?resourceVersion=1&resourceVersionMatch=Exact")).await.is(410);
    let total = api.get(&format!("{CONFIGMAPS}?limit=1")).await.is(200);
    assert!(total.body["metadata"]["remainingItemCount"].as_u64().unwrap() >= 4);
    api.get(&format!("{CONFIGMAPS}?continue=bad")).await.says(400, "invalid continue token");
}

#[tokio::test]
async fn resource_versions_of_lists() {
    let api = Api::start().await;
    let a = api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201).version();
    api.post(CONFIGMAPS, &config_map("b", "1")).await.is(201);
    let count = |answer: Answer| answer.is(200).body["items"].as_array().unwrap().len();
    let exact =
        count(api.get(&format!("{CONFIGMAPS}?labelSelector=l&resourceVersion={a}&resourceVersionMatch=Exact")).await);
    let newer = count(
        api.get(&format!("{CONFIGMAPS}?labelSelector=l&resourceVersion={a}&resourceVersionMatch=NotOlderThan")).await,
    );
    let any = count(api.get(&format!("{CONFIGMAPS}?labelSelector=l&resourceVersion=0")).await);
    assert_eq!((exact, newer, any), (1, 2, 2));
    let future = api.get(&format!("{CONFIGMAPS}?resourceVersion=99999")).await;
    assert_eq!(future.body["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    future.says(504, "Too large resource version: 99999");
    api.get(&format!("{CONFIGMAPS}?resourceVersion=abc")).await.is(400);
}

#[tokio::test]
async fn watches() {
    let api = Api::start().await;
    let a = api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201).version();
    let mut from = api.watch(&format!("{CONFIGMAPS}?watch=1&resourceVersion={a}")).await;
    let mut ones = api.watch(&format!("{CONFIGMAPS}?watch=1&labelSelector=l%3D1")).await;
    let mut single =
        api.watch(&format!("{CONFIGMAPS}?watch=1&fieldSelector=metadata.name%3Db&resourceVersion={a}")).await;
    assert_eq!(ones.seen().await, Events::pair("ADDED", "a"));
    api.post(CONFIGMAPS, &config_map("b", "2")).await.is(201);
    api.put(&format!("{CONFIGMAPS}/b"), &config_map("b", "1")).await.is(200);
    api.put(&format!("{CONFIGMAPS}/a"), &config_map("a", "2")).await.is(200);
    let gone = api.delete(&format!("{CONFIGMAPS}/b"), &Value::Null).await;
    assert_eq!(gone.status, 200);
    for expected in [("ADDED", "b"), ("MODIFIED", "b"), ("MODIFIED", "a"), ("DELETED", "b")] {
        assert_eq!(from.seen().await, Events::pair(expected.0, expected.1));
    }
    for expected in [("ADDED", "b"), ("DELETED", "a"), ("DELETED", "b")] {
        assert_eq!(ones.seen().await, Events::pair(expected.0, expected.1));
    }
    for expected in [("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "b")] {
        assert_eq!(single.seen().await, Events::pair(expected.0, expected.1));
    }
    api.server.stop();
    assert_eq!(from.next().await, None);
}

#[tokio::test]
async fn watch_bookmarks_and_ends() {
    let api = Api::start().await;
    api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201);
    let initial =
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&labelSelector=l";
    let mut events = api.watch(&format!("{CONFIGMAPS}?{initial}&timeoutSeconds=1")).await;
    assert_eq!(events.seen().await, Events::pair("ADDED", "a"));
    let bookmark = events.next().await.unwrap();
    assert_eq!((&bookmark["type"], &bookmark["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let last = events.next().await.unwrap();
    assert_eq!(last["type"], "BOOKMARK");
    assert_eq!(events.next().await, None);

    let mut old = api.watch(&format!("{CONFIGMAPS}?watch=1&resourceVersion=99999")).await;
    let error = old.next().await.unwrap();
    assert_eq!((&error["type"], &error["object"]["code"]), (&json!("ERROR"), &json!(504)));
    assert_eq!(old.next().await, None);
    api.get(&format!("{CONFIGMAPS}?watch=1&resourceVersionMatch=Exact")).await.is(422);
}

//! The cache by itself: transitions, the bounded history, waiting for revisions.

use serde_json::json;

use super::*;

fn object(name: &str, revision: Revision, label: &str) -> Arc<Cached> {
    let value = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "ns", "uid": "u", "labels": {"l": label}}, "spec": {"nodeName": label}});
    Arc::new(Cached::from_value(&value, revision, SELECTABLE).unwrap())
}

const SELECTABLE: &[SelectableField] = &[SelectableField {
    path: "spec.nodeName",
    get: |v| v["spec"]["nodeName"].as_str().unwrap_or_default().to_owned(),
}];

fn cache() -> Arc<ResourceCache> {
    Arc::new(ResourceCache::new("", "pods", SELECTABLE.to_vec()))
}

fn put(cache: &ResourceCache, name: &str, revision: Revision, label: &str) {
    let key = format!("ns/{name}");
    cache.apply(vec![resource::Change { key, revision, after: Some(object(name, revision, label)) }]);
}

fn delete(cache: &ResourceCache, name: &str, revision: Revision) {
    cache.apply(vec![resource::Change { key: format!("ns/{name}"), revision, after: None }]);
}

/// What a watcher of label `l=want` on `topic` sees after revision 0.
fn seen(cache: &Arc<ResourceCache>, topic: Topic, want: &str) -> Vec<(String, String, Revision)> {
    let mut subscription = cache.subscribe(topic, 0).unwrap();
    let mut events = Vec::new();
    subscription.read(100, &mut events).unwrap();
    let matches = |c: &Cached| want.is_empty() || c.labels.get("l") == Some(want);
    let describe = |e: &Arc<CacheEvent>| {
        let kind = e.seen_by(matches)?;
        let event: Value = serde_json::from_slice(&e.frame(kind)).unwrap();
        let object: Value = serde_json::from_slice(&e.object(kind)).unwrap();
        assert_eq!(event["object"], object);
        let version = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        Some((
            event["type"].as_str().unwrap().to_owned(),
            object["metadata"]["name"].as_str().unwrap().to_owned(),
            version,
        ))
    };
    events.iter().filter_map(describe).collect()
}

fn expected(list: &[(&str, &str, Revision)]) -> Vec<(String, String, Revision)> {
    list.iter().map(|(t, n, r)| ((*t).to_owned(), (*n).to_owned(), *r)).collect()
}

#[test]
fn selector_transitions_are_added_and_deleted() {
    let cache = cache();
    put(&cache, "p", 1, "a");
    put(&cache, "p", 2, "a");
    put(&cache, "p", 3, "b");
    put(&cache, "p", 4, "a");
    delete(&cache, "p", 5);
    let a = [("ADDED", "p", 1), ("MODIFIED", "p", 2), ("DELETED", "p", 3), ("ADDED", "p", 4), ("DELETED", "p", 5)];
    assert_eq!(seen(&cache, Topic::All, "a"), expected(&a));
    assert_eq!(seen(&cache, Topic::Field("spec.nodeName", "a".into()), "a"), expected(&a));
    assert_eq!(seen(&cache, Topic::All, "b"), expected(&[("ADDED", "p", 3), ("DELETED", "p", 4)]));
    assert_eq!(seen(&cache, Topic::Field("spec.nodeName", "b".into()), "b").len(), 2);
    assert_eq!(seen(&cache, Topic::Object("ns/q".into()), ""), []);
    assert_eq!(seen(&cache, Topic::Namespace("ns".into()), "").len(), 5);
}

#[test]
fn topics_get_events_live_and_go_away_with_their_last_watcher() {
    let cache = cache();
    let topic = Topic::Field("spec.nodeName", "a".into());
    let mut one = cache.subscribe(topic.clone(), 0).unwrap();
    let two = cache.subscribe(topic, 0).unwrap();
    drop(two);
    put(&cache, "p", 1, "a");
    put(&cache, "q", 2, "b");
    let mut events = Vec::new();
    one.read(10, &mut events).unwrap();
    assert_eq!(events.iter().map(|e| e.revision).collect::<Vec<_>>(), [1]);
    assert_eq!(cache.topics(), 1);
    drop(one);
    assert_eq!(cache.topics(), 0);
}

#[test]
fn a_snapshot_and_its_subscription_lose_nothing() {
    let cache = cache();
    put(&cache, "p", 1, "a");
    let (snapshot, mut subscription) = cache.subscribe_with_snapshot(Topic::All, "", 1, &|_| true);
    put(&cache, "q", 2, "a");
    let mut events = Vec::new();
    subscription.read(10, &mut events).unwrap();
    assert_eq!((snapshot.items.len(), snapshot.revision, events.len()), (1, 1, 1));
}

#[test]
fn lists_follow_key_order_and_limits() {
    let cache = cache();
    for (i, name) in ["c", "a", "b"].iter().enumerate() {
        put(&cache, name, i as u64 + 1, "a");
    }
    let page = |limit, start_after| {
        let range = KeyRange { namespace: "ns", start_after, limit };
        let page = cache.snapshot(range, 7, &|_| true);
        (page.items.iter().map(|c| c.name.clone()).collect::<Vec<_>>().join(""), page.remaining, page.revision)
    };
    assert_eq!(page(2, ""), ("ab".to_owned(), 1, 7));
    assert_eq!(page(2, "ns/b"), ("c".to_owned(), 0, 7));
    assert_eq!(cache.all("n").len(), 0);
    assert!(cache.snapshot_at(KeyRange::default(), 2, &|_| true).is_none());
    assert!(cache.snapshot_at(KeyRange::default(), 3, &|_| true).is_some());
}

#[test]
fn a_replaced_cache_cuts_its_watchers_off() {
    let cache = cache();
    let mut subscription = cache.subscribe(Topic::All, 0).unwrap();
    cache.replace(vec![object("p", 5, "a")], 9);
    assert_eq!(subscription.read(10, &mut Vec::new()), Err(Missed { floor: 9 }));
    assert!(cache.subscribe(Topic::All, 8).is_err());
    assert!(cache.subscribe(Topic::All, 9).is_ok());
}

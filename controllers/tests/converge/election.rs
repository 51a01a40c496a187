//! Two candidates, one leader.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use scaleup_controllers::leader::{Config, Elector};
use tokio_util::sync::CancellationToken;

use crate::world::{World, eventually};

fn candidate(world: &World, name: &str, leading: &Arc<AtomicUsize>) -> CancellationToken {
    let config = Config {
        lease_duration: Duration::from_millis(1500),
        renew_deadline: Duration::from_millis(1000),
        retry_period: Duration::from_millis(100),
        ..Config::new("kube-system", "test", name)
    };
    let elector = Elector::new(world.admin.clone(), config, Default::default());
    let (stop, leading) = (CancellationToken::new(), leading.clone());
    let token = stop.clone();
    tokio::spawn(elector.run(token, move |lost| {
        let leading = leading.clone();
        async move {
            assert_eq!(leading.fetch_add(1, Ordering::SeqCst), 0, "only one leads");
            lost.cancelled().await;
            leading.fetch_sub(1, Ordering::SeqCst);
        }
    }));
    stop
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_and_another_takes_over() {
    let world = World::bare().await;
    let (first, second) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let stop_first = candidate(&world, "a", &first);
    eventually("a leads", || async { (first.load(Ordering::SeqCst) == 1).then_some(()) }).await;
    let stop_second = candidate(&world, "b", &second);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((first.load(Ordering::SeqCst), second.load(Ordering::SeqCst)), (1, 0), "a renews");
    stop_first.cancel();
    eventually("b takes over", || async { (second.load(Ordering::SeqCst) == 1).then_some(()) }).await;
    assert_eq!(first.load(Ordering::SeqCst), 0);
    stop_second.cancel();
    eventually("b stops", || async { (second.load(Ordering::SeqCst) == 0).then_some(()) }).await;
    world.end().await;
}

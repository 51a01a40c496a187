//! One call in five is lost, before the server saw it or after it did it; everything must come out right all the same.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use http::Request;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::DeleteParams;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use tower::{BoxError, Service};

use crate::world::{World, config, deployment, eventually};

/// Part of the calls that fail.
const LOSS: f64 = 0.2;

/// A connection that loses requests and answers.
pub struct Faulty<S> {
    inner: S,
    rng: Arc<Mutex<StdRng>>,
}

impl<S> Faulty<S> {
    /// Loses the same calls for the same seed and order of calls.
    pub fn new(inner: S, seed: u64) -> Self {
        Self { inner, rng: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))) }
    }
}

impl<S, B> Service<Request<B>> for Faulty<S>
where
    S: Service<Request<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    S::Response: Send,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (lost, before) = {
            let mut rng = self.rng.lock().unwrap();
            (rng.random_bool(LOSS), rng.random_bool(0.5))
        };
        let call = self.inner.call(request);
        Box::pin(async move {
            if lost && before {
                return Err("request lost".into());
            }
            let answer = call.await.map_err(Into::into)?;
            if lost { Err("answer lost".into()) } else { Ok(answer) }
        })
    }
}

async fn converges(seed: u64) {
    let mut world = World::bare().await;
    world.add_controllers(config(), Some(seed));
    world.add_node("n1");
    let namespace = json!({"metadata": {"name": crate::world::NS}});
    world.create::<k8s_openapi::api::core::v1::Namespace>(kube::Api::all(world.admin.clone()), namespace).await;
    let service = json!({
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    });
    world.create::<k8s_openapi::api::core::v1::Service>(world.api(), service).await;
    world.create::<Deployment>(world.api(), deployment(5, "v1")).await;
    world.rolled_out(5, "v1").await;
    world
        .patch::<Deployment>(
            "web",
            json!({"spec": {"replicas": 7, "template": {"spec": {"containers": [
                {"name": "c", "image": "v2", "ports": [{"name": "http", "containerPort": 8080}]}
            ]}}}}),
        )
        .await;
    world.rolled_out(7, "v2").await;
    eventually("all endpoints", || async {
        let slices = world.list::<EndpointSlice>("kubernetes.io/service-name=web").await;
        (slices.iter().map(|s| s.endpoints.len()).sum::<usize>() == 7).then_some(())
    })
    .await;
    world.api::<Deployment>().delete("web", &DeleteParams::foreground()).await.unwrap();
    eventually("nothing is left", || async {
        let left = world.list::<Pod>("").await.len() + world.list::<ReplicaSet>("").await.len();
        (left == 0 && world.list::<Deployment>("").await.is_empty()).then_some(())
    })
    .await;
    world.end().await;
}

/// How many seeds are tried; `SCALEUP_TEST_SEEDS` asks for more.
const SEEDS: u64 = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_calls_change_nothing_in_the_end() {
    let seeds = std::env::var("SCALEUP_TEST_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(SEEDS);
    for seed in 1..=seeds {
        println!("seed {seed}");
        converges(seed).await;
    }
}

//! `scaleup up`: every role in one process, each a client of the API server next to it, without sockets in between.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use prometheus_client::registry::Registry;
use scaleup_apiserver::auth::pki::Ca;
use scaleup_apiserver::server::Server;
use scaleup_apiserver::user::UserInfo;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::UpArgs;
use crate::issue::Serving;
use crate::opened::Opened;
use crate::{alone, process, roles, views};

/// A role's name and how it ended.
type Ended = (&'static str, Result<()>);

fn client(server: &Arc<Server>, user: &str, groups: &[&str]) -> kube::Client {
    kube::Client::new(server.in_process(UserInfo::system(user, groups)), "default")
}

/// Runs until `shutdown`, then drains role by role.
pub async fn run(args: UpArgs, shutdown: CancellationToken) -> Result<()> {
    let dir = args.data.data_dir.clone();
    let (opened, listener) = Opened::open(&args.api, &dir).await?;
    let server = opened.server.clone();

    // Roles stop before the API does, so that what they do last is still recorded.
    let (api_stop, roles_stop) = (CancellationToken::new(), CancellationToken::new());
    let (mut api, mut running) = (JoinSet::new(), JoinSet::new());
    let (serving, serving_stop) = (server.clone(), api_stop.clone());
    api.spawn(async move { ("API server", serving.serve(listener, serving_stop).await.map_err(Into::into)) });
    // Before the API's own roles and bindings are in place, it would refuse everybody.
    shutdown.run_until_cancelled(server.ready()).await;
    let outcome = match start_roles(&server, &args, &dir, &roles_stop, &mut running).await {
        Ok(()) => {
            greet(&args, &opened.url, &opened.kubeconfig);
            alone::first_end(&shutdown, &mut running, &mut api).await
        }
        Err(error) => Err(error),
    };
    roles_stop.cancel();
    let roles_ended = alone::drain(&mut running).await;
    api_stop.cancel();
    let api_ended = alone::drain(&mut api).await;
    opened.close().await;
    tracing::info!("stopped");
    outcome.and(roles_ended).and(api_ended)
}

async fn start_roles(
    server: &Arc<Server>,
    args: &UpArgs,
    dir: &Path,
    stop: &CancellationToken,
    running: &mut JoinSet<Ended>,
) -> Result<()> {
    let node = roles::node_name(args.node.node_name.as_ref());
    let node_ip = roles::node_ip(&args.node);
    let agent_config = roles::agent(&args.node, dir, &node, node_serving(&server.ca, &node, node_ip)?);
    let runtime = roles::runtime(&args.node, &agent_config);
    let agent_client = client(server, &format!("system:node:{node}"), &["system:nodes"]);
    // The agent's own API serves the agent's metrics, as upstream's kubelet does.
    let agent = scaleup_kubelet_lite::build(agent_config, agent_client, runtime, &mut Registry::default()).await?;
    let lb_config = roles::lb(&args.lb, &node, node_ip, &args.api.service_cidr);
    let (lb, controller_metrics, scheduler_metrics) = server.metrics.with_registry(|registry| {
        process::register(registry);
        let (controllers, scheduler) = (scaleup_controllers::build(registry), scaleup_scheduler::build(registry));
        (scaleup_lb::build(lb_config, registry), controllers, scheduler)
    });
    // Nobody else sets it.
    let _ = server.lb_views.set(views::router(views::Source::Here(lb.clone())));
    let agent_stop = stop.clone();
    running.spawn(async move { ("node agent", agent.run(agent_stop).await.map_err(Into::into)) });
    let controllers = scaleup_controllers::run(
        client(server, "system:kube-controller-manager", &[]),
        roles::controllers(&args.controllers, server.ca.cert_pem().to_owned()),
        controller_metrics,
        stop.clone(),
    );
    running.spawn(async move { ("controllers", controllers.await.map_err(Into::into)) });
    let scheduler = scaleup_scheduler::run(
        client(server, "system:kube-scheduler", &[]),
        scaleup_scheduler::Config::default(),
        scheduler_metrics,
        stop.clone(),
    );
    running.spawn(async move { ("scheduler", scheduler.await.map_err(Into::into)) });
    let (lb_client, lb_stop) = (client(server, "system:kube-proxy", &[]), stop.clone());
    running.spawn(async move { ("load balancer", lb.run(lb_client, lb_stop).await.map_err(Into::into)) });
    Ok(())
}

fn node_serving(ca: &Ca, node: &str, node_ip: std::net::IpAddr) -> Result<Serving> {
    let names = [node_ip.to_string(), "127.0.0.1".to_owned(), "localhost".to_owned()];
    let identity = ca.issue_node_serving(node, &names).context("the node agent's certificate")?;
    Ok(Serving { ca_pem: ca.cert_pem().to_owned(), cert_pem: identity.cert_pem, key_pem: identity.key_pem })
}

/// Says where everything is and what to do next.
fn greet(args: &UpArgs, url: &str, kubeconfig: &Path) {
    let kubeconfig = kubeconfig.display();
    println!("\nScaleUp is ready.");
    println!("  API            {url}");
    println!("  kubeconfig     {kubeconfig}");
    println!("  load balancer  {}: each Service of type LoadBalancer at its own port", args.lb.lb_bind);
    println!("  next           export KUBECONFIG={kubeconfig} && kubectl get nodes");
    println!("                 or, in a checkout: make demo\n");
}

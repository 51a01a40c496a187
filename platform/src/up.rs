//! `scaleup up`: every role in one process, each a client of the API server next to it, without sockets in between.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use prometheus_client::registry::Registry;
use scaleup_apiserver::auth::pki::Ca;
use scaleup_apiserver::server::Server;
use scaleup_apiserver::user::UserInfo;
use scaleup_lb::Lb;
use scaleup_plugins::World;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::UpArgs;
use crate::component::{self, Component};
use crate::handover::{self, Offer, Predecessor};
use crate::issue::Serving;
use crate::opened::Opened;
use crate::plugins::Plugins;
use crate::{alone, cli, process, roles, views};

/// A role's name and how it ended.
type Ended = (&'static str, Result<()>);

fn client(server: &Arc<Server>, user: &str, groups: &[&str]) -> kube::Client {
    kube::Client::new(server.in_process(UserInfo::system(user, groups)), "default")
}

/// Runs until `shutdown`, then drains role by role.
pub async fn run(args: UpArgs, shutdown: CancellationToken) -> Result<()> {
    let dir = args.data.data_dir.clone();
    let path = dir.join(handover::SOCKET);
    let predecessor = if args.replace { Predecessor::take(&path).await? } else { None };
    let plugins = Plugins::new(&args.plugins, &dir)?;
    let (opened, listener) = Opened::open(&args.api, &dir, &plugins).await?;
    let server = opened.server.clone();

    // Roles stop before the API does, so that what they do last is still recorded. The load balancer outlives both when a
    // successor takes over.
    let (api_stop, roles_stop, lb_stop) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let (mut api, mut running, mut traffic) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    let (serving, serving_stop) = (server.clone(), api_stop.clone());
    api.spawn(async move { ("API server", serving.serve(listener, serving_stop).await.map_err(Into::into)) });
    // Before the API's own roles and bindings are in place, it would refuse everybody.
    shutdown.run_until_cancelled(server.ready()).await;
    running.spawn(register(&server, &args, opened.port, &roles_stop));
    let started = start_roles(&server, &args, &plugins, &roles_stop, &mut running).await;
    let mut successor = None;
    let mut offer = None;
    let outcome =
        match started {
            Ok(lb) => {
                let (lb_client, stop) = (client(&server, "system:kube-proxy", &[]), lb_stop.clone());
                let role = handover::start(lb.clone(), predecessor, &mut traffic, |lb| async move {
                    lb.run(lb_client, stop).await
                });
                shutdown.run_until_cancelled(role).await;
                greet(&args, &opened.url, &opened.kubeconfig);
                let waiting = offer.insert(Offer::open(&path, lb)?);
                tokio::select! {
                    outcome = alone::first_end(&shutdown, &mut running, &mut api) => outcome,
                    ended = alone::first_of(&mut traffic) => ended,
                    asked = waiting.asked() => {
                        successor = Some(asked);
                        Ok(())
                    }
                }
            }
            Err(error) => Err(error),
        };
    if successor.is_none() {
        lb_stop.cancel();
    }
    roles_stop.cancel();
    let roles_ended = alone::drain(&mut running).await;
    if successor.is_none() {
        // What the load balancer writes last still finds the API.
        alone::drain(&mut traffic).await?;
    }
    api_stop.cancel();
    let api_ended = alone::drain(&mut api).await;
    opened.close().await;
    if let (Some(successor), Some(offer)) = (successor, offer) {
        handover::finish(successor, &offer, &shutdown).await;
        lb_stop.cancel();
        alone::drain(&mut traffic).await?;
    }
    tracing::info!("stopped");
    outcome.and(roles_ended).and(api_ended)
}

/// Keeps the view of this process's roles.
fn register(
    server: &Arc<Server>,
    args: &UpArgs,
    api_port: u16,
    stop: &CancellationToken,
) -> impl Future<Output = Ended> + use<> {
    let (instance, address) = (roles::node_name(args.node.node_name.as_ref()), roles::node_ip(&args.node));
    let one = |role, port| Component { role, instance: instance.clone(), address, port };
    let all = vec![
        one("apiserver", Some(api_port)),
        one("controllers", None),
        one("scheduler", None),
        one("agent", None),
        one("lb", None),
    ];
    let kept = component::keep(client(server, "system:apiserver", &["system:masters"]), all, stop.clone());
    async move {
        kept.await;
        ("component registry", Ok(()))
    }
}

async fn start_roles(
    server: &Arc<Server>,
    args: &UpArgs,
    plugins: &Plugins,
    stop: &CancellationToken,
    running: &mut JoinSet<Ended>,
) -> Result<Lb> {
    let (node, node_ip) = (roles::node_name(args.node.node_name.as_ref()), roles::node_ip(&args.node));
    let serving = node_serving(&server.ca, &node, node_ip)?;
    let agent_config = roles::agent(&args.node, &args.pod_network, &args.data.data_dir, &node, serving);
    let runtime = roles::runtime(&args.node, &agent_config);
    let agent_client = client(server, &format!("system:node:{node}"), &["system:nodes"]);
    // The agent's own API serves the agent's metrics, as upstream's kubelet does.
    let agent = scaleup_kubelet_lite::build(agent_config, agent_client, runtime, &mut Registry::default()).await?;
    let lb_config = roles::lb(&args.lb, &node, node_ip, &args.api.service_cidr, plugins);
    let (lb, controller_metrics, scheduler_metrics) = server.metrics.with_registry(|registry| {
        process::register(registry);
        plugins.register(registry);
        let (controllers, scheduler) = (scaleup_controllers::build(registry), scaleup_scheduler::build(registry));
        (scaleup_lb::build(lb_config, registry), controllers, scheduler)
    });
    // Nobody else sets it.
    let _ = server.lb_views.set(views::router(views::Source::Here(lb.clone())));
    let agent_stop = stop.clone();
    running.spawn(async move { ("node agent", agent.run(agent_stop).await.map_err(Into::into)) });
    let controllers = scaleup_controllers::run(
        client(server, "system:kube-controller-manager", &[]),
        roles::controllers(&args.controllers, &args.pod_network, server.ca.cert_pem().to_owned(), plugins)?,
        controller_metrics,
        stop.clone(),
    );
    running.spawn(async move { ("controllers", controllers.await.map_err(Into::into)) });
    let scheduler = scaleup_scheduler::run(
        client(server, "system:kube-scheduler", &[]),
        roles::scheduler(plugins),
        scheduler_metrics,
        stop.clone(),
    );
    running.spawn(async move { ("scheduler", scheduler.await.map_err(Into::into)) });
    let own = client(server, "system:apiserver", &["system:masters"]);
    let loading = plugins.load(own, &World::ALL, format!("up/{node}"), stop.clone());
    running.spawn(async move {
        loading.await;
        ("plugin loader", Ok(()))
    });
    Ok(lb)
}

fn node_serving(ca: &Ca, node: &str, node_ip: std::net::IpAddr) -> Result<Serving> {
    let names = [node_ip.to_string(), "127.0.0.1".to_owned(), "localhost".to_owned()];
    let identity = ca.issue_node_serving(node, &names).context("the node agent's certificate")?;
    Ok(Serving { ca_pem: ca.cert_pem().to_owned(), cert_pem: identity.cert_pem, key_pem: identity.key_pem })
}

/// Says where everything is and what to do next.
fn greet(args: &UpArgs, url: &str, kubeconfig: &Path) {
    let dir = args.data.data_dir.as_path();
    let demo = if dir == cli::default_data_dir() {
        "make demo".to_owned()
    } else {
        format!("SCALEUP_DATA_DIR={} make demo", dir.display())
    };
    let lb = match args.lb.lb_bind {
        bind if bind.is_unspecified() => "every address of this machine".to_owned(),
        bind => bind.to_string(),
    };
    let kubeconfig = kubeconfig.display();
    let pods = if args.node.stop_pods { "containers are stopped too" } else { "containers stay up" };
    println!("\nScaleUp is ready. Ctrl-C stops it; {pods}.");
    println!("  API            {url}");
    println!("  kubeconfig     {kubeconfig}");
    println!("  load balancer  {lb}; each Service of type LoadBalancer has its own port there");
    println!("  next           in another terminal: {demo}");
    println!("                 then: export KUBECONFIG={kubeconfig} && kubectl get nodes\n");
}

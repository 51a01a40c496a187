//! One role in a process of its own, talking HTTPS with the identity in its kubeconfig.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use prometheus_client::registry::Registry;
use scaleup_plugins::World;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::{AgentArgs, ApiserverArgs, ClientArgs, ControllersRoleArgs, SchedulerArgs};
use crate::component::{self, Component};
use crate::issue::serving;
use crate::opened::Opened;
use crate::plugins::Plugins;
use crate::{cli, preflight, process, roles, views};

/// A client from a role's kubeconfig, and the CA in it.
pub async fn client(args: &ClientArgs) -> Result<(kube::Client, String)> {
    let shown = args.kubeconfig.display();
    let file = Kubeconfig::read_from(&args.kubeconfig)
        .with_context(|| format!("cannot read the kubeconfig {shown}; make one with: scaleup kubeconfig"))?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("the kubeconfig {shown} is of no use"))?;
    let ca: Vec<String> = config.root_cert.iter().flatten().map(|der| pem_of(der)).collect();
    Ok((kube::Client::try_from(config)?, ca.concat()))
}

fn pem_of(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for start in (0..text.len()).step_by(64) {
        out.push_str(&text[start..text.len().min(start + 64)]);
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

/// Waits for `shutdown`, or for the first task that ends without being asked to.
pub async fn first_end(
    shutdown: &CancellationToken,
    running: &mut JoinSet<(&'static str, Result<()>)>,
    api: &mut JoinSet<(&'static str, Result<()>)>,
) -> Result<()> {
    let ended = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        ended = first_of(running) => ended,
        ended = first_of(api) => ended,
    };
    if shutdown.is_cancelled() { Ok(()) } else { ended }
}

/// Waits for the first task to end, which is a failure: nobody asked it to.
pub async fn first_of(tasks: &mut JoinSet<(&'static str, Result<()>)>) -> Result<()> {
    match tasks.join_next().await {
        Some(Ok((name, Ok(())))) => bail!("the {name} ended by itself"),
        Some(Ok((name, Err(error)))) => Err(error).with_context(|| format!("the {name} failed")),
        Some(Err(error)) => Err(error).context("a role failed"),
        None => std::future::pending().await,
    }
}

/// Waits for every task; the first failure.
pub async fn drain(tasks: &mut JoinSet<(&'static str, Result<()>)>) -> Result<()> {
    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended = match ended {
            Ok((name, result)) => result.with_context(|| format!("the {name} failed while stopping")),
            Err(error) => Err(error).context("a role failed while stopping"),
        };
        outcome = outcome.and(ended);
    }
    outcome
}

/// Runs one role beside its metrics.
pub async fn with_metrics(
    listen: Option<SocketAddr>,
    registry: Registry,
    more: axum::Router,
    shutdown: CancellationToken,
    role: impl Future<Output = Result<()>>,
) -> Result<()> {
    match listen {
        None => role.await,
        Some(listen) => {
            let metrics = process::serve_metrics(listen, Arc::new(registry), more, shutdown);
            tokio::try_join!(role, metrics).map(|_| ())
        }
    }
}

/// Runs one role beside its entry in the view of components.
pub async fn registered(
    client: kube::Client,
    role: &'static str,
    instance: String,
    port: Option<u16>,
    shutdown: CancellationToken,
    run: impl Future<Output = Result<()>>,
) -> Result<()> {
    let one = Component { role, instance, address: preflight::primary_address(), port };
    let (stop, mut run) = (CancellationToken::new(), std::pin::pin!(run));
    let mut kept = std::pin::pin!(component::keep(client, vec![one], stop.clone()));
    let outcome = tokio::select! {
        outcome = &mut run => outcome,
        () = &mut kept => return run.await,
        () = shutdown.cancelled() => {
            // Said while the role drains.
            stop.cancel();
            return tokio::join!(run, kept).0;
        }
    };
    stop.cancel();
    kept.await;
    outcome
}

/// `scaleup apiserver`
pub async fn apiserver(args: ApiserverArgs, shutdown: CancellationToken) -> Result<()> {
    let plugins = Plugins::new(&args.plugins, &args.data.data_dir)?;
    let (api, listener) = Opened::open(&args.api, &args.data.data_dir, &plugins).await?;
    api.server.metrics.with_registry(|registry| {
        process::register(registry);
        plugins.register(registry);
    });
    if let Some(address) = args.lb_views {
        // Nobody else sets it.
        let _ = api.server.lb_views.set(views::router(views::Source::At(address)));
    }
    println!("The API listens at {}; the admin's kubeconfig is {}", api.url, api.kubeconfig.display());
    let user = scaleup_apiserver::user::UserInfo::system("system:apiserver", &["system:masters"]);
    let client = kube::Client::new(api.server.in_process(user), "default");
    let holder = format!("apiserver/{}-{}", preflight::host_name(), api.port);
    let loading = plugins.load(client.clone(), &[World::Admission], holder, shutdown.clone());
    let serve = async { api.server.serve(listener, shutdown.clone()).await.map_err(Into::into) };
    let serve = async { tokio::join!(serve, loading).0 };
    let outcome =
        registered(client, "apiserver", preflight::host_name(), Some(api.port), shutdown.clone(), serve).await;
    api.close().await;
    outcome
}

/// `scaleup controllers`
pub async fn controllers(args: ControllersRoleArgs, shutdown: CancellationToken) -> Result<()> {
    let (client, ca_pem) = client(&args.client).await?;
    let mut registry = process::registry();
    let metrics = scaleup_controllers::build(&mut registry);
    let plugins = Plugins::new(&args.plugins, &cli::default_data_dir())?;
    let mut config = roles::controllers(&args.controllers, &args.pod_network, ca_pem, &plugins)?;
    config.leader_elect = true;
    config.identity = format!("{}_{}", preflight::host_name(), std::process::id());
    let role = scaleup_controllers::run(client.clone(), config, metrics, shutdown.clone());
    let role = async { role.await.map_err(Into::into) };
    let role = registered(client, "controllers", preflight::host_name(), None, shutdown.clone(), role);
    with_metrics(args.metrics_listen, registry, axum::Router::new(), shutdown, role).await
}

/// `scaleup scheduler`
pub async fn scheduler(args: SchedulerArgs, shutdown: CancellationToken) -> Result<()> {
    let (client, _) = client(&args.client).await?;
    let mut registry = process::registry();
    let metrics = scaleup_scheduler::build(&mut registry);
    let plugins = Plugins::new(&args.plugins, &cli::default_data_dir())?;
    plugins.register(&mut registry);
    let config = roles::scheduler(&plugins);
    let holder = format!("scheduler/{}", preflight::host_name());
    let loading = plugins.load(client.clone(), &[World::Scheduling], holder, shutdown.clone());
    let role = scaleup_scheduler::run(client.clone(), config, metrics, shutdown.clone());
    let role = async { tokio::join!(role, loading).0.map_err(Into::into) };
    let role = registered(client, "scheduler", preflight::host_name(), None, shutdown.clone(), role);
    with_metrics(args.metrics_listen, registry, axum::Router::new(), shutdown, role).await
}

/// `scaleup agent`
pub async fn agent(args: AgentArgs, shutdown: CancellationToken) -> Result<()> {
    let dir = args.data.data_dir.clone();
    let _lock = preflight::DataDir::open(&dir)?;
    let serving = serving(&args.client.kubeconfig)?;
    let (client, _) = client(&args.client).await?;
    let config =
        roles::agent(&args.node, &args.pod_network, &dir, &roles::node_name(args.node.node_name.as_ref()), serving);
    let runtime = roles::runtime(&args.node, &config);
    let mut registry = process::registry();
    let agent = scaleup_kubelet_lite::build(config, client, runtime, &mut registry).await?;
    // The agent's own API serves these metrics.
    agent.run(shutdown).await.map_err(Into::into)
}
